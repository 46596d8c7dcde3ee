"""Whether edges are where they were: similarity of the gradients of two images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import prewitt
from skimage.measure import block_reduce
from torch import Tensor

from medpfl.errors import ConfigurationError
from medpfl.metrics.image_quality import as_float64, check_pixels
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import DataSpec

_FILTER = 3
_STABILISER = 170.0 / 255.0**2
"""The paper's constant, 170 for 8-bit images, for pixels in [0, 1]."""


@checked("metrics.measures.gmsd")
@dataclass(frozen=True, kw_only=True)
class GMSD:
    """Gradient magnitude similarity deviation: 0 for equal images, larger where edges differ.

    The images are averaged over blocks and the magnitudes m of their gradients (Prewitt's filters,
    which take 3 pixels) compared pixel by pixel, s = (2 m1 m2 + c) / (m1^2 + m2^2 + c); the result
    is the standard deviation of s. A blur or a shift that leaves the SSIM of a smooth image high
    moves its edges, and is seen here.

    Args:
        block: side in pixels of the blocks that are averaged first; 2 in the paper.

    Notes:
        Only where the filter lies inside the image; the authors' code pads with zeros, which makes
        an edge of the border. Each channel by itself, then their mean; the paper takes the
        luminance. Volumes have gradients along three axes, and Prewitt's filter has three sides.

    Source: Xue et al. 2014, Eqs. 1-6.
    """

    block: Annotated[int, Range(1, 1024)] = 2

    def __call__(self, original: Tensor, reconstruction: Tensor, spec: DataSpec) -> float:
        """Return the deviation, not negative.

        Raises:
            ConfigurationError: the images hold fewer than three blocks a side.
            ValueError: shapes differ, or the pixels are not finite or not in [0, 1].
        """
        check_pixels(original, reconstruction)
        sides = original.shape[1:]
        if min(sides) < _FILTER * self.block:
            raise ConfigurationError(
                f"metrics.measures.gmsd.block={self.block}: images of {'x'.join(map(str, sides))} "
                f"pixels hold fewer than {_FILTER} such blocks a side; choose a smaller one"
            )
        channels = zip(as_float64(original), as_float64(reconstruction), strict=True)
        return float(np.mean([self._deviation(*pair) for pair in channels]))

    def _deviation(self, original: NDArray[np.float64], guess: NDArray[np.float64]) -> float:
        first, second = (_magnitude(self._averaged(image)) for image in (original, guess))
        similarity = (2 * first * second + _STABILISER) / (first**2 + second**2 + _STABILISER)
        return float(similarity.std())

    def _averaged(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the means of whole blocks; what is left over at the far border is left out."""
        whole = tuple(slice(0, side - side % self.block) for side in image.shape)
        means: NDArray[np.float64] = block_reduce(image[whole], self.block, np.mean)
        return means


def _magnitude(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the gradient's length `(*(S - 2))` where the filter lies inside `(*S)`."""
    scale = _FILTER ** (image.ndim - 1)  # scipy's filters sum where the paper's take the mean
    along = [prewitt(image, axis) / scale for axis in range(image.ndim)]
    length: NDArray[np.float64] = np.sqrt(np.sum(np.square(along), axis=0))
    return length[(slice(1, -1),) * image.ndim]
