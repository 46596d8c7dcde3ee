"""Secure aggregation as a defense: its settings, and from updates to what the server sees."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from medpfl.defenses.secure_aggregation import protocol
from medpfl.defenses.secure_aggregation.aggregated import Aggregated, ServerView
from medpfl.defenses.secure_aggregation.cost import Ledger
from medpfl.defenses.secure_aggregation.fixed_point import FixedPoint, signed
from medpfl.defenses.secure_aggregation.layout import Layout
from medpfl.defenses.secure_aggregation.masks import SEED_BYTES, Ring
from medpfl.errors import ConfigurationError, MedpflError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import DefenseFacts

_FLOAT32_BYTES = 4
# 0.7 * 10 is a little above 7 for a computer, and seven of ten clients are enough.
_ROUNDING = 1e-9


class Updates(Protocol):
    """Each client's update by its number; asked for once, in turn, and of those who send alone."""

    def __getitem__(self, number: int, /) -> Mapping[str, Tensor]:
        """Return `{name: P_i}`, finite; of every client the same names and shapes."""
        ...


@dataclass(frozen=True, kw_only=True)
class SecureAggregationFacts(DefenseFacts):
    """What an attacker may know of `SecureAggregation`; see there."""

    clip_range: float
    value_bits: int
    threshold: float
    dropouts: float


@checked("defense.secure_aggregation")
@dataclass(frozen=True, kw_only=True)
class SecureAggregation:
    """The server gets masked updates, uniform over a ring each, and their exact weighted sum.

    A simulation of the protocol, not audited cryptography: it shows what the server sees and what
    that costs. It hides who sent what and nothing of the sum; two clients know each other's updates
    from it, and a threshold's worth of clients who hand the server their shares uncover the others.

    Args:
        threshold: the share of clients who must stay to the end, above a half: below, a server that
            tells halves of the clients different stories gets both secrets of one client.
        clip_range: the largest size of an entry, in the update's unit; beyond it, it is cut.
        value_bits: bits of one entry, its sign included: the quantisation step is
            clip_range / (2^(value_bits - 1) - 1).
        bits: of the ring, 32 or 64: what an entry takes on the wire. It must hold the sum of all
            examples times 2^(value_bits - 1) - 1, and a sign.
        dropouts: the share of a round's clients, to the nearest whole number, who leave after they
            have shared their keys, so that others have masked for them, and send no update.

    Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning".
    """

    name: ClassVar[str] = "secure_aggregation"

    threshold: Annotated[float, Range(0.5, 1.0, "(]")] = 2 / 3
    clip_range: Annotated[float, Range(1e-12, 1e12)] = 16.0
    value_bits: Annotated[int, Range(2, 44)] = 40
    bits: Literal[32, 64] = 64
    dropouts: Annotated[float, Range(0.0, 1.0, "[)")] = 0.0

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise ConfigurationError(
                f"defense.secure_aggregation.bits={self.bits}: must be 32 or 64, the bits of a "
                "ring element"
            )

    @property
    def fixed_point(self) -> FixedPoint:
        """How entries become ring elements."""
        return FixedPoint(clip_range=self.clip_range, value_bits=self.value_bits, bits=self.bits)

    def quorum(self, clients: int) -> int:
        """Return how many of so many clients must stay: more than half, at least 2."""
        return max(2, clients // 2 + 1, math.ceil(self.threshold * clients - _ROUNDING))

    def describe(self) -> str | None:
        """See `Part.describe`."""
        gone = f", {100 * self.dropouts:g} % of the clients drop out" if self.dropouts else ""
        step, largest = self.fixed_point.step, self.clip_range
        return (
            f"the server sees the sum over a round's clients, in steps of {step:.2g} within "
            f"[-{largest:g}, {largest:g}]{gone}"
        )

    def facts(self) -> SecureAggregationFacts:
        """See `Public.facts`."""
        return SecureAggregationFacts(
            name=self.name,
            clip_range=self.clip_range,
            value_bits=self.value_bits,
            threshold=self.threshold,
            dropouts=self.dropouts,
        )

    def leaving(self, clients: int) -> int:
        """Return how many of a round's clients drop out."""
        return math.floor(self.dropouts * clients + 0.5 - _ROUNDING)

    def check_clients(self, weights: Sequence[int]) -> None:
        """Refuse a federation whose sum cannot be made; for before the training.

        Args:
            weights: examples of each client that may take part.

        Raises:
            ConfigurationError: one client alone, whose sum is its update; a client without
                examples; fewer clients than the threshold stay; or a weighted sum that could leave
                the ring.
        """
        if len(weights) < 2:
            raise ConfigurationError(
                f"defense=secure_aggregation with {len(weights)} client(s) in a round: the sum "
                "over one client is its update; set federation.clients to 2 or more, and so "
                "federation.clients_per_round where it is set"
            )
        empty = [number for number, weight in enumerate(weights) if weight < 1]
        if empty:
            raise ConfigurationError(
                f"defense=secure_aggregation: clients {empty} have no examples: leave them out"
            )
        left, needed = len(weights) - self.leaving(len(weights)), self.quorum(len(weights))
        if left < needed:
            raise ConfigurationError(
                f"defense.secure_aggregation.dropouts={self.dropouts:g}: of {len(weights)} clients "
                f"{left} stay, and defense.secure_aggregation.threshold={self.threshold:.3g} needs "
                f"{needed}: no round would have a sum. Lower the dropouts or the threshold (above "
                "0.5), or set federation.clients higher"
            )
        self.fixed_point.check(weights)

    def aggregate(
        self,
        updates: Updates,
        weights: Sequence[int],
        *,
        generator: torch.Generator,
        dropped: Collection[int] = (),
        silent: Collection[int] = (),
        keep_masked: bool = True,
    ) -> Aggregated:
        """Run the protocol once.

        Args:
            updates: of each client; such as a list of them.
            weights: examples of each client, at least 1; the server learns their sum alone.
            generator: where the clients' secrets come from; one of its own every round, or the same
                one going on, so that no two rounds have the same masks.
            dropped: numbers of clients who leave after sharing keys, before they send an update.
            silent: numbers of clients who send it and leave before unmasking; they are in the sum.
            keep_masked: whether the view keeps the masked updates.

        Raises:
            ConfigurationError: one client alone, one without examples, or a sum that could leave
                the ring.
            MedpflError: fewer clients than the threshold are left, or an update is not finite.
            ValueError: tensors differ in names or shapes, or there are no such clients.
        """
        self._check_numbers(weights, {*dropped, *silent})
        layouts = list[Layout]()
        code, clipped, ledger = self.fixed_point, dict[int, int](), Ledger()

        def encode(number: int) -> Ring:
            update = updates[number]
            with ledger.timing("masked_input", "client"):
                layouts[:] = layouts or [Layout.of(update)]
                values = layouts[0].flatten(update)
                _check_finite(layouts[0], values, number)
                encoded, clipped[number] = code.encode(values, weights[number])
                return np.append(encoded, encoded.dtype.type(weights[number]))

        outcome = protocol.run(
            _seeds(len(weights), generator),
            encode,
            self.quorum(len(weights)),
            ledger,
            dropped=dropped,
            silent=silent,
            keep_masked=keep_masked,
        )
        (layout,) = layouts
        view = ServerView(
            masked=outcome.masked,
            sum=layout.unflatten(code.decode(outcome.total[:-1])),
            num_examples=int(signed(outcome.total[-1:])[0]),
            survivors=outcome.survivors,
            dropped=outcome.dropped,
            step=code.step,
        )
        plain_bytes = _FLOAT32_BYTES * (layout.length + 1)
        return Aggregated(view=view, cost=ledger.cost(plain_bytes), clipped=clipped)

    def _check_numbers(self, weights: Sequence[int], leaving: Collection[int]) -> None:
        unknown = sorted(set(leaving) - set(range(len(weights))))
        if unknown:
            raise ValueError(f"there are no clients {unknown} among {len(weights)}")
        self.check_clients(weights)


def _seeds(count: int, generator: torch.Generator) -> list[bytes]:
    """Return 32 random bytes a client."""
    shape = (count, SEED_BYTES)
    drawn = torch.randint(
        256, shape, dtype=torch.uint8, generator=generator, device=generator.device
    )
    return [bytes(row) for row in drawn.tolist()]


def _check_finite(layout: Layout, values: Tensor, number: int) -> None:
    if torch.isfinite(values).all():
        return
    broken = [
        name for name, part in layout.unflatten(values).items() if not torch.isfinite(part).all()
    ]
    raise MedpflError(
        f"client {number}'s update is not finite in {', '.join(broken)}, and no ring element "
        "stands for that: lower the learning rate, or leave the client out"
    )
