"""A prior for updates that leave an image open: pixels are mostly like their neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medpfl.attacks.composition import Parts
from medpfl.types import DataSpec

# The mean difference of neighbours in [0, 1] of 32 x 32 pixels, of drawn images, which are nobody's
# (`dataset=phantom`, 16 of each): 0.056 of heads, 0.045 of all kinds.
_DIFFERENCE = 0.05
# Smaller differences are squared, so that an optimiser can come to rest.
_ROUND = 0.01


@dataclass(frozen=True, kw_only=True)
class LikeNeighbours:
    """Minus the log-density, in nats, of images whose neighbours differ by a Laplace law.

    The anisotropic total variation of the pixels (Rudin, Osher and Fatemi 1992), over the mean
    difference that images of the kind have.

    Args:
        weight: times the nats; what a nat is worth in the objective that it joins.
        difference: of neighbours in the mean, in [0, 1].
    """

    weight: float = 1.0
    difference: float = _DIFFERENCE

    def __call__(self, inputs_norm: Tensor, spec: DataSpec) -> Tensor:
        """Return weight * sum of |x - neighbour| / difference; equal channels count once."""
        pixels = spec.denormalise(inputs_norm)
        pixels = pixels[:, :1] if spec.greyscale else pixels
        total = torch.stack([_variation(pixels, axis) for axis in range(2, pixels.ndim)]).sum()
        return self.weight / self.difference * total


def _variation(pixels: Tensor, axis: int) -> Tensor:
    differences = pixels.diff(dim=axis)
    return ((differences.square() + _ROUND**2).sqrt() - _ROUND).sum()


def with_neighbours(parts: Parts, *, weight: float) -> Parts:
    """Return the parts with the prior, of this weight where they have it already."""
    others = [prior for prior in parts.priors if not isinstance(prior, LikeNeighbours)]
    return replace(parts, priors=(*others, LikeNeighbours(weight=weight)))
