"""What natural images are like: terms that are added to a row's objective."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from medpfl.attacks.image_prior import ImageGaussian
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Weight
from medpfl.types import DataSpec


class Prior(Protocol):
    """A penalty on the dummy images of a single row."""

    def __call__(self, inputs_norm: Tensor, spec: DataSpec) -> Tensor:
        """Return a scalar tensor, its weight included.

        Args:
            inputs_norm: `(N, C, *S)` in the client's input space.
            spec: the kind of data.
        """
        ...


@runtime_checkable
class SquaredPrior(Prior, Protocol):
    """A prior that is a sum of squares, as second-order optimisers need it."""

    def residual(self, inputs_norm: Tensor, spec: DataSpec) -> Tensor:
        """Return `(R,)` entries whose squares sum to the prior."""
        ...


@checked("attack.priors.total_variation")
@dataclass(frozen=True, kw_only=True)
class TotalVariation:
    """Weight times the anisotropic total variation (Geiping et al. 2020, Eq. 4, and their code).

    TV(x) = sum over spatial axes a of mean |x[.., i + 1, ..] - x[.., i, ..]|, the mean over all
    pairs of neighbours along a, of all images and channels.

    Args:
        weight: not negative.
    """

    weight: Weight

    def __call__(self, inputs_norm: Tensor, spec: DataSpec) -> Tensor:
        """Return weight * TV(inputs_norm); 0 where every image is flat."""
        axes = range(2, inputs_norm.ndim)
        return self.weight * torch.stack([_variation(inputs_norm, axis) for axis in axes]).sum()


@checked("attack.priors.out_of_range")
@dataclass(frozen=True, kw_only=True)
class OutOfRange:
    """Weight times the mean squared distance of the pixels from [0, 1].

    Zero at every real image, so that it moves no solution. With several images behind an update it
    tells them apart: what their mean leaves open are mixtures of them, and nearly every mixture has
    pixels that are blacker than black.

    Args:
        weight: not negative.
    """

    weight: Weight

    def __call__(self, inputs_norm: Tensor, spec: DataSpec) -> Tensor:
        """Return weight * mean of (x - clamp(x, 0, 1))^2 over all pixels x of all images."""
        return self.weight * _outside(inputs_norm, spec).square().mean()

    def residual(self, inputs_norm: Tensor, spec: DataSpec) -> Tensor:
        """Return the distances, scaled; see `SquaredPrior`."""
        outside = _outside(inputs_norm, spec).flatten()
        return outside * math.sqrt(self.weight / outside.numel())


@dataclass(frozen=True, kw_only=True)
class LikelyImages:
    """Minus the log-density of the images under a Gaussian learnt from public ones, in nats.

    Its weight is 1: beside a likelihood in nats, the sum is the posterior's, and nothing is left to
    tune.

    Args:
        images: the Gaussian.
        tied: whether the channels of a pixel are one unknown.
    """

    images: ImageGaussian
    tied: bool

    def __call__(self, inputs_norm: Tensor, spec: DataSpec) -> Tensor:
        """Return (x - m)' S^-1 (x - m) / 2, summed over the images."""
        return self.residual(inputs_norm, spec).square().sum()

    def residual(self, inputs_norm: Tensor, spec: DataSpec) -> Tensor:
        """Return the standardised pixels over the root of 2; see `SquaredPrior`."""
        pixels = spec.denormalise(inputs_norm)
        pixels = pixels[:, :1] if self.tied else pixels
        return self.images.standard(pixels.flatten(1)).flatten() / math.sqrt(2)


def _outside(inputs_norm: Tensor, spec: DataSpec) -> Tensor:
    pixels = spec.denormalise(inputs_norm)
    return (-pixels).relu() + (pixels - 1).relu()


def _variation(images: Tensor, axis: int) -> Tensor:
    pairs = images.shape[axis] - 1
    return (images.narrow(axis, 1, pairs) - images.narrow(axis, 0, pairs)).abs().mean()
