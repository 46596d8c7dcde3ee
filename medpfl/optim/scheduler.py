"""Keeps a device full of rows: finished rows leave, waiting ones take their place."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from medpfl.errors import MedpflError
from medpfl.optim.base import BatchedOptimizer, Product, RowState, SecondOrder, status_of
from medpfl.optim.capacity import is_out_of_memory
from medpfl.optim.rows import RowTable
from medpfl.outcomes import Status
from medpfl.profiling import UNPROFILED, Profiler

_log = logging.getLogger(__name__)

TargetT = TypeVar("TargetT", bound=RowTable)
TargetContra = TypeVar("TargetContra", bound=RowTable, contravariant=True)
KeyT = TypeVar("KeyT")


class Objective(Protocol[TargetContra]):
    """The objective of many rows: row b's value depends on row b alone."""

    def __call__(self, z: Tensor, targets: TargetContra) -> tuple[Tensor, Tensor]:
        """Return values `(B,)` and gradients `(B, D)` at `(B, D)` points."""
        ...


@runtime_checkable
class CurvedObjective(Objective[TargetContra], Protocol[TargetContra]):
    """An objective that is a sum of squares, and can say how it is curved."""

    def curvature(self, z: Tensor, targets: TargetContra) -> Product:
        """Return the product with the Gauss-Newton Hessians at `(B, D)` points."""
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
class _Ticket(Generic[KeyT, TargetT]):
    """What the scheduler remembers of an active row, beside its tensors.

    Fields:
        row: as it came, to start it again from there.
        number: rows admitted before it; the newest has the highest.
        ended: whether its outcome has been handed over.
    """

    row: Row[KeyT, TargetT]
    number: int
    seconds: float
    ended: bool = False
    next_snapshot: int = 0
    snapshots: list[Snapshot] = field(default_factory=list)


@dataclass(frozen=True)
class Tick:
    """How far the rows of one scheduler have come.

    Args:
        steps: finished steps of every row under way.
        ended: steps that each row took which ended in this tick.
        max_steps: after which a row ends at the latest.
    """

    steps: tuple[int, ...]
    ended: tuple[int, ...]
    max_steps: int


Ticked = Callable[[Tick], None]


class Scheduler(Generic[KeyT, TargetT]):
    """Runs a queue of rows through one optimiser, at most `capacity` side by side.

    Args:
        optimizer: moves the rows.
        objective: evaluates them.
        capacity: rows side by side.
        snapshot_growth: a row is looked at when its step has grown by this factor, above 1; None
            never looks. Early steps, where most happens, are seen one by one.
        ticked: called after every tick with how far the rows have come.
        profiler: told when rows are drawn, evaluated and moved.

    Notes:
        The queue is read only as places come free, so it may be endless.

        Where memory runs out, capacity is halved for good. If that was while evaluating, the older
        half of the rows goes on and the newer half starts again later; at any other moment the
        rows' state may be torn, and all start again. A row that started again ends as it would
        have: nothing but its own start and target enters. Rows that had ended are not touched.
    """

    def __init__(
        self,
        *,
        optimizer: BatchedOptimizer[RowState],
        objective: Objective[TargetT],
        capacity: int,
        snapshot_growth: float | None = None,
        ticked: Ticked | None = None,
        profiler: Profiler = UNPROFILED,
    ) -> None:
        if isinstance(optimizer, SecondOrder) and not isinstance(objective, CurvedObjective):
            raise ValueError(f"{type(optimizer).__name__} needs an objective that has a curvature")
        self._optimizer = optimizer
        self._objective = objective
        self._capacity = capacity
        self._growth = snapshot_growth
        self._ticked = ticked
        self._profiler = profiler
        self._tickets: list[_Ticket[KeyT, TargetT]] = []
        self._put_back: deque[Row[KeyT, TargetT]] = deque()
        self._admitted = 0
        self._whole = True
        self._state: RowState | None = None
        self._targets: TargetT | None = None

    @property
    def capacity(self) -> int:
        """Rows side by side; falls where memory runs out."""
        return self._capacity

    def run(self, queue: Iterator[Row[KeyT, TargetT]]) -> Iterator[Outcome[KeyT]]:
        """Yield the outcome of every row of the queue, in the order in which they end.

        Raises:
            MedpflError: memory does not suffice for a single row.
        """
        for outcomes in self.ticks(queue):
            yield from outcomes

    def ticks(self, queue: Iterator[Row[KeyT, TargetT]]) -> Iterator[list[Outcome[KeyT]]]:
        """Yield, tick by tick, the outcomes of the rows that ended in it: often none.

        Raises:
            MedpflError: memory does not suffice for a single row.
        """
        free: list[int] = []
        while True:
            with self._profiler.phase("starts"):
                entering = self._waiting(queue, len(free))
            began = time.perf_counter()
            fault: str | None = None
            try:
                with self._profiler.phase("optimiser"):
                    self._admit(entering, free)
                    if not self._tickets:
                        return
                    self._tick()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # Only its text: the error itself keeps every tensor on the way to it alive.
                fault = str(error).splitlines()[0]
            share = (time.perf_counter() - began) / len(self._tickets)
            for ticket in self._tickets:
                ticket.seconds += share
            if fault is not None:
                self._shrink(fault)
                free = []
                continue
            free = (~self._active().running).nonzero().flatten().tolist()
            yield [self._outcome(place) for place in free]

    def _active(self) -> RowState:
        if self._state is None:
            raise ValueError("no row has been admitted yet")
        return self._state

    def _waiting(self, queue: Iterator[Row[KeyT, TargetT]], free: int) -> list[Row[KeyT, TargetT]]:
        """Take as many rows as there are places: first those that were put back."""
        wanted = max(0, free + self._capacity - len(self._tickets))
        again = [self._put_back.popleft() for _ in range(min(wanted, len(self._put_back)))]
        return [*again, *islice(queue, wanted - len(again))]

    def _admit(self, entering: list[Row[KeyT, TargetT]], free: list[int]) -> None:
        """Put rows into free places, then into new ones; close the places left free."""
        if not (entering or free):
            return
        self._whole = False
        tickets = [
            _Ticket(row, number, row.seconds)
            for number, row in enumerate(entering, start=self._admitted)
        ]
        self._admitted += len(tickets)
        # Tickets first: should memory run out below, they say which rows are under way.
        for place, ticket in zip(free, tickets, strict=False):
            self._tickets[place] = ticket
        self._tickets.extend(tickets[len(free) :])
        self._place(entering[: len(free)], free[: len(entering)])
        self._append(entering[len(free) :])
        self._close(free[len(entering) :])
        self._whole = True

    def _place(self, rows: list[Row[KeyT, TargetT]], places: list[int]) -> None:
        if not rows:
            return
        state, targets = self._start(rows)
        index = torch.tensor(places, device=state.z.device)
        self._active().write(index, state)
        if self._targets is not None:
            self._targets.write(index, targets)

    def _append(self, rows: list[Row[KeyT, TargetT]]) -> None:
        if not rows:
            return
        state, targets = self._start(rows)
        if self._state is None or self._targets is None:
            self._state, self._targets = state, targets
        else:
            self._state = self._state.join(state)
            self._targets = self._targets.join(targets)

    def _start(self, rows: list[Row[KeyT, TargetT]]) -> tuple[RowState, TargetT]:
        first, *rest = (row.target for row in rows)
        return self._optimizer.init(torch.stack([row.start for row in rows])), first.join(*rest)

    def _close(self, places: list[int]) -> None:
        if places:
            gone = set(places)
            self._keep([place for place in range(len(self._tickets)) if place not in gone])

    def _keep(self, places: list[int]) -> None:
        """Let go of all rows but those at some places."""
        if not places or self._state is None or self._targets is None:
            self._state = self._targets = None
        else:
            index = torch.tensor(places, dtype=torch.int64, device=self._state.z.device)
            self._state = self._state.select(index)
            self._targets = self._targets.select(index)
        self._tickets = [self._tickets[place] for place in places]

    def _shrink(self, fault: str) -> None:
        """Halve the capacity after memory ran out, and put back the rows that it has cost."""
        under_way = [place for place, t in enumerate(self._tickets) if not t.ended]
        if len(under_way) <= 1:
            raise MedpflError(
                f"out of memory with a single row ({fault}). Choose smaller images "
                "(preprocess.size), a smaller network, attack.precision=float32, of LBFGS a lower "
                "attack.optimizer.history or, of LevenbergMarquardt, attack.optimizer.solver=cg; "
                "or run where there is more memory (device=cpu)."
            )
        self._capacity = len(under_way) // 2
        _log.warning(
            "out of memory with %d rows side by side: going on with %d",
            len(under_way),
            self._capacity,
        )
        tickets = self._tickets
        by_age = sorted(under_way, key=lambda place: tickets[place].number)
        staying = by_age[: self._capacity] if self._whole else []
        try:
            self._keep(sorted(staying))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            staying = []
            self._keep(staying)
        self._whole = True
        again = [tickets[place] for place in by_age[len(staying) :]]
        self._put_back.extendleft(replace(t.row, seconds=t.seconds) for t in reversed(again))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _tick(self) -> None:
        state, targets = self._active(), self._targets
        if targets is None:
            raise ValueError("no row has been admitted yet")
        z, steps = state.z.clone(), state.steps.clone()
        with self._profiler.evaluation(z):
            value, gradient = self._objective(z, targets)
        self._whole = False
        self._optimizer.tell(state, value, gradient)
        self._turn(state, targets)
        if self._growth is not None:
            self._take_snapshots(z, value, steps.tolist(), self._growth)
        if self._ticked is not None:
            self._ticked(self._progress(state))
        self._whole = True

    def _progress(self, state: RowState) -> Tick:
        rows = list(zip(state.steps.tolist(), state.running.tolist(), strict=True))
        return Tick(
            steps=tuple(step for step, running in rows if running),
            ended=tuple(step for step, running in rows if not running),
            max_steps=self._optimizer.max_steps,
        )

    def _turn(self, state: RowState, targets: TargetT) -> None:
        """Let an optimiser of second order look at the curvature."""
        optimizer, objective = self._optimizer, self._objective
        if not (isinstance(optimizer, SecondOrder) and isinstance(objective, CurvedObjective)):
            return
        with self._profiler.phase("curvature"):
            optimizer.turn(state, lambda z, rows: objective.curvature(z, targets.select(rows)))

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
        ticket.ended = True
        return Outcome(
            key=ticket.row.key,
            # a copy: another row takes this place, and whoever holds a view would see it move
            z=state.best_z[place].to("cpu", copy=True),
            objective=objective if math.isfinite(objective) else math.nan,
            status=status_of(int(state.code[place])),
            steps=int(state.steps[place]),
            evaluations=int(state.evaluations[place]),
            seconds=ticket.seconds,
            snapshots=tuple(ticket.snapshots),
        )
