"""The one gradient-matching attack; those of the literature choose its parts (conf/attack)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import torch
from torch import nn

from medpfl.attacks.adaptation import adapted, matched_through
from medpfl.attacks.arrangements import Arrangements
from medpfl.attacks.base import AttackContext
from medpfl.attacks.combinations import check_arrangements, check_group, check_projections, choose
from medpfl.attacks.compiled import Compiling
from medpfl.attacks.composition import Channels, Machine, Parts, Search
from medpfl.attacks.distances import Distance, has_no_scale
from medpfl.attacks.duration import (
    Longest,
    evaluations_of,
    seconds_of,
    steps_of,
    takes_every_step,
)
from medpfl.attacks.epochs import SeparateEpochs
from medpfl.attacks.labels import LabelStrategy, ReadOff
from medpfl.attacks.priors import Prior
from medpfl.attacks.problem import Problem, problems
from medpfl.attacks.projection import Projection
from medpfl.attacks.reading import as_gradient, expected_of, unit_of
from medpfl.attacks.rounds import check_rounds
from medpfl.attacks.solver import Solver
from medpfl.attacks.stages import Precision, check_curvature, stages_of
from medpfl.attacks.starts import Start
from medpfl.attacks.surrogate import Surrogate
from medpfl.attacks.victim_rows import hopeless
from medpfl.errors import ConfigurationError
from medpfl.optim import BatchedOptimizer
from medpfl.optim.capacity import check_row
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range, Tolerance, Weight
from medpfl.training import LocalTraining
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
        surrogate: takes the dummy's gradient at a network between those before and after local
            training; None takes it at the one sent, or where the known steps lead.
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
        arrangements: what is tried where it is not known which image is behind which local step;
            None takes the images in turn, with the labels as they were counted.
        epochs: searches for each of a client's epochs by itself, since the order of its images is
            not known; None: one set of images serves all of them.
    """

    def __init__(
        self,
        *,
        name: str,
        start: Start,
        labels: LabelStrategy,
        distance: Distance,
        surrogate: Surrogate | None = None,
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
        arrangements: Arrangements | None = None,
        epochs: SeparateEpochs | None = None,
    ) -> None:
        if isinstance(rows, str) and rows != "auto":
            raise ConfigurationError(f"attack.rows={rows}: must be an integer or auto")
        choose("compile", compile, (True, False, "cudagraphs"))
        choose("channels", channels, ("free", "tied", "auto"))
        choose("pixels", pixels, ("free", "sigmoid"))
        check_group(group_consistency, restarts, restart_above)
        check_arrangements(
            arrangements is not None,
            grouped=group_consistency is not None,
            separate=epochs is not None,
            joint=labels.joint,
            surrogate=surrogate is not None,
        )
        self.name = name
        self._parts = Parts(
            start=start,
            labels=labels,
            distance=distance,
            priors=_given(priors),
            projections=_given(projections),
            channels=channels,
            boxed=pixels == "sigmoid",
            epochs=epochs,
            surrogate=surrogate,
        )
        self._search = Search(
            stages=stages_of(optimizer, polish, precision),
            restarts=restarts,
            restart_above=restart_above,
            group_consistency=group_consistency,
            determination=determination,
            trace_points=trace_points,
            arrangements=arrangements,
        )
        self._machine = Machine(rows=rows, memory_gb=memory_gb, compiling=compile)
        check_curvature(self._search.stages, distance, self._parts.priors)
        if self._parts.projections:
            check_projections(self._search.stages, channels=channels, pixels=pixels)

    @property
    def requires(self) -> frozenset[str]:
        """See `Attack.requires`."""
        return self._parts.labels.requires | {"num_examples"}

    def check(self, model: nn.Module, batch_size: int) -> None:
        """See `Attack.check`."""
        self._parts.labels.check(model, batch_size)

    def check_data(self, spec: DataSpec, batch_size: int, device: torch.device) -> None:
        """See `Particular.check_data`."""
        self._parts.check_data(spec)
        unknowns = self._search.members * batch_size * self._parts.pixels(spec)
        for stage in self._search.stages:
            check_row(stage.optimizer, unknowns, stage.dtype, device)

    def check_update(
        self,
        model: nn.Module,
        training: LocalTraining | None,
        kind: Literal["gradient", "delta"],
        parameters: Collection[str],
        *,
        summed: bool = False,
    ) -> None:
        """See `Selective.check_update`."""
        unseen = {name for name, _ in model.named_parameters()} - set(parameters)
        if summed and kind == "delta":
            self._parts.check_sum()
        if self._parts.surrogate is not None:
            self._parts.surrogate.check_update(kind, unseen)
        if kind == "delta" and training is None and not has_no_scale(self._parts.distance):
            raise ConfigurationError(
                f"attack.distance: {type(self._parts.distance).__name__} compares sizes, and that "
                "of this update is not known: the learning rate is withheld. Use "
                "medpfl.attacks.distances.Cosine (attack=scale_free), or grant "
                "threat.local_training=partial"
            )
        labels = self._parts.labels
        missing = labels.reads(model) - set(parameters) if isinstance(labels, ReadOff) else ()
        if missing:
            raise ConfigurationError(
                f"attack.labels: {type(labels).__name__} reads the labels off "
                f"{', '.join(sorted(missing))}, which capture.parameters leaves out. Capture it, "
                "or use an attack with joint or known labels"
            )

    def check_rounds(self, training: LocalTraining | None, batch_size: int) -> None:
        """See `Joining.check_rounds`."""
        check_rounds(
            training,
            batch_size,
            grouped=self._search.group_consistency is not None,
            separate=self._parts.epochs is not None,
            surrogate=self._parts.surrogate is not None,
            arranged=self._search.arrangements is not None,
        )

    def evaluations(self) -> int:
        """See `Timed.evaluations`."""
        return self._search.restarts * evaluations_of(self._search.stages)

    def longest(self, observation: Observation, context: AttackContext) -> Longest:
        """See `Timed.longest`; the first stage's evaluations stand for all."""
        observation = self._read(observation)
        solver = self._solver(self._problem(observation), context)
        stage, rows = self._search.stages[0], solver.rows
        count = max(1, min(_ROWS_TIMED, solver.at_once() // 4))
        target = rows.target(rows.key(observation), stage.dtype)
        z = torch.zeros(count, solver.problem.unknowns.count, device=context.device)
        objective = solver.objective(stage, chunk=count)
        targets = target.join(*[target] * (count - 1))

        def evaluate() -> float:
            # Read, as a GPU returns before it has finished.
            return float(objective(z.to(stage.dtype), targets)[0].sum())

        return Longest(
            restarts=self._search.restarts,
            steps=steps_of(self._search.stages),
            evaluations=evaluations_of(self._search.stages),
            seconds=seconds_of(evaluate) / count,
            certain=takes_every_step(self._search.stages),
        )

    def reconstruct(
        self, observations: Iterable[Observation], context: AttackContext
    ) -> Iterator[Reconstruction]:
        """See `Attack.reconstruct`; what cannot be searched for side by side goes in turn."""
        for problem, members in problems(map(self._read, observations), self._problem):
            yield from self._solver(problem, context).solve(members)

    def _read(self, observation: Observation) -> Observation:
        if self._parts.surrogate is not None:
            unseen = set(observation.payload.parameters) - set(observation.tensors)
            self._parts.surrogate.check_update(observation.kind, unseen)
        read = as_gradient(observation)
        if not observation.same_images:
            return read
        # What holds nothing to match tells nothing of the images.
        before = tuple(map(as_gradient, observation.same_images))
        dtype = self._search.stages[-1].dtype
        return replace(
            read, same_images=tuple(seen for seen in before if hopeless(seen, dtype) is None)
        )

    def _problem(self, observation: Observation) -> Problem:
        return Problem(
            payload=observation.payload,
            names=tuple(observation.tensors),
            shared=True,
            update=self._parts.update_map(observation),
            unknowns=self._parts.unknowns(observation),
            copies=self._parts.copies(observation),
            defense=matched_through(observation),
            unit=unit_of(observation),
            auxiliary=observation.auxiliary,
            expected=expected_of(observation),
            earlier=tuple(map(self._problem, observation.same_images or ())),
        )

    def _solver(self, problem: Problem, context: AttackContext) -> Solver:
        parts, search = adapted(self._parts, self._search, problem)
        if parts.likely is not None:
            problem = replace(problem, unknowns=replace(problem.unknowns, likely=parts.likely))
        return Solver(
            parts=parts,
            search=search,
            machine=self._machine,
            problem=problem,
            context=context,
        )


def _given(parts: Mapping[str, PartT | None] | None) -> tuple[PartT, ...]:
    return tuple(part for part in (parts or {}).values() if part is not None)
