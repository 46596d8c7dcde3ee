"""Quantised entries: each was no further from its level than rounding carries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.attacks.adaptation.ending import without_threshold
from medpfl.attacks.adaptation.factors import Factors
from medpfl.attacks.adaptation.ranges import Ranges
from medpfl.attacks.adaptation.smoothness import with_neighbours
from medpfl.attacks.adaptation.through import seen_through, through_of, with_distance
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.problem import Problem
from medpfl.types import DefenseFacts

# Tensors up to this size may lack their lowest level: all gaps are looked at.
_FEW = 512
# What float32 makes of equal levels is no gap.
_NO_GAP = 1e-6
# Of a step: below, magnitudes are squared, so that an optimiser can come to rest.
_ROUND = 0.05
# Where the likelihood ends and its tangent begins.
_WALL = 0.95
_STEEPER = 4.0


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


@dataclass(frozen=True, kw_only=True)
class RoundingLikelihood:
    """Minus the log-likelihood, in nats, of the levels that were sent.

    An entry g at z steps from the level that was sent goes there with a probability of 1 - |z|
    (QSGD), and beyond that never, where the objective goes on along its tangent. To the nearest
    level it goes surely where |z| < 1/2: a parabola stands for that box, steeper outside, as an
    optimiser needs a slope to follow.

    Args:
        rounded: the levels.
        factors: of the dummy's tensors, where sizes are unknown.
    """

    rounded: Rounded
    factors: Factors

    @property
    def scale_free(self) -> bool:
        """See `ScaleFree`."""
        return self.factors.free

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the nats of all tensors."""
        scaled = self.factors.applied(dummy, observed, Ranges.at(observed))
        pairs = [(d, o) for d, o in zip(scaled, observed, strict=True) if d.numel()]
        return torch.stack([self._nats(d, o) for d, o in pairs]).sum()

    def _nats(self, dummy: Tensor, sent: Tensor) -> Tensor:
        width = self.rounded.width(sent)
        possible = width > 0
        away = (dummy - sent) / torch.where(possible, width, 1) * possible
        law = _stochastic if self.rounded.stochastic else _nearest
        return law(away).sum()


def _stochastic(away: Tensor) -> Tensor:
    """Return -log(1 - |z|), rounded off at 0 and straight beyond `_WALL`."""
    size = (away.square() + _ROUND**2).sqrt() - _ROUND
    inside = size.clamp(max=_WALL)
    return -torch.log1p(-inside) + (size - inside) / (1 - _WALL)


def _nearest(away: Tensor) -> Tensor:
    """Return z^2 / 2 for z in half steps, and steeper where |z| > 1, which cannot be."""
    return away.square() / 2 + _STEEPER * (away.abs() - 1).relu().square()


def through_quantise(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Find the most likely image, given the levels.

    Beside other parts of a defense, levels are matched up to what rounding does.
    """
    view = Rounded(
        levels=int(getattr(facts, "levels", 1)), stochastic=bool(getattr(facts, "stochastic", True))
    )
    if len(problem.defense) > 1:
        return seen_through(parts, view), search
    likelihood = RoundingLikelihood(rounded=view, factors=through_of(parts.distance).factors)
    parts = with_neighbours(with_distance(parts, likelihood), weight=1.0)
    return parts, without_threshold(search)
