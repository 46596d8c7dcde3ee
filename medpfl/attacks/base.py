"""What every attack is: a function of observations, with its needs stated beforehand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import nn

from medpfl.optim.scheduler import Tick
from medpfl.profiling import UNPROFILED, Profiler
from medpfl.training import LocalTraining
from medpfl.types import DataSpec, Observation, Reconstruction


@dataclass(frozen=True)
class Work:
    """How far an attack has come with its rows.

    Args:
        tick: the rows under way.
        stage: which of the attack's passes they are in, from 1.
        stages: passes there are.
        rows_a_victim: rows that every victim with a gradient is known to need.
    """

    tick: Tick
    stage: int = 1
    stages: int = 1
    rows_a_victim: int = 1


Progress = Callable[[Work], None]


@dataclass(frozen=True, kw_only=True)
class AttackContext:
    """Where and how an attack runs; nothing here depends on the victims.

    Args:
        seed: the run's seed; each victim's random streams follow from it and the victim's id.
        device: where the attacker computes.
        progress: called after every tick with how far the attack has come.
        profiler: told what is being worked on.
    """

    seed: int
    device: torch.device
    progress: Progress | None = None
    profiler: Profiler = UNPROFILED


class Attack(Protocol):
    """Turns observations into reconstructions."""

    @property
    def name(self) -> str:
        """The name in the field's literature."""
        ...

    @property
    def requires(self) -> frozenset[str]:
        """Capabilities that the threat model must grant."""
        ...

    def check(self, model: nn.Module, batch_size: int) -> None:
        """Raise a `ConfigurationError` where the attack cannot work, before any compute."""
        ...

    def reconstruct(
        self, observations: Iterable[Observation], context: AttackContext
    ) -> Iterator[Reconstruction]:
        """Yield one reconstruction an observation, as they finish, in any order."""
        ...


@runtime_checkable
class Particular(Protocol):
    """An attack that does not go with every kind of data, and says so beforehand."""

    def check_data(self, spec: DataSpec, batch_size: int, device: torch.device) -> None:
        """Raise a `ConfigurationError` where it cannot work on such data, or not in memory."""
        ...


@runtime_checkable
class Selective(Protocol):
    """An attack that does not go with every kind of update, and says so beforehand."""

    def check_update(
        self,
        model: nn.Module,
        training: LocalTraining | None,
        kind: Literal["gradient", "delta"],
        parameters: Collection[str],
        *,
        summed: bool = False,
    ) -> None:
        """Raise a `ConfigurationError` where it cannot work on such updates.

        Args:
            model: the network.
            training: what is known of the client's local training; None where nothing is.
            kind: of the updates.
            parameters: names of those whose updates are captured.
            summed: whether they are means over several clients.
        """
        ...


@runtime_checkable
class Joining(Protocol):
    """An attack that matches all updates of the same images together, where it knows of them."""

    def check_rounds(self, training: LocalTraining | None, batch_size: int) -> None:
        """Raise a `ConfigurationError` where it cannot.

        Args:
            training: what is known of the client's local training; None where nothing is.
            batch_size: images behind an update.
        """
        ...
