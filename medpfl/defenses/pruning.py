"""Pruning: the smallest entries of each tensor are not sent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from medpfl.defenses.base import DefenseReport
from medpfl.defenses.selection import keep, largest, share_of
from medpfl.defenses.wire import Coding
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import ClientUpdate, DefenseFacts


@dataclass(frozen=True, kw_only=True)
class PruningFacts(DefenseFacts):
    """What an attacker may know of `Pruning`; see there."""

    fraction: float


@checked("defense.pruning")
@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Set the smallest entries of each tensor to zero (Zhu et al. 2019, Section 5.2).

    What is pruned is lost. To keep it for later rounds, choose ``topk`` with ``per=layer``.

    Args:
        fraction: share of each tensor's entries that becomes zero, in (0, 1); one entry stays.
    """

    name: ClassVar[str] = "pruning"

    fraction: Annotated[float, Range(0, 1, "()"), "to send all of it, choose defense=none"]

    def describe(self) -> str | None:
        """See `Part.describe`."""
        return f"the smallest {100 * self.fraction:g} % of each tensor's entries become zero"

    def facts(self) -> PruningFacts:
        """See `Public.facts`."""
        return PruningFacts(name=self.name, fraction=self.fraction)

    def on_update(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, DefenseReport]:
        """Return the pruned update; nothing is drawn."""
        chosen = partial(_largest, fraction=1 - self.fraction)
        kept, count = keep(update.tensors, chosen, "layer")
        return replace(update, tensors=kept), DefenseReport(coding=Coding.sparse(count))


def _largest(values: Tensor, *, fraction: float) -> Tensor:
    return largest(values, share_of(len(values), fraction))
