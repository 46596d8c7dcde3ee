"""Entries that are not sent: top-k, pruning, random-k, masking and Soteria's hidden columns.

What is zero in the update was not sent. With error feedback a client adds what it kept back in
earlier rounds, which nobody else knows: it is taken for nothing, as in a client's first round it is.
"""

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
        smallest = [_smallest(t, k) for t, k in zip(observed, kept, strict=True)]
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
    return seen_through(parts, LargestSent(each=getattr(facts, "per", "") == "layer")), search


def through_pruning(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Match what pruning left, and hold the rest below the smallest of each tensor."""
    return seen_through(parts, LargestSent(each=True)), search


def through_random_choice(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Match what random-k or masking left alone, and nothing else."""
    return seen_through(parts, SomeSent()), search


def _smallest(tensor: Tensor, kept: Tensor) -> Tensor:
    """Return the smallest magnitude that was sent; infinity where nothing was."""
    if not tensor.numel():
        return tensor.new_tensor(math.inf)
    return tensor.abs().where(kept, math.inf).amin()
