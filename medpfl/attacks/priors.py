"""What natural images are like: terms that are added to a row's objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medpfl.errors import ConfigurationError


class Prior(Protocol):
    """A penalty on the dummy images of a single row."""

    def __call__(self, inputs_norm: Tensor) -> Tensor:
        """Return a scalar tensor, its weight included, for images `(N, C, *S)`.

        The images are in the client's input space.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TotalVariation:
    """Weight times the anisotropic total variation (Geiping et al. 2020, Eq. 4, and their code).

    TV(x) = sum over spatial axes a of mean |x[.., i + 1, ..] - x[.., i, ..]|, the mean over all
    pairs of neighbours along a, of all images and channels.

    Args:
        weight: not negative.
    """

    weight: float

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ConfigurationError(
                f"attack.priors.total_variation.weight={self.weight}: must not be negative"
            )

    def __call__(self, inputs_norm: Tensor) -> Tensor:
        """Return weight * TV(inputs_norm); 0 where every image is flat."""
        axes = range(2, inputs_norm.ndim)
        return self.weight * torch.stack([_variation(inputs_norm, axis) for axis in axes]).sum()


def _variation(images: Tensor, axis: int) -> Tensor:
    pairs = images.shape[axis] - 1
    return (images.narrow(axis, 1, pairs) - images.narrow(axis, 0, pairs)).abs().mean()
