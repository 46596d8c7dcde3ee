"""Solves one problem: rows in, reconstructions out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from medpfl.attacks.base import AttackContext, Work
from medpfl.attacks.blank import Blank
from medpfl.attacks.compiled import Compiling
from medpfl.attacks.composition import Machine, Parts, Search
from medpfl.attacks.converged import ConvergedRows
from medpfl.attacks.determination import affordable
from medpfl.attacks.distances import is_likelihood
from medpfl.attacks.groups import GroupMatching
from medpfl.attacks.labels import ReadOff
from medpfl.attacks.matching import MatchingObjective, Targets, rows_at_once
from medpfl.attacks.problem import Problem
from medpfl.attacks.rounds import RoundsMatching
from medpfl.attacks.screening import Screening
from medpfl.attacks.stages import Key, Stage, fitted, shortened, whole
from medpfl.attacks.victim_rows import (
    Asked,
    VictimRows,
    from_closed_form,
    hopeless,
    members_of,
)
from medpfl.optim.feed import Feed, Renewed
from medpfl.optim.scheduler import CurvedObjective, Outcome, Row, Scheduler, Ticked
from medpfl.types import Observation, Reconstruction


@dataclass(frozen=True, kw_only=True)
class Solver:
    """Attacks the updates of one problem, as many at once as the machine takes.

    Args:
        parts: what is compared.
        search: how the unknowns are looked for.
        machine: how much is computed at once.
        problem: what the updates have in common.
        context: where and how the attack runs.
    """

    parts: Parts
    search: Search
    machine: Machine
    problem: Problem
    context: AttackContext

    @cached_property
    def rows(self) -> VictimRows:
        """What a row is."""
        return VictimRows(
            parts=self.parts,
            members=self.search.members,
            shared=self.problem.shared,
            seed=self.context.seed,
            device=self.context.device,
        )

    def solve(self, observations: Iterable[Observation]) -> Iterator[Reconstruction]:
        """Yield a reconstruction an update; every restart is a row, or every group of them is."""
        unanswered: list[Reconstruction] = []
        queue = Feed(self._queue(observations, unanswered))
        separated, determined, unexplained = self._separated(), self._determined(), self._blank()
        ended: dict[str, list[Outcome[Key]]] = defaultdict(list)
        for outcomes in self._ticks(queue):
            yield from _drain(unanswered)
            for outcome in map(whole, outcomes):
                name = outcome.key.observation.capture_id
                ended[name].extend(separated(outcome))
                if self.search.suffices([o.objective for o in ended[name]]):
                    yield self._handed_in(ended.pop(name), determined, unexplained)
                elif self.search.restart_above is not None:
                    restart = len(ended[name])
                    again = replace(outcome.key, restart=restart, before=None, solution=None)
                    queue.put(self.rows.row(again, self.search.stages[0].dtype))
        yield from _drain(unanswered)

    def objective(
        self, stage: Stage, *, chunk: int, compiling: Compiling = False
    ) -> CurvedObjective[Targets]:
        """Return the objective of single restarts."""
        rounds, summed = self.problem.rounds, is_likelihood(self.parts.distance)
        priors = self.parts.priors_of(self.problem.copies, self.problem.unknowns.spec)
        objectives = [
            MatchingObjective(
                payload=round_.payload,
                names=round_.names,
                update=round_.update,
                gradient=self.parts.gradient,
                unknowns=self.problem.unknowns,
                distance=self.parts.distance,
                dtype=stage.dtype,
                chunk=chunk,
                # What images are like counts once beside likelihoods, see `RoundsMatching`.
                priors=() if summed and round_ is not self.problem else priors,
                compiling=compiling,
            )
            for round_ in rounds
        ]
        return objectives[0] if len(rounds) == 1 else RoundsMatching(objectives, summed=summed)

    def at_once(self, *, memory: int | None = None) -> int:
        """Return how many restarts to evaluate together."""
        given = {} if memory is None else {"memory": memory}
        problem = self.problem
        return rows_at_once(problem.payload, problem.unknowns, steps=problem.update.steps, **given)

    def _handed_in(
        self, outcomes: list[Outcome[Key]], determined: Asked, unexplained: Asked
    ) -> Reconstruction:
        return self.rows.reconstruction(
            outcomes,
            determined,
            unexplained,
            compared=self.search.compares([o.objective for o in outcomes]),
        )

    def _queue(
        self, observations: Iterable[Observation], unanswered: list[Reconstruction]
    ) -> Iterator[Row[Key, Targets]]:
        """Yield the rows of all updates; hopeless ones go straight to `unanswered`."""
        dtype, last = self.search.stages[0].dtype, self.search.stages[-1].dtype
        screening = self._screening
        for observation in observations:
            key = self.rows.key(observation)
            status = hopeless(observation, last)
            if status is not None:
                unanswered.append(self.rows.untouched(key, status))
                continue
            key = key if screening is None else screening.led(key)
            row = self.rows.row(key, dtype)
            if row.key.solution is not None and row.key.solution.final:
                unanswered.append(self.rows.solved(row, self._objective_of(row)))
                continue
            yield row
            for restart in range(self.rows.members, self.search.side_by_side, self.rows.members):
                yield self.rows.row(replace(key, restart=restart), dtype, row.target)

    def _objective_of(self, row: Row[Key, Targets]) -> float:
        single = self.objective(self.search.stages[0], chunk=1)
        return float(single(row.start.unsqueeze(0), row.target)[0])

    def _separated(self) -> Callable[[Outcome[Key]], list[Outcome[Key]]]:
        """Return a function that says of an ended row how each of its restarts has ended."""
        rows = self.rows
        if rows.members == 1:
            return lambda outcome: [outcome]
        stage = self.search.stages[-1]
        single = self.objective(stage, chunk=1)

        def separate(outcome: Outcome[Key]) -> list[Outcome[Key]]:
            target = rows.target(outcome.key, stage.dtype)
            points = outcome.z.to(rows.device, stage.dtype).chunk(rows.members)
            values = [float(single(z.unsqueeze(0), target)[0]) for z in points]
            return members_of(outcome, values)

        return separate

    def _determined(self) -> Asked:
        """Return a function that says which share of an image the update determines."""
        possible = self.rows.members == 1 and self.parts.has_curvature
        wanted = self.search.determination and possible
        if not (wanted and affordable(self.problem.payload, self.problem.unknowns)):
            return from_closed_form
        stage = replace(self.search.stages[-1], dtype=torch.float64)
        objective = self.objective(stage, chunk=self.at_once())
        return ConvergedRows(objective, self.rows, self.parts.distance)

    def _blank(self) -> Blank:
        """Return what sets an ended row against a blank image."""
        stage = self.search.stages[-1]
        return Blank(self.objective(stage, chunk=1), self.rows, stage.dtype)

    def _ticks(self, queue: Iterator[Row[Key, Targets]]) -> Iterator[list[Outcome[Key]]]:
        """Run all stages: rows that end in one queue for the next."""
        stages = self.search.stages
        coarse, *polish = (self._scheduler(number) for number in range(1, len(stages) + 1))
        if not polish:
            return coarse.ticks(queue)

        def go_on(outcome: Outcome[Key]) -> Row[Key, Targets]:
            key = replace(outcome.key, before=outcome)
            start = outcome.z.to(self.context.device, stages[-1].dtype)
            return Row(key, start, self.rows.target(key, stages[-1].dtype), outcome.seconds)

        # A restart may come when the first stage has already ended.
        return polish[0].ticks(map(go_on, Renewed(lambda: coarse.run(queue))))

    @cached_property
    def _screening(self) -> Screening | None:
        """What says where to begin under which arrangement; None where all of them are known."""
        search = self.search
        if search.arrangements is None or self.problem.update.steps == 1:
            return None
        return Screening(
            arrangements=search.arrangements,
            rows=self.rows,
            counted=isinstance(self.parts.labels, ReadOff),
            objective=self.objective(search.stages[0], chunk=self.at_once()),
            restarts=search.restarts,
            dtype=search.stages[0].dtype,
            seed=self.context.seed,
            scheduler=lambda steps: self._scheduler(1, steps=steps),
        )

    def _scheduler(self, stage_number: int, *, steps: int | None = None) -> Scheduler[Key, Targets]:
        """Return what runs a stage, or no more than so many of its steps, of which nobody hears."""
        stages, members, device = self.search.stages, self.rows.members, self.context.device
        unknowns = self.problem.unknowns
        # All stages hold rows at the same time.
        memory = self.machine.memory(device) // len(stages)
        count = members * unknowns.count
        stage = fitted(stages[stage_number - 1], count, device, memory)
        stage = stage if steps is None else shortened(stage, steps)
        at_once = self.at_once(memory=memory)
        capacity = self.machine.capacity(
            stage,
            [round_.payload for round_ in self.problem.rounds],
            count,
            memory=memory,
            at_once=at_once,
            device=device,
        )
        chunk = min(at_once, capacity * members)
        objective = self.objective(stage, chunk=chunk, compiling=self.machine.compiling)
        return Scheduler(
            optimizer=self.parts.projected(stage.optimizer, unknowns, members),
            objective=self._grouped(objective),
            capacity=capacity,
            snapshot_growth=self.search.snapshot_growth(stage) if steps is None else None,
            ticked=self._reporting(stage_number) if steps is None else None,
            profiler=self.context.profiler,
        )

    def _grouped(self, objective: CurvedObjective[Targets]) -> CurvedObjective[Targets]:
        """Return the objective of rows: groups, where restarts are to be consistent."""
        if self.search.group_consistency is None:
            return objective
        return GroupMatching(
            objective=objective,
            unknowns=self.problem.unknowns,
            members=self.rows.members,
            weight=self.search.group_consistency,
        )

    def _reporting(self, stage_number: int) -> Ticked | None:
        """Return what is called after each of a stage's ticks."""
        told = self.context.progress
        if told is None:
            return None
        # Of restarts one after another, only the first is certain.
        each, stages = self.search.side_by_side // self.rows.members, len(self.search.stages)
        return lambda tick: told(Work(tick, stage_number, stages, each))


def _drain(items: list[Reconstruction]) -> Iterator[Reconstruction]:
    while items:
        yield items.pop(0)
