"""Quantised entries: each was no further from its level than rounding carries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.attacks.adaptation.ranges import Ranges
from medpfl.attacks.adaptation.through import seen_through
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.problem import Problem
from medpfl.types import DefenseFacts

# Tensors up to this size may lack their lowest level: all gaps are looked at.
_FEW = 512
# What float32 makes of equal levels is no gap.
_NO_GAP = 1e-6


@dataclass(frozen=True)
class Rounded:
    """Entries were rounded to levels, of each tensor by itself.

    Args:
        levels: of magnitude, zero not counted.
        stochastic: whether to either neighbour (QSGD), and not to the nearest.
    """

    levels: int
    stochastic: bool

    def before(self, ranges: Ranges, observed: Sequence[Tensor]) -> Ranges:
        """See `View.before`."""
        widths = [self.width(tensor) for tensor in observed]
        return Ranges(
            [low - w for low, w in zip(ranges.lower, widths, strict=True)],
            [high + w for high, w in zip(ranges.upper, widths, strict=True)],
            ranges.telling,
        )

    def width(self, sent: Tensor) -> Tensor:
        """Return how far rounding can have carried an entry of a tensor, a number."""
        if not sent.numel():
            return sent.new_zeros(())
        sizes = sent.abs()
        largest = sizes.amax()
        if not self.stochastic:
            return largest / self.levels / 2
        step = _smallest_gap(sizes, largest)
        return torch.where(step.isfinite(), step, 0)


def _smallest_gap(sizes: Tensor, largest: Tensor) -> Tensor:
    """Return the distance of the two nearest levels that occur; infinity where all is zero."""
    if sizes.numel() > _FEW:
        return sizes.where(sizes > 0, math.inf).amin()
    levels = torch.cat([sizes.new_zeros(1), sizes.flatten()]).sort().values
    gaps = levels.diff()
    return gaps.where(gaps > _NO_GAP * largest, math.inf).amin()


def through_quantise(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Match levels up to what rounding does."""
    view = Rounded(
        levels=int(getattr(facts, "levels", 1)), stochastic=bool(getattr(facts, "stochastic", True))
    )
    return seen_through(parts, view), search
