"""A line-up: which of many images a reconstruction looks like."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from medpfl.metrics.identification import Rank
from medpfl.metrics.image_quality import GAUSSIAN_WINDOW, WINDOW, as_float64, ssim

SAME_IMAGE = 0.99
"""From this SSIM on, two images are the same to the eye, whatever their names."""

Likeness = Literal["correlation", "mse", "ssim"]
"""What a reconstruction is compared by with the images that may be behind it."""

_STABILISERS = 0.01**2, 0.03**2
_CUT = 3.5  # standard deviations: what makes the window 11 pixels wide
_ROUNDING = 1e-9

Array = NDArray[np.float64]


class LineUp:
    """The SSIM of one image to each of k others, much faster than one after another.

    Args:
        images: k images `(C, *S)` in [0, 1], every side of S at least 11; k may be 0.
    """

    def __init__(self, images: list[Tensor]) -> None:
        self._images = images
        self._pixels = np.stack([as_float64(i) for i in images]) if images else np.zeros((0, 1))
        self._means = _averaged(self._pixels)
        self._variances = _averaged(self._pixels**2) - self._means**2

    def __len__(self) -> int:
        """Return k."""
        return len(self._images)

    def similarities(self, image: Tensor) -> Array:
        """Return `ssim` of a `(C, *S)` image to each of the k; `(k,)`.

        Source: Wang et al. 2004, Eq. 13.
        """
        pixels = as_float64(image)[None]
        mean = _averaged(pixels)
        variance = _averaged(pixels**2) - mean**2
        covariance = _averaged(pixels * self._pixels) - mean * self._means
        low, high = _STABILISERS
        numerator = (2 * mean * self._means + low) * (2 * covariance + high)
        denominator = (mean**2 + self._means**2 + low) * (variance + self._variances + high)
        values: Array = (numerator / denominator).reshape(len(self), -1).mean(axis=1)
        return values

    def rank(self, original: Tensor, reconstruction: Tensor, by: Likeness) -> Rank:
        """Return the place of the original among these images by likeness to a reconstruction.

        Images that are the original under another name do not count.

        Args:
            original: `(C, *S)` in [0, 1].
            reconstruction: `(C, *S)` in [0, 1].
            by: of pixels their correlation, which noise of any scale leaves, or their squared
                error; or SSIM.
        """
        different = self.similarities(original) < SAME_IMAGE if len(self) else np.zeros(0, bool)
        if by == "ssim":
            own = ssim(original, reconstruction)
            others = self.similarities(reconstruction) if len(self) else np.zeros(0)
        else:
            likeness = _correlations if by == "correlation" else _closeness
            own_pixels = as_float64(original)[None]
            pixels = np.concatenate([own_pixels, self._pixels]) if len(self) else own_pixels
            own, *rest = likeness(pixels, as_float64(reconstruction)).tolist()
            others = np.asarray(rest)
        rivals = others[different]
        above = int((rivals > own + _ROUNDING).sum())
        equal = int((abs(rivals - own) <= _ROUNDING).sum())
        return Rank(1 + above + equal / 2, 1 + len(rivals))

    def singles_out(self, original: Tensor, reconstruction: Tensor) -> bool:
        """Tell whether a reconstruction is more like its original than like any of the k.

        Images that are the original under another name do not count.

        Args:
            original: `(C, *S)` in [0, 1].
            reconstruction: `(C, *S)` in [0, 1].
        """
        own = ssim(original, reconstruction)
        rivals = (self.similarities(reconstruction) >= own - _ROUNDING).nonzero()[0]
        return all(ssim(original, self._images[k]) >= SAME_IMAGE for k in rivals)


def _correlations(images: Array, image: Array) -> Array:
    """Return Pearson's correlation of an image with each of `(k, C, *S)`; 0 where one is flat."""
    flat, one = images.reshape(len(images), -1), image.reshape(-1)
    flat, one = flat - flat.mean(axis=1, keepdims=True), one - one.mean()
    norms = np.linalg.norm(flat, axis=1) * np.linalg.norm(one)
    products: Array = flat @ one
    values: Array = np.divide(products, norms, out=np.zeros_like(products), where=norms > _ROUNDING)
    return values


def _closeness(images: Array, image: Array) -> Array:
    """Return the negative mean squared error of an image to each of `(k, C, *S)`; `(k,)`."""
    values: Array = -((images - image) ** 2).reshape(len(images), -1).mean(axis=1)
    return values


def _averaged(images: Array) -> Array:
    """Average `(k, C, *S)` in SSIM's Gaussian window, wherever all of it lies inside."""
    for _ in range(2, images.ndim):
        # The axis that was averaged over goes to the end, so that the next one is the third.
        images = np.tensordot(images, _windows(images.shape[2]), axes=(2, 0))
    return images


@cache
def _windows(side: int) -> Array:
    """Return the weights of every window along an axis, `(side, side - 10)`."""
    weights: Array = gaussian_filter1d(np.eye(side), GAUSSIAN_WINDOW["sigma"], 0, truncate=_CUT)
    border = WINDOW // 2
    return weights[border : side - border].T.copy()
