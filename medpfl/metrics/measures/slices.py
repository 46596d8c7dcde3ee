"""SSIM of a volume's slices: the one a reader scrolls through, and the worst of them.

The SSIM of a volume averages over windows of 11 voxels a side, most of which may be air. A single
bad slice hides there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType

from torch import Tensor

from medpfl.metrics.image_quality import WINDOW, ssim
from medpfl.metrics.measures.base import Measure
from medpfl.types import DataSpec


@dataclass(frozen=True, kw_only=True)
class SliceSSIM:
    """The SSIM of each axial slice, by itself, as one number.

    Args:
        of: makes one number of the D slices'.
    """

    of: Callable[[list[float]], float]

    def __call__(self, original: Tensor, reconstruction: Tensor, spec: DataSpec) -> float:
        """Return a number in [-1, 1] for two volumes `(C, D, H, W)`.

        NaN where H or W is smaller than SSIM's window of 11, and of pictures.

        Raises:
            ValueError: shapes differ, or the pixels are not finite or not in [0, 1].
        """
        if original.ndim != 4 or min(original.shape[2:]) < WINDOW:
            return math.nan
        slices = zip(original.unbind(1), reconstruction.unbind(1), strict=True)
        return self.of([ssim(*pair) for pair in slices])


OF_VOLUMES: Mapping[str, Measure] = MappingProxyType(
    {"ssim_slices_median": SliceSSIM(of=median), "ssim_slices_worst": SliceSSIM(of=min)}
)
"""By the names of their columns, which tables of volumes have."""
