"""SSIM as the published experiments computed it, each under its own name.

These numbers stand beside the proper SSIM so that a reported table can be compared like with
like; none of them decides success. All the published calls use one Gaussian-window SSIM (window
11, sigma 1.5, population covariance), and differ in the data range and in what they feed it.

Source: Das et al. 2023 and 2024 (MedPFL), the authors' notebooks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter
from skimage.metrics import structural_similarity
from torch import Tensor

from medpfl.metrics.image_quality import (
    GAUSSIAN_WINDOW,
    WINDOW,
    as_float64,
    check_pixels,
    check_window,
    ssim,
)
from medpfl.metrics.matching import match
from medpfl.metrics.measures.base import Measure
from medpfl.types import DataSpec, Trace

_ROUNDING = 1e-9


@runtime_checkable
class PaperProtocol(Measure, Protocol):
    """One published way to put a number on a pair of images, every side at least 11 pixels."""


@dataclass(frozen=True, kw_only=True)
class PaperCPL:
    """SSIM with a data range of 0, that is without its stabilising constants.

    Notes:
        Where both images are constant over a window, SSIM without constants is 0/0. The authors
        rarely met it, as their reconstructions were not clipped to [0, 1]; here black borders do.
        Such windows are left out of the mean; NaN when nothing is left. So are windows that
        rounding alone has put outside [-1, 1]. Everywhere else the value is the authors' call,
        in float64 instead of float32.
    """

    def __call__(self, original: Tensor, reconstruction: Tensor, spec: DataSpec) -> float:
        """Return the mean over windows and channels, or NaN for images that are flat."""
        check_pixels(original, reconstruction)
        check_window(original)
        return _unstabilised_ssim(as_float64(original), as_float64(reconstruction))


@dataclass(frozen=True, kw_only=True)
class PaperIDLG(PaperCPL):
    """SSIM with a data range of 0: the same call as `PaperCPL`."""


@dataclass(frozen=True, kw_only=True)
class PaperDLG:
    """SSIM with a data range of 1 after the reconstruction has been an 8-bit picture.

    The reconstruction is cut (not rounded) to 256 levels on its way through a picture; the
    original stays as it is.
    """

    def __call__(self, original: Tensor, reconstruction: Tensor, spec: DataSpec) -> float:
        """Return the mean over windows and channels."""
        check_pixels(original, reconstruction)
        check_window(original)
        levels = (reconstruction.clamp(0, 1) * 255).to(torch.uint8)
        return _stabilised_ssim(original, levels.double() / 255, data_range=1.0)


@dataclass(frozen=True, kw_only=True)
class PaperGradInv:
    """SSIM with the default data range of 255 on mean/std-normalised images.

    The constants exceed every variance there, so that unrelated images score about 0.8: compare
    it with the reported table and with nothing else.
    """

    def __call__(self, original: Tensor, reconstruction: Tensor, spec: DataSpec) -> float:
        """Return the mean over windows and channels, in the client's input space."""
        check_pixels(original, reconstruction)
        check_window(original)
        pair_norm = spec.normalise(original), spec.normalise(reconstruction)
        return _stabilised_ssim(*pair_norm, data_range=255.0)


ALL_PROTOCOLS: Mapping[str, PaperProtocol] = MappingProxyType(
    {"cpl": PaperCPL(), "dlg": PaperDLG(), "gradinv": PaperGradInv()}
)
"""The published calls by the name of the attack whose table they made; iDLG's is CPL's."""


@dataclass(frozen=True)
class OracleChoice:
    """The image that somebody who knows the truth would have handed in.

    Args:
        ssim: its SSIM on [0, 1].
        mse: its mean squared error, the smallest over the trace.
    """

    ssim: float
    mse: float


def paper_defense(originals: Tensor, trace: Trace | None) -> list[OracleChoice]:
    """Return each image's iterate of smallest true squared error: no attacker can choose it.

    The published defense experiment reports this iterate. It needs the truth, so it stands in
    columns of its own, called oracle, and decides nothing.

    Args:
        originals: `(N, C, *S)` in [0, 1].
        trace: the recorded iterates; the choice is among these.

    Returns:
        N choices, NaN where there is no trace.
    """
    if trace is None or len(trace.inputs) == 0:
        return [OracleChoice(math.nan, math.nan) for _ in originals]
    order = match(originals, trace.inputs[-1])
    iterates = trace.inputs.detach().cpu()[:, order]
    return [_smallest_error(x, iterates[:, n]) for n, x in enumerate(originals.detach().cpu())]


def _smallest_error(original: Tensor, iterates: Tensor) -> OracleChoice:
    errors = (iterates.double() - original.double()).flatten(1).square().mean(1)
    best = int(errors.argmin())
    return OracleChoice(ssim(original, iterates[best]), float(errors[best]))


def _stabilised_ssim(original: Tensor, reconstruction: Tensor, *, data_range: float) -> float:
    pair = as_float64(original), as_float64(reconstruction)
    return float(structural_similarity(*pair, data_range=data_range, **GAUSSIAN_WINDOW))


def _unstabilised_ssim(original: NDArray[np.float64], reconstruction: NDArray[np.float64]) -> float:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        _, values = structural_similarity(
            original, reconstruction, data_range=0.0, full=True, **GAUSSIAN_WINDOW
        )
    values = _inside(values)
    undefined = _flat(original) & _flat(reconstruction)
    # NaN compares false, so 0/0 that slipped through as NaN or infinity is left out as well.
    defined = ~undefined & (np.abs(values) <= 1.0 + _ROUNDING)
    return float(values[defined].mean()) if defined.any() else math.nan


def _flat(image: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which windows hold a single value; `(C, *S)` to `(C, *(S - 10))`."""
    size = (1,) + (WINDOW,) * (image.ndim - 1)
    flat: NDArray[np.bool_] = maximum_filter(image, size) == minimum_filter(image, size)
    return _inside(flat)


def _inside(per_window: NDArray[Any]) -> NDArray[Any]:
    """Drop the windows that hang over the border."""
    border = WINDOW // 2
    return per_window[(slice(None), *(slice(border, -border),) * (per_window.ndim - 1))]
