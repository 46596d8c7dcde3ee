"""What is known of an image before an update is seen: a mean and a covariance of its pixels."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from medpfl.bounds.pixels import unknown_pixels
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import check_value
from medpfl.settings.ranges import Range

Shrinkage = Annotated[float, Range(0, 1, "(]")]
"""The share of the identity in a covariance; 0 would call what no image showed impossible."""

_LEAST = 1e-6  # of shrinkage: pixels that never differed would otherwise be known for good
_ROUNDING = 1e-13  # of the largest variance
_MOVED = 0.1  # of the covariance, that of images moved by up to a pixel
_NO_VARIANCE = 1e-24  # of pixels in [0, 1]: the rounding of their mean leaves 1e-32


@dataclass(frozen=True, kw_only=True)
class GaussianPrior:
    """N(mean, S) with S = directions diag(above) directions' + floor I, for each image by itself.

    In this form S of a few hundred images takes no d x d numbers, and neither does its root.

    Args:
        mean: `(d,)` of one image, float64.
        directions: `(d, r)`, orthonormal.
        above: `(r,)`, the variance along each beyond the floor, not negative.
        floor: the variance in every other direction, not negative.
        shrinkage: how much of the identity went into S.
    """

    mean: Tensor
    directions: Tensor
    above: Tensor
    floor: float
    shrinkage: float = 1.0

    @classmethod
    def from_images(
        cls, inputs: Tensor, *, tied: bool, shrinkage: float | None = None
    ) -> GaussianPrior:
        """Return the prior that public images suggest: S = (1 - a) S_n + a tr(S_n) / d I.

        S_n is their covariance (over n, not n - 1), and a is Ledoit and Wolf's estimate of what
        brings S nearest to the covariance behind the images, in Frobenius norm (2004, A
        well-conditioned estimator for large-dimensional covariance matrices, Lemma 3.3).

        Args:
            inputs: `(n, C, *S)` in [0, 1], n at least 2, none of them attacked.
            tied: whether the channels of a pixel are one unknown.
            shrinkage: a; None estimates it.

        Raises:
            ConfigurationError: too few images, images that are all the same, a out of range.
        """
        if len(inputs) < 2:
            raise ConfigurationError(
                f"{len(inputs)} public images have no covariance: give at least 2, and for a bound "
                "to rely on about a hundred"
            )
        pixels = unknown_pixels(inputs, tied=tied)
        mean = pixels.mean(0)
        centred = pixels - mean
        _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
        variances = singular.square() / len(pixels)
        average = float(variances.sum()) / len(mean)
        if average < _NO_VARIANCE:
            raise ConfigurationError(
                "the public images are all the same, so that they say nothing of how images "
                "differ: give others"
            )
        if shrinkage is None:
            shrinkage = _ledoit_wolf(centred, variances)
        check_value("bound.shrinkage", shrinkage, Shrinkage)
        return cls(
            mean=mean,
            directions=directions.T,
            above=(1 - shrinkage) * variances,
            floor=shrinkage * average,
            shrinkage=shrinkage,
        )

    @classmethod
    def from_classes(cls, inputs: Tensor, labels: Tensor, *, tied: bool) -> GaussianPrior:
        """Return what public images suggest of an image whose class is known, tails not inflated.

        S is the covariance within classes, n - k in the denominator, and a tenth of it that of the
        same images moved by up to a pixel. Bounds are concave in S, so that a covariance that is
        right on average makes them too low on average, and of few images by a lot: these have no
        variance in most directions. Shrinkage towards the identity gives them too much, more than
        the fine structure of images has, and makes bounds too high. Moved images have theirs in
        the directions that images have; a tenth of them leaves bounds too low (docs/findings.md).

        Args:
            inputs: `(n, C, *S)` in [0, 1], none of them attacked.
            labels: `(n,)`.
            tied: whether the channels of a pixel are one unknown.

        Raises:
            ConfigurationError: no class has two images, or images that are all the same.
        """
        classes = torch.unique(labels).tolist()
        free = len(labels) - len(classes)
        if free < 1:
            raise ConfigurationError(
                f"{len(labels)} public images of {len(classes)} classes have no covariance within "
                "a class: give at least 2 of one class"
            )
        pixels = unknown_pixels(inputs, tied=tied).reshape(len(inputs), -1, *inputs.shape[2:])
        means = {c: pixels[labels == c].mean(0) for c in classes}
        centred = pixels - torch.stack([means[int(c)] for c in labels])
        still = centred.flatten(1)
        square = (1 - _MOVED) * still.T @ still / free + _MOVED * _moved_covariance(centred) / free
        average = float(square.trace()) / len(square)
        if average < _NO_VARIANCE:
            raise ConfigurationError(
                "the public images of each class are all the same, so that they say nothing of how "
                "images differ: give others"
            )
        variances, directions = torch.linalg.eigh(square)
        kept = variances > _ROUNDING * float(variances[-1])
        return cls(
            mean=pixels.mean(0).flatten(),
            directions=directions[:, kept],
            above=variances[kept],
            floor=0.0,
            shrinkage=0.0,
        )

    @classmethod
    def isotropic(cls, mean: Tensor, variance: float) -> GaussianPrior:
        """Return N(mean, variance I), mean `(d,)`: of every pixel by itself."""
        flat = mean.detach().double().flatten()
        none = flat.new_zeros(0)
        directions = flat.new_zeros((len(flat), 0))
        return cls(mean=flat, directions=directions, above=none, floor=variance)

    def to(self, device: torch.device) -> GaussianPrior:
        """Return the same on a device."""
        parts = {name: getattr(self, name).to(device) for name in ("mean", "directions", "above")}
        return replace(self, **parts)

    @property
    def variance(self) -> float:
        """tr(S) / d: the error a pixel of an attacker that sees no update."""
        return self.floor + float(self.above.sum()) / len(self.mean)

    def covariance(self) -> Tensor:
        """Return S, `(d, d)`."""
        identity = torch.eye(len(self.mean), dtype=torch.float64, device=self.mean.device)
        return (self.directions * self.above) @ self.directions.T + self.floor * identity

    def root(self, rows: Tensor) -> Tensor:
        """Multiply by the symmetric root of S.

        Args:
            rows: `(..., N d)`, N images each.

        Returns:
            The same shape.
        """
        images = rows.reshape(*rows.shape[:-1], -1, len(self.mean))
        gain = (self.above + self.floor).sqrt() - self.floor**0.5
        along = (images @ self.directions) * gain
        spread: Tensor = images * self.floor**0.5 + along @ self.directions.T
        return spread.reshape(rows.shape)

    def draw(self, images: int, generator: torch.Generator) -> Tensor:
        """Return `(images, d)` from N(mean, S); nothing keeps them in [0, 1]."""
        standard = torch.randn(
            (images, len(self.mean)), dtype=torch.float64, generator=generator
        ).to(self.mean.device)
        return self.mean + self.root(standard)


def _moved_covariance(centred: Tensor) -> Tensor:
    """Return the sum of squares of images `(n, C, *S)`, mean over moves by up to a pixel, (d, d).

    A pixel that comes in at an edge is the one that was there.
    """
    sides = centred.ndim - 2
    moves = list(itertools.product((-1, 0, 1), repeat=sides))
    total = centred.new_zeros((centred[0].numel(), centred[0].numel()))
    for move in moves:
        moved = centred
        for side, by in enumerate(move):
            size = centred.shape[2 + side]
            places = (torch.arange(size, device=centred.device) + by).clamp(0, size - 1)
            moved = moved.index_select(2 + side, places)
        flat = moved.flatten(1)
        total += flat.T @ flat
    return total / len(moves)


def _ledoit_wolf(centred: Tensor, variances: Tensor) -> float:
    """Return the shrinkage of images `(n, d)` whose covariance has these eigenvalues."""
    images, pixels = centred.shape
    square = float(variances.square().sum())
    from_identity = square - float(variances.sum()) ** 2 / pixels
    of_samples = float(centred.square().sum(1).square().sum()) / images**2 - square / images
    if from_identity <= 0:
        return 1.0
    return max(_LEAST, min(1.0, of_samples / from_identity))
