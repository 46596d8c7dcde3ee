"""What an update leaves of each entry of the gradient behind it: an interval, often a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranges:
    """Between which numbers each entry of a gradient was before a defense, tensor by tensor.

    Args:
        lower: the least that it may have been; minus infinity where nothing is known.
        upper: the most.
        telling: True where the entry that was sent stands for the one before, give or take its
            interval; where it does not, an entry that was sent as zero may be of any size.
    """

    lower: list[Tensor]
    upper: list[Tensor]
    telling: list[Tensor]

    @classmethod
    def at(cls, observed: Sequence[Tensor]) -> Ranges:
        """Return the points that were sent."""
        points = list(observed)
        return cls(points, points, [torch.ones_like(t, dtype=torch.bool) for t in points])

    def restricted(self, kept: Sequence[Tensor], at_most: Sequence[Tensor]) -> Ranges:
        """Return the ranges before entries were set to zero.

        Args:
            kept: True where an entry was left as it was.
            at_most: the largest magnitude that the others can have had, a number a tensor.
        """
        triples = list(zip(kept, at_most, range(len(kept)), strict=True))
        return Ranges(
            [self.lower[i].where(k, -most) for k, most, i in triples],
            [self.upper[i].where(k, most) for k, most, i in triples],
            [self.telling[i] & k for k, _, i in triples],
        )

    def nearest(self, dummy: Sequence[Tensor]) -> list[Tensor]:
        """Return the entries of the ranges that are nearest to those of a dummy."""
        triples = zip(dummy, self.lower, self.upper, strict=True)
        return [d.minimum(u).maximum(low) for d, low, u in triples]


class View(Protocol):
    """What is known of the input of one part of a defense, given what is known of its output."""

    def before(self, ranges: Ranges, observed: Sequence[Tensor]) -> Ranges:
        """Return the ranges of the part's input.

        A function of a single row's tensors, under ``vmap``: no branch may look at their values.

        Args:
            ranges: of the part's output.
            observed: the update as it was sent, after all parts.
        """
        ...
