"""What is kept of a training that goes on for rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from medpfl.defenses import ClientState
from medpfl.federated.evaluate import Utility
from medpfl.types import ServerPayload


@dataclass(frozen=True)
class GlobalModel:
    """The global model after some rounds.

    Args:
        round: how many.
        parameters: `{name: P_i}`.
        buffers: `{name: shape}`.
        states: what the defenses of each client keep by then, by its number.
    """

    round: int
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    states: Mapping[int, ClientState] = field(default_factory=dict)


class Diary(Protocol):
    """Told of every round, and asked where a training that was stopped can go on."""

    def begins(self, round_: int, rounds: int) -> None:
        """Take note that a round of training begins."""
        ...

    def ended(
        self,
        round_: int,
        payload: ServerPayload,
        utility: Utility | None,
        states: Mapping[int, ClientState],
    ) -> None:
        """Take note of the global model after a round, what it achieves, and what clients keep."""
        ...

    def latest(self, at_most: int) -> GlobalModel | None:
        """Return the latest global model on record, of no later round than that."""
        ...
