"""What secure aggregation costs: bytes and seconds, by round of the protocol."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Phase = Literal["advertise_keys", "share_keys", "masked_input", "unmasking"]
Side = Literal["client", "server"]
PHASES: tuple[Phase, ...] = ("advertise_keys", "share_keys", "masked_input", "unmasking")
"""The protocol's rounds, in order."""


@dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """What one round of the protocol cost.

    Args:
        phase: which one.
        sent: `{client: bytes it sent}`.
        received: `{client: bytes it received}`.
        client_seconds: of all clients together, one after another in this process.
        server_seconds: of the server.
    """

    phase: Phase
    sent: Mapping[int, int]
    received: Mapping[int, int]
    client_seconds: float
    server_seconds: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the protocol cost, round by round.

    The next model, which the server would send without secure aggregation too, is not in it.

    Args:
        phases: in the protocol's order.
        plain_bytes: what a client would send without secure aggregation: its update in float32,
            and its number of examples in 4 bytes.
    """

    phases: tuple[PhaseCost, ...]
    plain_bytes: int

    @property
    def bytes_up(self) -> Mapping[int, int]:
        """`{client: bytes it sent}` in all."""
        return sum((Counter(one.sent) for one in self.phases), Counter())

    @property
    def bytes_down(self) -> Mapping[int, int]:
        """`{client: bytes it received}` in all."""
        return sum((Counter(one.received) for one in self.phases), Counter())

    @property
    def seconds(self) -> float:
        """Of all clients and the server, one after another."""
        return sum(one.client_seconds + one.server_seconds for one in self.phases)


class Ledger:
    """Counts while the protocol runs."""

    def __init__(self) -> None:
        self._sent: dict[Phase, Counter[int]] = {phase: Counter() for phase in PHASES}
        self._received: dict[Phase, Counter[int]] = {phase: Counter() for phase in PHASES}
        self._seconds: Counter[tuple[Phase, Side]] = Counter()

    def sends(self, phase: Phase, client: int, size: int) -> None:
        """Count bytes from a client to the server."""
        self._sent[phase][client] += size

    def receives(self, phase: Phase, client: int, size: int) -> None:
        """Count bytes from the server to a client."""
        self._received[phase][client] += size

    @contextmanager
    def timing(self, phase: Phase, side: Side) -> Iterator[None]:
        """Count the seconds spent within."""
        start = time.perf_counter()
        yield
        self._seconds[phase, side] += time.perf_counter() - start  # type: ignore[assignment]

    def cost(self, plain_bytes: int) -> Cost:
        """Return what was counted."""
        return Cost(
            phases=tuple(
                PhaseCost(
                    phase=phase,
                    sent=dict(self._sent[phase]),
                    received=dict(self._received[phase]),
                    client_seconds=self._seconds[phase, "client"],
                    server_seconds=self._seconds[phase, "server"],
                )
                for phase in PHASES
            ),
            plain_bytes=plain_bytes,
        )
