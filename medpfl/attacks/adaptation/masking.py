"""Masking: hidden entries are zero and show, or are random numbers and do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.attacks.adaptation.factors import Factors
from medpfl.attacks.adaptation.posterior import most_likely
from medpfl.attacks.adaptation.sparse import through_zeros
from medpfl.attacks.adaptation.through import measured_by
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.problem import Problem
from medpfl.types import DefenseFacts

# Of a tensor's root mean square: entries that differ by more are taken for hidden.
_WIDTH = 0.2


@dataclass(frozen=True, kw_only=True)
class RobustError:
    """Sum of log(1 + (difference / width)^2): what is far away weighs next to nothing (Cauchy).

    The entries that were left alone agree exactly, and agree with no other image.

    Args:
        width: relative to the root mean square of the tensor that was sent.
    """

    width: float = _WIDTH

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the sum over all entries."""
        pairs = [(d, o) for d, o in zip(dummy, observed, strict=True) if d.numel()]
        return torch.stack([self._one(d, o) for d, o in pairs]).sum()

    def _one(self, dummy: Tensor, sent: Tensor) -> Tensor:
        size = sent.square().mean().sqrt() * self.width
        possible = size > 0
        apart = (dummy - sent) / torch.where(possible, size, 1) * possible
        return torch.log1p(apart.square()).sum()


def through_masking(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Match what was left alone; where that does not show, most of the update."""
    if getattr(facts, "fill", "zero") == "zero":
        return through_zeros(facts, parts, search, problem)
    # A factor of least squares would be that of the noise, too.
    distance = measured_by(parts, RobustError(), Factors()).distance
    return most_likely(distance, parts, search, problem)
