"""Keeps a device full of rows: finished rows leave, waiting ones take their place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from medpfl.optim.base import BatchedOptimizer, RowState, status_of
from medpfl.optim.rows import RowTable
from medpfl.types import Status

TargetT = TypeVar("TargetT", bound=RowTable)
TargetContra = TypeVar("TargetContra", bound=RowTable, contravariant=True)
KeyT = TypeVar("KeyT")


class Objective(Protocol[TargetContra]):
    """The objective of many rows: row b's value depends on row b alone."""

    def __call__(self, z: Tensor, targets: TargetContra) -> tuple[Tensor, Tensor]:
        """Return values `(B,)` and gradients `(B, D)` at `(B, D)` points."""
        ...


@dataclass(frozen=True)
class Row(Generic[KeyT, TargetT]):
    """A row waiting for its turn.

    Args:
        key: what the row's outcome is filed under.
        start: `(D,)` where it starts.
        target: what it must match; a table of one row.
        seconds: what finding the start took.
    """

    key: KeyT
    start: Tensor
    target: TargetT
    seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """A point that a row passed: its step, objective and `(D,)` position."""

    step: int
    objective: float
    z: Tensor


@dataclass(frozen=True)
class Outcome(Generic[KeyT]):
    """How a row ended; `z` is its point of lowest objective, on the CPU.

    `objective` is NaN, and `z` the start, where no evaluation was finite.
    """

    key: KeyT
    z: Tensor
    objective: float
    status: Status
    steps: int
    evaluations: int
    seconds: float
    snapshots: tuple[Snapshot, ...] = field(repr=False)


@dataclass
class _Ticket(Generic[KeyT]):
    """What the scheduler remembers of an active row, beside its tensors."""

    key: KeyT
    next_snapshot: int = 0
    seconds: float = 0.0
    snapshots: list[Snapshot] = field(default_factory=list)


Ticked = Callable[[int, int], None]


class Scheduler(Generic[KeyT, TargetT]):
    """Runs a queue of rows through one optimiser, at most `capacity` side by side.

    Args:
        optimizer: moves the rows.
        objective: evaluates them.
        capacity: rows side by side.
        snapshot_growth: a row is looked at when its step has grown by this factor, above 1; None
            never looks. Early steps, where most happens, are seen one by one.
        ticked: called after every tick with the number of active rows and their mean step.

    Notes:
        The queue is read only as places come free, so it may be endless.
    """

    def __init__(
        self,
        *,
        optimizer: BatchedOptimizer[RowState],
        objective: Objective[TargetT],
        capacity: int,
        snapshot_growth: float | None = None,
        ticked: Ticked | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._objective = objective
        self._capacity = capacity
        self._growth = snapshot_growth
        self._ticked = ticked
        self._tickets: list[_Ticket[KeyT]] = []
        self._state: RowState | None = None
        self._targets: TargetT | None = None

    def run(self, queue: Iterator[Row[KeyT, TargetT]]) -> Iterator[Outcome[KeyT]]:
        """Yield the outcome of every row of the queue, in the order in which they end."""
        for outcomes in self.ticks(queue):
            yield from outcomes

    def ticks(self, queue: Iterator[Row[KeyT, TargetT]]) -> Iterator[list[Outcome[KeyT]]]:
        """Yield, tick by tick, the outcomes of the rows that ended in it: often none."""
        free: list[int] = []
        while True:
            self._admit(queue, free)
            if not self._tickets:
                return
            began = time.perf_counter()
            self._tick()
            share = (time.perf_counter() - began) / len(self._tickets)
            for ticket in self._tickets:
                ticket.seconds += share
            state = self._active()
            free = (~state.running).nonzero().flatten().tolist()
            yield [self._outcome(place) for place in free]

    def _active(self) -> RowState:
        if self._state is None:
            raise ValueError("no row has been admitted yet")
        return self._state

    def _admit(self, queue: Iterator[Row[KeyT, TargetT]], free: list[int]) -> None:
        """Put waiting rows into free places, then into new ones; close the places left free."""
        wanted = len(free) + self._capacity - len(self._tickets)
        waiting = list(islice(queue, wanted))
        if waiting:
            self._place(waiting[: len(free)], free[: len(waiting)])
            self._append(waiting[len(free) :])
        self._close(free[len(waiting) :])

    def _place(self, rows: list[Row[KeyT, TargetT]], places: list[int]) -> None:
        if not rows:
            return
        state, targets = self._start(rows)
        index = torch.tensor(places, device=state.z.device)
        self._active().write(index, state)
        if self._targets is not None:
            self._targets.write(index, targets)
        for row, place in zip(rows, places, strict=True):
            self._tickets[place] = _Ticket(row.key, seconds=row.seconds)

    def _append(self, rows: list[Row[KeyT, TargetT]]) -> None:
        if not rows:
            return
        state, targets = self._start(rows)
        if self._state is None or self._targets is None:
            self._state, self._targets = state, targets
        else:
            self._state = self._state.join(state)
            self._targets = self._targets.join(targets)
        self._tickets.extend(_Ticket(row.key, seconds=row.seconds) for row in rows)

    def _start(self, rows: list[Row[KeyT, TargetT]]) -> tuple[RowState, TargetT]:
        first, *rest = (row.target for row in rows)
        return self._optimizer.init(torch.stack([row.start for row in rows])), first.join(*rest)

    def _close(self, places: list[int]) -> None:
        if not places or self._state is None or self._targets is None:
            return
        gone = set(places)
        kept = [place for place in range(len(self._tickets)) if place not in gone]
        index = torch.tensor(kept, dtype=torch.int64, device=self._state.z.device)
        self._state = self._state.select(index) if kept else None
        self._targets = self._targets.select(index) if kept else None
        self._tickets = [self._tickets[place] for place in kept]

    def _tick(self) -> None:
        state, targets = self._active(), self._targets
        if targets is None:
            raise ValueError("no row has been admitted yet")
        z, steps = state.z.clone(), state.steps.clone()
        value, gradient = self._objective(z, targets)
        self._optimizer.tell(state, value, gradient)
        if self._growth is not None:
            self._take_snapshots(z, value, steps.tolist(), self._growth)
        if self._ticked is not None:
            self._ticked(len(self._tickets), int(steps.double().mean()))

    def _take_snapshots(self, z: Tensor, value: Tensor, steps: list[int], growth: float) -> None:
        for place, (ticket, step) in enumerate(zip(self._tickets, steps, strict=True)):
            if step >= ticket.next_snapshot and bool(value[place].isfinite()):
                # float32 on the CPU: snapshots are for looking at; a copy: a view keeps all rows
                point = z[place].to("cpu", torch.float32, copy=True)
                ticket.snapshots.append(Snapshot(step, float(value[place]), point))
                ticket.next_snapshot = max(step + 1, math.ceil(step * growth))

    def _outcome(self, place: int) -> Outcome[KeyT]:
        state, ticket = self._active(), self._tickets[place]
        objective = float(state.best_value[place])
        return Outcome(
            key=ticket.key,
            # a copy: another row takes this place, and whoever holds a view would see it move
            z=state.best_z[place].to("cpu", copy=True),
            objective=objective if math.isfinite(objective) else math.nan,
            status=status_of(int(state.code[place])),
            steps=int(state.steps[place]),
            evaluations=int(state.evaluations[place]),
            seconds=ticket.seconds,
            snapshots=tuple(ticket.snapshots),
        )
