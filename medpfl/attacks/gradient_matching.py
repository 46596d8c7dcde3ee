"""The one gradient-matching attack; those of the literature choose its parts (conf/attack)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Annotated, Any, Literal, TypeVar

import torch
from torch import nn

from medpfl.attacks.base import AttackContext, Work
from medpfl.attacks.combinations import check_group, check_projections, choose
from medpfl.attacks.compiled import Compiling
from medpfl.attacks.converged import ConvergedRows
from medpfl.attacks.determination import affordable
from medpfl.attacks.distances import Distance
from medpfl.attacks.duration import (
    Longest,
    evaluations_of,
    seconds_of,
    steps_of,
    takes_every_step,
)
from medpfl.attacks.groups import GroupMatching
from medpfl.attacks.labels import LabelStrategy
from medpfl.attacks.matching import MatchingObjective, Targets, rows_at_once
from medpfl.attacks.priors import Prior
from medpfl.attacks.projection import ImageProjection, ParticularProjection, Projection
from medpfl.attacks.stages import (
    Key,
    Precision,
    Stage,
    check_curvature,
    fitted,
    has_curvature,
    stages_of,
    whole,
)
from medpfl.attacks.starts import Start
from medpfl.attacks.unknowns import Unknowns
from medpfl.attacks.victim_rows import (
    Channels,
    Determined,
    VictimRows,
    from_closed_form,
    hopeless,
    members_of,
)
from medpfl.errors import ConfigurationError
from medpfl.optim import Adam, BatchedOptimizer
from medpfl.optim.capacity import bytes_of, check_row, memory_for_rows, rows_that_fit
from medpfl.optim.feed import Feed, Renewed
from medpfl.optim.projected import Projected
from medpfl.optim.scheduler import CurvedObjective, Outcome, Row, Scheduler, Ticked
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range, Tolerance, Weight
from medpfl.types import DataSpec, Observation, Reconstruction

PartT = TypeVar("PartT")

# On a CPU few rows take as long a row as many.
_ROWS_TIMED = 8


@checked("attack")
class GradientMatching:
    """Find images whose gradient is the observed one (Zhu et al. 2019, Eq. 4).

    Args:
        name: the composition's name in the literature.
        start: draws the first dummy.
        labels: how the labels are known.
        distance: between the dummy's gradient and the observed one.
        optimizer: moves the rows. One of second order (`LevenbergMarquardt`) needs a distance and
            priors that are sums of squares.
        polish: a second optimiser, which goes on from where the first has ended; None ends there.
        priors: terms added to the distance, by name; None entries are left out.
        projections: what is done to the images after every step, by name, in this order; None
            entries are left out. Only `Adam` can be combined with them.
        channels: ``tied`` makes the channels of a pixel one unknown, ``auto`` does so for data that
            is known to be greyscale: a third of the unknowns for the same gradient.
        pixels: ``sigmoid`` makes pixels sigmoids of the unknowns, so that no optimiser leaves
            [0, 1]; ``free`` leaves them alone.
        restarts: independent starts a victim; the one with the lowest objective is handed in.
        restart_above: the next restart is made only where no objective so far is this low; not
            negative, or None to make all of them, side by side.
        group_consistency: weight of the pull of a victim's restarts towards their mean, which makes
            them one row; not negative, or None to keep them apart. See `GroupMatching`.
        rows: rows side by side; ``auto``: as many as memory takes, and on a CPU at most 64.
        memory_gb: what rows and their evaluation may take, in 10^9 bytes; positive, or None for
            half of a CPU's memory and what CUDA has free.
        compile: whether evaluations are compiled, or also replayed as CUDA graphs
            (``cudagraphs``). Pays for long runs: compiling takes minutes, once a machine.
        precision: the attacker's floating-point type; the client's own is not affected. ``mixed``:
            `optimizer` in float32, then `polish` in float64, by default `optimizer` again.
        determination: whether rows that end converged are asked how much of their images the
            update determines; those below a half end as undetermined. Up to 3,200 unknowns, and
            where distance and priors are sums of squares.
        trace_points: intermediate reconstructions kept a victim, about; 0 keeps none.
    """

    def __init__(
        self,
        *,
        name: str,
        start: Start,
        labels: LabelStrategy,
        distance: Distance,
        optimizer: BatchedOptimizer[Any],
        polish: BatchedOptimizer[Any] | None = None,
        priors: Mapping[str, Prior | None] | None = None,
        projections: Mapping[str, Projection | None] | None = None,
        channels: Channels = "free",
        pixels: Literal["free", "sigmoid"] = "free",
        restarts: Annotated[int, Range(1, 10_000)] = 1,
        restart_above: Tolerance | None = None,
        group_consistency: Weight | None = None,
        rows: Annotated[int, Range(1, 100_000)] | Literal["auto"] = "auto",
        memory_gb: Annotated[float, Range(0, 1e6, "(]")] | None = None,
        compile: Compiling = False,  # noqa: A002 - the name of the setting
        precision: Precision = "float32",
        determination: bool = True,
        trace_points: Annotated[int, Range(0, 10_000)] = 30,
    ) -> None:
        if isinstance(rows, str) and rows != "auto":
            raise ConfigurationError(f"attack.rows={rows}: must be an integer or auto")
        choose("compile", compile, (True, False, "cudagraphs"))
        choose("channels", channels, ("free", "tied", "auto"))
        choose("pixels", pixels, ("free", "sigmoid"))
        check_group(group_consistency, restarts, restart_above)
        self.name = name
        self._start = start
        self._labels = labels
        self._distance = distance
        self._stages = stages_of(optimizer, polish, precision)
        self._priors = _given(priors)
        self._projections = _given(projections)
        check_curvature(self._stages, distance, self._priors)
        if self._projections:
            check_projections(self._stages, channels=channels, pixels=pixels)
        self._channels = channels
        self._boxed = pixels == "sigmoid"
        self._restarts = restarts
        self._restart_above = restart_above
        self._group_consistency = group_consistency
        self._rows = rows
        self._memory_gb = memory_gb
        self._compiling: Compiling = compile
        self._determination = determination
        self._trace_points = trace_points

    @property
    def requires(self) -> frozenset[str]:
        """See `Attack.requires`."""
        return self._labels.requires | {"num_examples"}

    def check(self, model: nn.Module, batch_size: int) -> None:
        """See `Attack.check`."""
        self._labels.check(model, batch_size)

    def evaluations(self) -> int:
        """See `Timed.evaluations`."""
        return self._restarts * evaluations_of(self._stages)

    def longest(self, observation: Observation, context: AttackContext) -> Longest:
        """See `Timed.longest`; the first stage's evaluations stand for all."""
        rows = self._victim_rows([observation], context)
        stage = self._stages[0]
        at_once = rows_at_once(observation.payload, rows.unknowns(observation))
        count = max(1, min(_ROWS_TIMED, at_once // 4))
        target = rows.target(rows.key(observation), stage.dtype)
        z = torch.zeros(count, rows.unknowns(observation).count, device=context.device)
        objective = self._objective(stage, observation, rows, chunk=count)
        targets = target.join(*[target] * (count - 1))

        def evaluate() -> float:
            # Read, as a GPU returns before it has finished.
            return float(objective(z.to(stage.dtype), targets)[0].sum())

        return Longest(
            restarts=self._restarts,
            steps=steps_of(self._stages),
            evaluations=evaluations_of(self._stages),
            seconds=seconds_of(evaluate) / count,
            certain=takes_every_step(self._stages),
        )

    def check_data(self, spec: DataSpec, batch_size: int, device: torch.device) -> None:
        """See `Particular.check_data`."""
        for projection in self._projections:
            if isinstance(projection, ParticularProjection):
                projection.check(spec)
        tied = self._channels == "tied" or (self._channels == "auto" and spec.greyscale)
        pixels = math.prod(spec.shape[1:]) * (1 if tied else spec.shape[0])
        members = 1 if self._group_consistency is None else self._restarts
        for stage in self._stages:
            check_row(stage.optimizer, members * batch_size * pixels, stage.dtype, device)

    def reconstruct(
        self, observations: Iterable[Observation], context: AttackContext
    ) -> Iterator[Reconstruction]:
        """See `Attack.reconstruct`; every restart of every victim is a row, or every group is."""
        waiting = iter(observations)
        ahead = list(islice(waiting, 2))
        if not ahead:
            return
        first = ahead[0]
        rows = self._victim_rows(ahead, context)
        unanswered: list[Reconstruction] = []
        queue = Feed(self._queue(chain(ahead, waiting), rows, unanswered))
        separated = self._separated(first, rows)
        determined = self._determined(first, rows)
        ended: dict[str, list[Outcome[Key]]] = defaultdict(list)
        for outcomes in self._ticks(first, queue, rows, context):
            yield from _drain(unanswered)
            for outcome in map(whole, outcomes):
                siblings = ended[outcome.key.observation.victim_id]
                siblings.extend(separated(outcome))
                if self._is_done(siblings):
                    del ended[outcome.key.observation.victim_id]
                    yield rows.reconstruction(siblings, determined)
                elif self._restart_above is not None:
                    again = replace(outcome.key, restart=len(siblings), before=None, solution=None)
                    queue.put(rows.row(again, self._stages[0].dtype))
        yield from _drain(unanswered)

    def _victim_rows(self, ahead: Sequence[Observation], context: AttackContext) -> VictimRows:
        return VictimRows(
            start=self._start,
            labels=self._labels,
            channels=self._channels,
            boxed=self._boxed,
            members=1 if self._group_consistency is None else self._restarts,
            shared=all(o.payload is ahead[0].payload for o in ahead),
            seed=context.seed,
            device=context.device,
        )

    def _queue(
        self,
        observations: Iterable[Observation],
        rows: VictimRows,
        unanswered: list[Reconstruction],
    ) -> Iterator[Row[Key, Targets]]:
        """Yield the rows of all victims; hopeless ones go straight to `unanswered`."""
        dtype, last = self._stages[0].dtype, self._stages[-1].dtype
        side_by_side = self._restarts if self._restart_above is None else 1
        for observation in observations:
            key = rows.key(observation)
            status = hopeless(observation, last)
            if status is not None:
                unanswered.append(rows.untouched(key, status))
                continue
            row = rows.row(key, dtype)
            yield row
            for restart in range(rows.members, side_by_side, rows.members):
                # Restarts share the victim's gradient.
                yield rows.row(replace(key, restart=restart), dtype, row.target)

    def _separated(
        self, first: Observation, rows: VictimRows
    ) -> Callable[[Outcome[Key]], list[Outcome[Key]]]:
        """Return a function that says of an ended row how each of its restarts has ended."""
        if rows.members == 1:
            return lambda outcome: [outcome]
        stage = self._stages[-1]
        single = self._objective(stage, first, rows, chunk=1)

        def separate(outcome: Outcome[Key]) -> list[Outcome[Key]]:
            target = rows.target(outcome.key, stage.dtype)
            points = outcome.z.to(rows.device, stage.dtype).chunk(rows.members)
            values = [float(single(z.unsqueeze(0), target)[0]) for z in points]
            return members_of(outcome, values)

        return separate

    def _determined(self, first: Observation, rows: VictimRows) -> Determined:
        """Return a function that says which share of an image the update determines."""
        payload, unknowns = first.payload, rows.unknowns(first)
        possible = rows.members == 1 and has_curvature(self._distance, self._priors)
        if not (self._determination and possible and affordable(payload, unknowns)):
            return from_closed_form
        stage = replace(self._stages[-1], dtype=torch.float64)
        objective = self._objective(stage, first, rows, chunk=rows_at_once(payload, unknowns))
        return ConvergedRows(objective, rows, self._distance)

    def _is_done(self, siblings: list[Outcome[Key]]) -> bool:
        """Say whether a victim needs no restart beyond those that have ended."""
        if len(siblings) == self._restarts:
            return True
        if self._restart_above is None:
            return False
        return any(o.objective <= self._restart_above for o in siblings)

    def _ticks(
        self,
        first: Observation,
        queue: Iterator[Row[Key, Targets]],
        rows: VictimRows,
        context: AttackContext,
    ) -> Iterator[list[Outcome[Key]]]:
        """Run all stages: rows that end in one queue for the next."""
        coarse, *polish = (
            self._scheduler(number, first, rows, context)
            for number in range(1, len(self._stages) + 1)
        )
        if not polish:
            return coarse.ticks(queue)

        def go_on(outcome: Outcome[Key]) -> Row[Key, Targets]:
            dtype = self._stages[-1].dtype
            key = replace(outcome.key, before=outcome)
            start = outcome.z.to(context.device, dtype)
            return Row(key, start, rows.target(key, dtype), outcome.seconds)

        # A restart may come when the first stage has already ended.
        return polish[0].ticks(map(go_on, Renewed(lambda: coarse.run(queue))))

    def _scheduler(
        self, stage_number: int, first: Observation, rows: VictimRows, context: AttackContext
    ) -> Scheduler[Key, Targets]:
        stage = self._stages[stage_number - 1]
        # All stages hold rows at the same time.
        memory = memory_for_rows(context.device, self._memory_gb) // len(self._stages)
        stage = fitted(stage, rows.count(first), context.device, memory)
        unknowns = rows.unknowns(first)
        at_once = rows_at_once(first.payload, unknowns, memory=memory)
        capacity = self._capacity(stage, first, rows, memory, at_once)
        objective = self._objective(
            stage,
            first,
            rows,
            chunk=min(at_once, capacity * rows.members),
            compiling=self._compiling,
        )
        points = self._trace_points / len(self._stages)
        growth = (stage.optimizer.max_steps + 1) ** (1 / points) if points else None
        return Scheduler(
            optimizer=self._projected(stage.optimizer, unknowns, rows.members),
            objective=self._grouped(objective, unknowns, rows.members),
            capacity=capacity,
            snapshot_growth=growth,
            ticked=self._reporting(stage_number, rows, context),
            profiler=context.profiler,
        )

    def _objective(
        self,
        stage: Stage,
        first: Observation,
        rows: VictimRows,
        *,
        chunk: int,
        compiling: Compiling = False,
    ) -> MatchingObjective:
        """Return the objective of single restarts."""
        return MatchingObjective(
            payload=first.payload,
            unknowns=rows.unknowns(first),
            distance=self._distance,
            dtype=stage.dtype,
            chunk=chunk,
            priors=self._priors,
            compiling=compiling,
        )

    def _grouped(
        self, objective: MatchingObjective, unknowns: Unknowns, members: int
    ) -> CurvedObjective[Targets]:
        """Return the objective of rows: groups, where restarts are to be consistent."""
        if self._group_consistency is None:
            return objective
        return GroupMatching(
            objective=objective,
            unknowns=unknowns,
            members=members,
            weight=self._group_consistency,
        )

    def _reporting(
        self, stage_number: int, rows: VictimRows, context: AttackContext
    ) -> Ticked | None:
        """Return what is called after each of a stage's ticks."""
        told = context.progress
        if told is None:
            return None
        # Of restarts one after another, only the first is certain.
        each = 1 if self._restart_above is not None else self._restarts // rows.members
        stages = len(self._stages)
        return lambda tick: told(Work(tick, stage_number, stages, each))

    def _capacity(
        self, stage: Stage, first: Observation, rows: VictimRows, memory: int, at_once: int
    ) -> int:
        """Return how many rows to keep side by side, all with victims as large as the first."""
        if self._rows != "auto" and self._memory_gb is None:
            return self._rows
        payload = first.payload
        start = torch.empty(1, rows.count(first), dtype=stage.dtype, device="meta")
        # Every row is counted as if it had its network to itself: twice, once as it came.
        network = sum(t.numel() for t in (*payload.parameters.values(), *payload.buffers.values()))
        entries = start.numel() + 3 * network
        fit = rows_that_fit(
            memory=memory,
            bytes_a_row=bytes_of(stage.optimizer.init(start)) + entries * start.element_size(),
            device=rows.device,
            at_once=at_once,
        )
        return fit if self._rows == "auto" else min(fit, self._rows)

    def _projected(
        self, optimizer: BatchedOptimizer[Any], unknowns: Unknowns, members: int
    ) -> BatchedOptimizer[Any]:
        """Return the optimiser, with the projections after each of its steps."""
        if isinstance(optimizer, Adam) and self._projections:
            return Projected(optimizer, ImageProjection(self._projections, unknowns, members))
        return optimizer


def _given(parts: Mapping[str, PartT | None] | None) -> tuple[PartT, ...]:
    return tuple(part for part in (parts or {}).values() if part is not None)


def _drain(items: list[Reconstruction]) -> Iterator[Reconstruction]:
    while items:
        yield items.pop(0)
