"""How close a reconstruction is to the truth, image by image, on pixels in [0, 1]."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

from medpfl.errors import ConfigurationError

WINDOW = 11
"""Side of the SSIM window in pixels: what sigma 1.5 spans when cut at 3.5 sigma."""

GAUSSIAN_WINDOW: dict[str, Any] = {
    "channel_axis": 0,
    "gaussian_weights": True,
    "sigma": 1.5,
    "use_sample_covariance": False,
}
"""scikit-image's arguments for the SSIM of Wang et al. 2004."""

_LARGEST_SPAN = 1.5


def ssim(original: Tensor, reconstruction: Tensor) -> float:
    """Return the structural similarity of two images or volumes.

    A Gaussian window of 11 pixels a side (sigma 1.5), population covariance, data range 1, in
    float64; the mean over the windows that lie inside the image, then over channels.

    Args:
        original: `(C, *S)` in [0, 1], every side of S at least 11.
        reconstruction: `(C, *S)` in [0, 1].

    Returns:
        A number in [-1, 1]; 1 for equal images.

    Raises:
        ConfigurationError: an image is smaller than the window.
        ValueError: shapes differ, or the pixels are not finite or not in [0, 1].

    Source: Wang et al. 2004, Eq. 13.
    """
    check_pixels(original, reconstruction)
    check_window(original)
    pair = as_float64(original), as_float64(reconstruction)
    return float(structural_similarity(*pair, data_range=1.0, **GAUSSIAN_WINDOW))


def mse(original: Tensor, reconstruction: Tensor) -> float:
    """Return the mean squared error over all pixels and channels, in float64.

    Args:
        original: `(C, *S)` in [0, 1].
        reconstruction: `(C, *S)` in [0, 1].

    Raises:
        ValueError: shapes differ, or the pixels are not finite or not in [0, 1].
    """
    check_pixels(original, reconstruction)
    return float(np.mean((as_float64(original) - as_float64(reconstruction)) ** 2))


def psnr_db(original: Tensor, reconstruction: Tensor) -> float:
    """Return the peak signal-to-noise ratio for a peak of 1; infinite for equal images.

    Args:
        original: `(C, *S)` in [0, 1].
        reconstruction: `(C, *S)` in [0, 1].

    Raises:
        ValueError: shapes differ, or the pixels are not finite or not in [0, 1].
    """
    return psnr_db_of(mse(original, reconstruction))


def psnr_db_of(mean_squared_error: float) -> float:
    """Return `-10 log10(mse)`: 10 dB for 0.1, 20 dB for 0.01, infinite for 0."""
    if mean_squared_error == 0.0:
        return math.inf
    return -10.0 * math.log10(mean_squared_error)


def ssim_per_image(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Return `ssim` for each of N pairs; `(N, C, *S)` twice to `(N,)` float64."""
    pairs = zip(originals, reconstructions, strict=True)
    return torch.tensor([ssim(a, b) for a, b in pairs], dtype=torch.float64)


def mse_per_image(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Return `mse` for each of N pairs; `(N, C, *S)` twice to `(N,)` float64."""
    pairs = zip(originals, reconstructions, strict=True)
    return torch.tensor([mse(a, b) for a, b in pairs], dtype=torch.float64)


def psnr_db_per_image(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Return `psnr_db` for each of N pairs; `(N, C, *S)` twice to `(N,)` float64."""
    pairs = zip(originals, reconstructions, strict=True)
    return torch.tensor([psnr_db(a, b) for a, b in pairs], dtype=torch.float64)


def check_pixels(original: Tensor, reconstruction: Tensor) -> None:
    """Refuse pairs of unequal shape, non-finite values, and pixels that cannot be in [0, 1].

    A wrong range is how a meaningless SSIM comes about (normalised images under a range of 255
    score 0.8 against anything), so values that span more than 1.5 are an error, not a number.
    """
    if original.shape != reconstruction.shape:
        raise ValueError(
            f"original {tuple(original.shape)} and reconstruction {tuple(reconstruction.shape)} "
            "must have the same shape"
        )
    for name, image in (("original", original), ("reconstruction", reconstruction)):
        if not bool(torch.isfinite(image).all()):
            raise ValueError(f"{name} has NaN or infinite pixels; expected pixels in [0, 1]")
        span = float(image.max() - image.min())
        if span > _LARGEST_SPAN:
            raise ValueError(
                f"{name} spans {span:.3g} from its darkest to its brightest pixel; expected pixels "
                f"in [0, 1] (a span of at most {_LARGEST_SPAN}): undo the normalisation first"
            )


def check_window(image: Tensor) -> None:
    """Refuse `(C, *S)` with a side that the SSIM window does not fit into."""
    sides = tuple(image.shape[1:])
    if not sides or min(sides) < WINDOW:
        size = "x".join(str(side) for side in sides)
        raise ConfigurationError(
            f"SSIM needs images of at least {WINDOW} pixels a side, got {size}: "
            f"set preprocess.size={WINDOW} or more"
        )


def as_float64(image: Tensor) -> NDArray[np.float64]:
    """Return the image as a float64 array on the CPU, of the same shape."""
    return image.detach().to(device="cpu", dtype=torch.float64).numpy()
