"""Errors of the pixels, relative to the image that they are made on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from skimage.metrics import normalized_root_mse
from torch import Tensor

from medpfl.errors import ConfigurationError
from medpfl.metrics.image_quality import as_float64, check_pixels
from medpfl.settings.hints import checked
from medpfl.types import DataSpec

_NORMALISATIONS = ("euclidean", "min-max", "mean")


@checked("metrics.measures.nrmse")
@dataclass(frozen=True, kw_only=True)
class NRMSE:
    """Root mean squared error over the original's own size, so that dark images count as much.

    An error of 0.01 is little on a bright picture of skin, and all there is on a scan that is
    black but for a rim. 0 for equal images; with the default, 1 for a black image.

    Args:
        normalization: what the error is divided by: ``euclidean``, the root mean square of the
            original; ``min-max``, its range; ``mean``, its mean.

    Source: scikit-image, ``skimage.metrics.normalized_root_mse``.
    """

    normalization: Literal["euclidean", "min-max", "mean"] = "euclidean"

    def __post_init__(self) -> None:
        if self.normalization not in _NORMALISATIONS:
            raise ConfigurationError(
                f"metrics.measures.nrmse.normalization={self.normalization}: choose "
                f"{', '.join(_NORMALISATIONS[:-1])} or {_NORMALISATIONS[-1]}"
            )

    def __call__(self, original: Tensor, reconstruction: Tensor, spec: DataSpec) -> float:
        """Return a number that is not negative; NaN where the original's size is 0.

        Raises:
            ValueError: shapes differ, or the pixels are not finite or not in [0, 1].
        """
        check_pixels(original, reconstruction)
        darkest = original.min() if self.normalization == "min-max" else 0.0
        if float(original.max() - darkest) <= 0.0:
            return math.nan
        pair = as_float64(original), as_float64(reconstruction)
        return float(normalized_root_mse(*pair, normalization=self.normalization))
