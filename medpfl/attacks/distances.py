"""How far the gradient of a dummy is from the observed one, for a single row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Distance(Protocol):
    """A distance between two gradients, given tensor by tensor in the same order."""

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return a scalar tensor, 0 where the gradients agree."""
        ...


@dataclass(frozen=True, kw_only=True)
class SquaredError:
    """Sum of squared differences over all entries (Zhu et al. 2019, Eq. 4)."""

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return sum_i |dummy_i - observed_i|^2."""
        return torch.stack(
            [(a - b).square().sum() for a, b in zip(dummy, observed, strict=True)]
        ).sum()


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """One minus the cosine of the angle between whole gradients (Geiping et al. 2020, Eq. 4)."""

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return 1 - <dummy, observed> / (|dummy| |observed|), in [0, 2]."""
        pairs = list(zip(dummy, observed, strict=True))
        dot = torch.stack([(a * b).sum() for a, b in pairs]).sum()
        norms = [
            torch.stack([t.square().sum() for t in side]).sum().sqrt() for side in (dummy, observed)
        ]
        return 1 - dot / (norms[0] * norms[1])
