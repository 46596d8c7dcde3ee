"""Entries that are not sent: top-k, pruning, random-k, masking and Soteria's hidden columns.

What is zero in the update was not sent. With error feedback a client adds what it kept back in
earlier rounds, which nobody else knows: it is taken for nothing, which it is in its first round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.attacks.adaptation.ending import without_threshold
from medpfl.attacks.adaptation.factors import Factors
from medpfl.attacks.adaptation.ranges import Ranges, View
from medpfl.attacks.adaptation.smoothness import with_neighbours
from medpfl.attacks.adaptation.through import measured_by, seen_through, through_of
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.distances import Cosine, NormalisedError, SquaredError
from medpfl.attacks.problem import Problem
from medpfl.types import DefenseFacts

# Entries sent for each unknown, below which an image is left open: many say the same.
_ENOUGH = 2.0
# Relative to what was sent: how far an image may miss it for the sake of its smoothness.
_MISMATCH = 1e-5


@dataclass(frozen=True)
class LargestSent:
    """The largest magnitudes were sent: what was not is no larger than the smallest of them.

    Args:
        each: whether the largest of every tensor, and not of the whole update.
    """

    each: bool

    def before(self, ranges: Ranges, observed: Sequence[Tensor]) -> Ranges:
        """See `View.before`."""
        kept = [tensor != 0 for tensor in observed]
        triples = zip(ranges.lower, ranges.upper, kept, strict=True)
        smallest = [_smallest(low.abs().maximum(high.abs()), k) for low, high, k in triples]
        if not self.each:
            smallest = [torch.stack(smallest).amin()] * len(smallest)
        return ranges.restricted(kept, smallest)


@dataclass(frozen=True)
class SomeSent:
    """Entries were sent whatever their size: of the others nothing is known."""

    def before(self, ranges: Ranges, observed: Sequence[Tensor]) -> Ranges:
        """See `View.before`."""
        kept = [tensor != 0 for tensor in observed]
        return ranges.restricted(kept, [t.new_tensor(math.inf) for t in observed])


def through_topk(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Match what top-k sent, and hold the rest below the smallest magnitude that it sent."""
    view = LargestSent(each=getattr(facts, "per", "update") == "layer")
    return _matched(view, _share_of(facts), parts, search, problem)


def through_pruning(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Match what pruning left, and hold the rest below the smallest of each tensor."""
    return _matched(LargestSent(each=True), 1 - _share_of(facts), parts, search, problem)


def through_randomk(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Match what random-k sent, as it is: it is not scaled up."""
    return _matched(SomeSent(), _share_of(facts), parts, search, problem)


def through_zeros(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Match what masking with zeros left alone."""
    return _matched(SomeSent(), 1 - _share_of(facts), parts, search, problem)


def _matched(
    view: View, share: float, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Return an attack through a view; one short of equations finds the smoothest image.

    Args:
        view: of what was sent.
        share: of the entries.
        parts: of the attack so far.
        search: of the same.
        problem: says how many entries there are, and how many unknowns.
    """
    parts = seen_through(parts, view)
    entries = sum(problem.payload.parameters[name].numel() for name in problem.names)
    if share * entries >= _ENOUGH * problem.unknowns.count:
        return parts, search
    if isinstance(through_of(parts.distance).inner, SquaredError | NormalisedError):
        # The prior's weight is for a distance without a unit.
        parts = measured_by(parts, Cosine(), Factors(free=True))
    without_unit = isinstance(through_of(parts.distance).inner, Cosine)
    parts = with_neighbours(parts, weight=_MISMATCH**2 if without_unit else 1.0)
    return parts, without_threshold(search)


def _share_of(facts: DefenseFacts) -> float:
    return float(getattr(facts, "fraction", 1.0))


def _smallest(sizes: Tensor, kept: Tensor) -> Tensor:
    """Return the smallest magnitude that can have been sent; infinity where nothing was."""
    if not sizes.numel():
        return sizes.new_tensor(math.inf)
    return sizes.where(kept, math.inf).amin()
