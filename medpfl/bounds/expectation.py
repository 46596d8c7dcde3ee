"""The mean of J'J over images, and a van Trees bound that few of them do not overstate.

J'J differs from image to image, and 1 / x curves upwards: the bound of a mean over few images is
too high on average. So half of the work goes into a guess of the inverse and the other half into a
check of it, on other images. For any matrix C and any positive A

    A^-1 >= C + C' - C'AC

with equality at C = A^-1 (complete the square). Let A hold J'J's mean, and C be the inverse made
from some images: the right side is linear in A, so that what other images make of it is right on
average for a bound that is never above that of van Trees. It is low where images are few, and its
scatter over the parts of the images is the standard error that is stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.bounds.information import Bound
from medpfl.bounds.pixels import PixelMap
from medpfl.bounds.prior import GaussianPrior
from medpfl.errors import ConfigurationError

PARTS = 4
"""Into so many parts the images are shared out; each checks what the others suggest."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The mean of J'J over each part of the images.

    Args:
        grams: `(PARTS, d, d)`, float64.
        shape: `(N, C, *S)` of the unknowns.
    """

    grams: Tensor
    shape: tuple[int, ...]

    def van_trees(self, std: float, prior: GaussianPrior) -> Bound:
        """Return a bound that is right on average or too low; see `Information.van_trees`.

        Args:
            std: of the Gaussian noise on every entry, in the unit of the update as it is sent.
            prior: of one image.
        """
        device = self.grams.device
        identity = torch.eye(self.grams.shape[1], dtype=torch.float64, device=device)
        root = prior.to(device).root(identity)
        informed = [root @ gram @ root / std**2 for gram in self.grams]
        total = torch.stack(informed).sum(0)
        drawn = []
        for own in informed:
            others = (total - own) / (len(informed) - 1) + identity
            # With M in units of the prior, the bound is root M^-1 root: C is inverse times root.
            guess = torch.cholesky_solve(root, torch.linalg.cholesky(_symmetric(others)))
            drawn.append(2 * (root * guess).sum(0) - (guess * (own @ guess + guess)).sum(0))
        pixels = torch.stack(drawn)
        means = pixels.mean(1)
        return Bound(
            value=float(means.mean()),
            standard_error=float(means.std()) / len(means) ** 0.5,
            per_pixel=pixels.mean(0).reshape(self.shape),
            per_pixel_error=(pixels.std(0) / len(means) ** 0.5).reshape(self.shape),
        )


def expected(pixel_map: PixelMap, points: Sequence[Tensor]) -> Expected:
    """Return the mean of J'J over each part of some images.

    Args:
        pixel_map: from images to the update.
        points: each `(N, C, *S)` in [0, 1], none of them attacked; at least `PARTS`.

    Raises:
        ConfigurationError: too few points, or as `PixelMap.gram_at`.
    """
    if len(points) < PARTS:
        raise ConfigurationError(
            f"{len(points)} public images are too few for a bound that stands on their mean: give "
            f"at least {PARTS}"
        )
    grams = [
        torch.stack([pixel_map.gram_matrix(inputs) for inputs in points[part::PARTS]]).mean(0)
        for part in range(PARTS)
    ]
    return Expected(grams=torch.stack(grams), shape=pixel_map.shape)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
