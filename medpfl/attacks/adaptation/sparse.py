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

from medpfl.attacks.adaptation.posterior import most_likely
from medpfl.attacks.adaptation.ranges import Ranges, View
from medpfl.attacks.adaptation.through import measured_by, seen_through
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.likelihood import NoiseLikelihood
from medpfl.attacks.problem import Problem
from medpfl.types import DefenseFacts

# Entries sent for each unknown, below which an image is left open: many say the same. Measured on
# dlg_cnn with 1,024 pixels: of 1,482 entries the largest determine 75 % of these, random ones all;
# of 2,965 both do.
_ENOUGH = 2.0
# How far an entry that was sent may be missed, in root mean squares of the update: above what
# float32 rounds, since a stiffer law is not reached in the steps that searches have. Measured on
# four images of a test split, top-k 10 %, 400 steps: mean SSIM 0.84 at 1e-2, 0.88 at 1e-3.
_MISMATCH = 1e-3


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
    """Return an attack through a view; one short of equations finds the most likely image.

    Entries that were sent are exact but for `_MISMATCH`. Where public images are granted, they are
    made use of however many entries there are.

    Args:
        view: of what was sent.
        share: of the entries.
        parts: of the attack so far.
        search: of the same.
        problem: says how many entries there are, and how many unknowns.
    """
    parts = seen_through(parts, view)
    entries = sum(problem.payload.parameters[name].numel() for name in problem.names)
    many = share * entries >= _ENOUGH * problem.unknowns.count
    if parts.likely is not None or (many and problem.auxiliary is None):
        return parts, search
    exact = NoiseLikelihood(law="gaussian", scale=_MISMATCH, relative_to="norm")
    return most_likely(measured_by(parts, exact).distance, parts, search, problem)


def _share_of(facts: DefenseFacts) -> float:
    return float(getattr(facts, "fraction", 1.0))


def _smallest(sizes: Tensor, kept: Tensor) -> Tensor:
    """Return the smallest magnitude that can have been sent; infinity where nothing was."""
    if not sizes.numel():
        return sizes.new_tensor(math.inf)
    return sizes.where(kept, math.inf).amin()
