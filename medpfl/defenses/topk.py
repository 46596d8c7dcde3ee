"""Top-k: the largest entries alone are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from medpfl.defenses.compression import Compression
from medpfl.defenses.selection import Per, keep, largest, share_of
from medpfl.defenses.sparse import Fraction, SparseFacts, check_per
from medpfl.defenses.wire import Coding
from medpfl.settings.hints import checked


@checked("defense.topk")
@dataclass(frozen=True, kw_only=True)
class TopK(Compression):
    """Send the entries of largest magnitude, each with its place (Stich et al. 2018).

    Args:
        fraction: share of the entries that is sent, in (0, 1); at least one is.
        per: ``update`` takes the largest of all; ``layer`` the largest of each tensor, as in Lin
            et al. 2018 (deep gradient compression).
        error_feedback: see `Compression`.
    """

    name: ClassVar[str] = "topk"

    fraction: Fraction
    per: Per = "update"
    error_feedback: bool = True

    def __post_init__(self) -> None:
        check_per("defense.topk.per", self.per)

    def describe(self) -> str | None:
        """See `Part.describe`."""
        of = "all entries" if self.per == "update" else "each tensor's entries"
        return f"the largest {100 * self.fraction:g} % of {of}{self._feedback_in_words()}"

    def facts(self) -> SparseFacts:
        """See `Public.facts`."""
        return SparseFacts.of(self)

    def compress(
        self, tensors: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Coding]:
        """See `Compression.compress`; nothing is drawn."""
        kept, count = keep(tensors, partial(_largest, fraction=self.fraction), self.per)
        return kept, Coding.sparse(count)


def _largest(values: Tensor, *, fraction: float) -> Tensor:
    return largest(values, share_of(len(values), fraction))
