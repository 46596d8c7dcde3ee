"""From what a scanner stored to grey levels in [0, 1]: windows, and robust percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medpfl.errors import ConfigurationError, DataError

Array = NDArray[np.floating[Any]]
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

PERCENTILES = (0.5, 99.5)
"""What becomes black and white without a window, as nnU-Net clips CT (Isensee et al. 2021).

White is that of what is brighter than the image's mean. Of MR half of the voxels and more are air:
among all of them, white would fall on ordinary tissue.
"""


@dataclass(frozen=True)
class Window:
    """Which values become grey levels.

    Args:
        center: the value in the middle, in the image's unit: Hounsfield units for CT.
        width: positive.
        function: how values become grey levels, by the names that DICOM has for it.
    """

    center: float
    width: float
    function: Function = "LINEAR_EXACT"

    def apply(self, values: Array) -> Array:
        """Return grey levels in [0, 1].

        Source: DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3.
        """
        if self.function == "SIGMOID":
            bent: Array = 1 / (1 + np.exp(-4 * (values - self.center) / self.width))
            return bent
        if self.function == "LINEAR":
            if self.width <= 1:
                above: Array = (values > self.center - 0.5).astype(np.float32)
                return above
            grey = (values - (self.center - 0.5)) / (self.width - 1) + 0.5
        else:
            grey = (values - self.center) / self.width + 0.5
        clipped: Array = np.clip(grey, 0, 1)
        return clipped


def window_of(setting: Sequence[float] | None) -> Window | None:
    """Read ``dataset.window``.

    Raises:
        ConfigurationError: it is no centre and width.
    """
    if setting is None:
        return None
    if len(setting) != 2 or not np.isfinite(list(setting)).all() or setting[1] <= 0:
        raise ConfigurationError(
            f"dataset.window is {list(setting)}: give [center, width] in the image's unit, the "
            "width positive, such as [40,400] for soft tissue or [-600,1500] for lungs in CT; or "
            "null"
        )
    return Window(float(setting[0]), float(setting[1]))


def grey_levels(values: Array, window: Window | None) -> Array:
    """Return values as grey levels in [0, 1], float32.

    Args:
        values: of one image, finite.
        window: None for robust percentiles, see `PERCENTILES`.

    Raises:
        DataError: all values are equal, so that nothing is shown.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise DataError("all of its values are equal: it shows nothing")
    if window is None:
        bright = values[values > values.mean(dtype=np.float64)]
        parts = zip((values, bright), PERCENTILES, strict=True)
        inner = tuple(float(np.percentile(part, share)) for part, share in parts)
        low, high = inner if inner[0] < inner[1] else (low, high)
        window = Window((low + high) / 2, high - low)
    grey = window.apply(values.astype(np.float32)).astype(np.float32)
    if float(grey.min()) == float(grey.max()):
        raise DataError(
            f"all of its values, {low:g} to {high:g}, lie on one side of dataset.window: choose "
            "another window, or null"
        )
    return grey
