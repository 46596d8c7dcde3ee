"""What comes out of secure aggregation: the server's view, and beside it what it does not see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from medpfl.defenses.secure_aggregation.cost import Cost
from medpfl.defenses.secure_aggregation.masks import Ring


@dataclass(frozen=True, kw_only=True)
class ServerView:
    """All that a server which keeps to the protocol learns of the updates.

    Args:
        masked: `{survivor: (D + 1,)}` ring elements as they were sent, the update and then the
            number of examples; empty where they were not kept.
        sum: `{name: P_i}` float64: the sum over survivors of examples times update, each entry a
            multiple of `step`.
        num_examples: of all survivors; of no client alone.
        survivors: numbers of the clients in the sum.
        dropped: numbers of those who are not.
        step: the quantisation step, in the update's unit.
    """

    masked: Mapping[int, Ring] = field(repr=False)
    sum: Mapping[str, Tensor] = field(repr=False)
    num_examples: int
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]
    step: float

    def mean(self) -> dict[str, Tensor]:
        """Return the weighted mean, `{name: P_i}` float64, within half a step of the exact one."""
        return {name: total / self.num_examples for name, total in self.sum.items()}


@dataclass(frozen=True, kw_only=True)
class Aggregated:
    """One secure aggregation.

    Args:
        view: what the server has.
        cost: bytes and seconds.
        clipped: `{survivor: entries beyond the clipping range}`, which were sent as its ends; for
            the record, no server knows it.
    """

    view: ServerView
    cost: Cost
    clipped: Mapping[int, int]
