"""The measures that every run has, as parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from medpfl.metrics.image_quality import mse, ssim
from medpfl.metrics.measures.base import Measure
from medpfl.types import DataSpec


@dataclass(frozen=True, kw_only=True)
class SSIM:
    """The structural similarity, see `medpfl.metrics.ssim`."""

    def __call__(self, original: Tensor, reconstruction: Tensor, spec: DataSpec) -> float:
        """Return a number in [-1, 1]; 1 for equal images."""
        return ssim(original, reconstruction)


@dataclass(frozen=True, kw_only=True)
class MSE:
    """The mean squared error, see `medpfl.metrics.mse`."""

    def __call__(self, original: Tensor, reconstruction: Tensor, spec: DataSpec) -> float:
        """Return a number in [0, 1]; 0 for equal images."""
        return mse(original, reconstruction)


EVERY_RUN: Mapping[str, Measure] = MappingProxyType({"ssim": SSIM(), "mse": MSE()})
"""By the names of their columns."""
