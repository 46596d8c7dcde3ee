"""Quantised entries: what is matched is the likelihood of the levels that were sent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from medpfl.attacks.adaptation.posterior import most_likely
from medpfl.attacks.adaptation.through import measured_by
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.problem import Problem
from medpfl.types import DefenseFacts

# Tensors up to this size may lack their lowest level: all gaps are looked at.
_FEW = 512
# Times what the norm tells of their distance: the levels between were not sent, or lost later on.
_TOO_FAR = 1.5
# What float32 makes of equal levels is no gap.
_NO_GAP = 1e-6
# Of a step: below, magnitudes are squared, so that an optimiser can come to rest.
_ROUND = 0.05
# Where the likelihood ends and its tangent begins.
_WALL = 0.95
_STEEPER = 4.0


@dataclass(frozen=True, kw_only=True)
class RoundingLikelihood:
    """Minus the log-likelihood, in nats, of the levels that were sent.

    An entry g at z steps from the level that was sent goes there with a probability of 1 - |z|
    (QSGD), and beyond that never, where the objective goes on along its tangent. To the nearest
    level it goes surely where |z| < 1/2: a parabola stands for that box, steeper outside, as an
    optimiser needs a slope to follow.

    Args:
        levels: of magnitude, zero not counted.
        stochastic: whether entries went to either neighbour, and not to the nearest.
    """

    in_nats: ClassVar[bool] = True

    levels: int
    stochastic: bool

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the nats of all tensors."""
        pairs = [(d, o) for d, o in zip(dummy, observed, strict=True) if d.numel()]
        return torch.stack([self._nats(d, o) for d, o in pairs]).sum()

    def reach(self, sent: Tensor) -> Tensor:
        """Return how far rounding can have carried an entry of a tensor; 0 where all is zero."""
        if not self.stochastic:
            return sent.abs().amax() / self.levels / 2
        gap = _smallest_gap(sent.abs()) if sent.numel() <= _FEW else _smallest_size(sent.abs())
        # The norm that was the last level, as what was sent has it: up to what rounding did to it.
        about = sent.square().sum().sqrt() / self.levels
        return torch.where(gap < _TOO_FAR * about, gap, about)

    def _nats(self, dummy: Tensor, sent: Tensor) -> Tensor:
        reach = self.reach(sent)
        possible = reach > 0
        away = (dummy - sent) / torch.where(possible, reach, 1) * possible
        law = _stochastic if self.stochastic else _nearest
        return law(away).sum()


def _smallest_size(sizes: Tensor) -> Tensor:
    return sizes.where(sizes > 0, math.inf).amin()


def _smallest_gap(sizes: Tensor) -> Tensor:
    """Return the distance of the two nearest levels that occur, zero among them."""
    levels = torch.cat([sizes.new_zeros(1), sizes.flatten()]).sort().values
    gaps = levels.diff()
    return gaps.where(gaps > _NO_GAP * levels[-1], math.inf).amin()


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
    """Find the most likely image, given the levels and what images are like."""
    likelihood = RoundingLikelihood(
        levels=int(getattr(facts, "levels", 1)), stochastic=bool(getattr(facts, "stochastic", True))
    )
    return most_likely(measured_by(parts, likelihood).distance, parts, search, problem)
