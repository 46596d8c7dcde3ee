"""What compressed updates have in common: what is not sent may be kept for the next round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from medpfl.defenses.base import DefenseReport, State
from medpfl.defenses.norms import norm_of
from medpfl.defenses.wire import Coding
from medpfl.types import ClientUpdate


@dataclass(frozen=True, kw_only=True)
class Compression(ABC):
    """Send an update in fewer bytes; a subclass says how.

    With error feedback a client adds to every update what its earlier ones have left unsent
    (Seide et al. 2014; Stich et al. 2018, Alg. 1), so that all it has sent and what it keeps make
    up the sum of its updates. To whoever attacks one update, what is kept of earlier rounds is
    noise from the same client's images.

    Args:
        error_feedback: whether what is not sent is kept for the next round.
    """

    name: ClassVar[str]

    error_feedback: bool

    @abstractmethod
    def compress(
        self, tensors: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Coding]:
        """Return what is sent of an update, decoded again, and how it is coded.

        Args:
            tensors: `{name: P_i}`; not changed.
            generator: for random choices.
        """

    def on_update(
        self, update: ClientUpdate, state: State, generator: torch.Generator
    ) -> tuple[ClientUpdate, State, DefenseReport]:
        """See `StatefulDefense.on_update`."""
        wanted = {n: t + state[n] if n in state else t for n, t in update.tensors.items()}
        sent, coding = self.compress(wanted, generator)
        defended = replace(update, tensors=sent)
        if not self.error_feedback:
            return defended, {}, DefenseReport(coding=coding)
        left = {name: tensor - sent[name] for name, tensor in wanted.items()}
        return defended, left, DefenseReport(coding=coding, residual_norm=norm_of(left))

    def _feedback_in_words(self) -> str:
        return ", the others kept for later rounds" if self.error_feedback else ""
