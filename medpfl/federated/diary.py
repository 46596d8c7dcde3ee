"""What is kept of a training that goes on for rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from medpfl.federated.evaluate import Utility
from medpfl.types import ServerPayload


@dataclass(frozen=True)
class GlobalModel:
    """The global model after some rounds.

    Args:
        round: how many.
        parameters: `{name: P_i}`.
        buffers: `{name: shape}`.
    """

    round: int
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]


class Diary(Protocol):
    """Told of every round, and asked where a training that was stopped can go on."""

    def begins(self, round_: int, rounds: int) -> None:
        """Take note that a round of training begins."""
        ...

    def ended(self, round_: int, payload: ServerPayload, utility: Utility | None) -> None:
        """Take note of the global model after a round, and of what it achieves."""
        ...

    def latest(self, at_most: int) -> GlobalModel | None:
        """Return the latest global model on record, of no later round than that."""
        ...
