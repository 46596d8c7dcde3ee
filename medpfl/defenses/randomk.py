"""Random-k: entries drawn at random are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from medpfl.defenses.compression import Compression
from medpfl.defenses.selection import Per, keep, random_entries, share_of
from medpfl.defenses.sparse import Fraction, SparseFacts, check_per
from medpfl.defenses.wire import Coding
from medpfl.settings.hints import checked


@checked("defense.randomk")
@dataclass(frozen=True, kw_only=True)
class RandomK(Compression):
    """Send random entries, drawn anew in every round, each with its place (Stich et al. 2018).

    They are sent as they are, not scaled up: error feedback makes up for what is missing.

    Args:
        fraction: share of the entries that is sent, in (0, 1); at least one is.
        per: whether they are drawn from the whole ``update`` or so many from each ``layer``.
        error_feedback: see `Compression`.
    """

    name: ClassVar[str] = "randomk"

    fraction: Fraction
    per: Per = "update"
    error_feedback: bool = True

    def __post_init__(self) -> None:
        check_per("defense.randomk.per", self.per)

    def describe(self) -> str | None:
        """See `Part.describe`."""
        of = "all entries" if self.per == "update" else "each tensor's entries"
        return f"a random {100 * self.fraction:g} % of {of}{self._feedback_in_words()}"

    def facts(self) -> SparseFacts:
        """See `Public.facts`."""
        return SparseFacts.of(self)

    def compress(
        self, tensors: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Coding]:
        """See `Compression.compress`."""
        chosen = partial(_random, fraction=self.fraction, generator=generator)
        kept, count = keep(tensors, chosen, self.per)
        return kept, Coding.sparse(count)


def _random(values: Tensor, *, fraction: float, generator: torch.Generator) -> Tensor:
    return random_entries(values, share_of(len(values), fraction), generator)
