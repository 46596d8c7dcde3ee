"""The one gradient-matching attack; those of the literature choose its parts (conf/attack)."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from medpfl.attacks.base import AttackContext
from medpfl.attacks.compiled import Compiling
from medpfl.attacks.distances import Distance
from medpfl.attacks.labels import LabelStrategy
from medpfl.attacks.matching import (
    MatchingObjective,
    Targets,
    Unknowns,
    flatten,
    float_buffers,
    rows_at_once,
)
from medpfl.attacks.priors import Prior
from medpfl.attacks.projection import ImageProjection, Projection
from medpfl.attacks.stages import Key, Precision, Stage, check_curvature, fitted, stages_of, whole
from medpfl.attacks.starts import Start
from medpfl.errors import ConfigurationError
from medpfl.models.structure import last_linear
from medpfl.optim import Adam, BatchedOptimizer
from medpfl.optim.capacity import bytes_of, memory_for_rows, rows_that_fit
from medpfl.optim.feed import Feed, Renewed
from medpfl.optim.projected import Projected
from medpfl.optim.scheduler import Outcome, Row, Scheduler, Snapshot
from medpfl.optim.shared_rows import SharedRows
from medpfl.seeding import generator
from medpfl.types import Observation, Reconstruction, Status, Trace

PartT = TypeVar("PartT")


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
        rows: rows side by side; ``auto``: as many as memory takes, and on a CPU at most 64.
        memory_gb: what rows and their evaluation may take, in 10^9 bytes; positive, or None for
            half of a CPU's memory and what CUDA has free.
        compile: whether evaluations are compiled, or also replayed as CUDA graphs
            (``cudagraphs``). Pays for long runs: compiling takes minutes, once a machine.
        precision: the attacker's floating-point type; the client's own is not affected. ``mixed``:
            `optimizer` in float32, then `polish` in float64, by default `optimizer` again.
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
        channels: Literal["free", "tied", "auto"] = "free",
        pixels: Literal["free", "sigmoid"] = "free",
        restarts: int = 1,
        restart_above: float | None = None,
        rows: int | Literal["auto"] = "auto",
        memory_gb: float | None = None,
        compile: Compiling = False,  # noqa: A002 - the name of the setting
        precision: Precision = "float32",
        trace_points: int = 30,
    ) -> None:
        for key, value, least in (
            ("restarts", restarts, 1),
            ("rows", 1 if rows == "auto" else rows, 1),
            ("trace_points", trace_points, 0),
        ):
            if not isinstance(value, int):
                raise ConfigurationError(f"attack.{key}={value}: must be an integer or auto")
            if value < least:
                raise ConfigurationError(f"attack.{key}={value}: must be at least {least}")
        if memory_gb is not None and not memory_gb > 0:
            raise ConfigurationError(f"attack.memory_gb={memory_gb}: must be positive, or null")
        if restart_above is not None and not restart_above >= 0:
            raise ConfigurationError(
                f"attack.restart_above={restart_above}: must not be negative, or null"
            )
        if compile not in (True, False, "cudagraphs"):
            raise ConfigurationError(f"attack.compile={compile}: choose true, false or cudagraphs")
        self.name = name
        self._start = start
        self._labels = labels
        self._distance = distance
        self._stages = stages_of(optimizer, polish, precision)
        self._priors = _given(priors)
        self._projections = _given(projections)
        check_curvature(self._stages, distance, self._priors)
        for stage in self._stages:
            if self._projections and not isinstance(stage.optimizer, Adam):
                raise ConfigurationError(
                    f"attack.projections: {type(stage.optimizer).__name__} cannot go on from a "
                    "point that was moved. Use medpfl.optim.Adam, or attack.projections=null"
                )
        if channels not in ("free", "tied", "auto"):
            raise ConfigurationError(f"attack.channels={channels}: choose free, tied or auto")
        if pixels not in ("free", "sigmoid"):
            raise ConfigurationError(f"attack.pixels={pixels}: choose free or sigmoid")
        for key, choice in (("channels", channels), ("pixels", pixels)):
            if choice != "free" and self._projections:
                raise ConfigurationError(
                    f"attack.{key}={choice}: projections are made for free {key}. "
                    f"Use attack.{key}=free, or attack.projections=null"
                )
        self._channels = channels
        self._boxed = pixels == "sigmoid"
        self._restarts = restarts
        self._restart_above = restart_above
        self._rows = rows
        self._memory_gb = memory_gb
        self._compiling: Compiling = compile
        self._trace_points = trace_points

    @property
    def requires(self) -> frozenset[str]:
        """See `Attack.requires`."""
        return self._labels.requires | {"num_examples"}

    def check(self, model: nn.Module, batch_size: int) -> None:
        """See `Attack.check`."""
        self._labels.check(model, batch_size)

    def reconstruct(
        self, observations: Iterable[Observation], context: AttackContext
    ) -> Iterator[Reconstruction]:
        """See `Attack.reconstruct`; every restart of every victim is a row."""
        waiting = iter(observations)
        ahead = list(islice(waiting, 2))
        if not ahead:
            return
        first = ahead[0]
        shared = all(o.payload is first.payload for o in ahead)
        unanswered: list[Reconstruction] = []
        queue = Feed(self._queue(chain(ahead, waiting), shared, context, unanswered))
        ended: dict[str, list[Outcome[Key]]] = defaultdict(list)
        for outcomes in self._ticks(first, queue, shared, context):
            yield from _drain(unanswered)
            for outcome in map(whole, outcomes):
                siblings = ended[outcome.key.observation.victim_id]
                siblings.append(outcome)
                if self._is_done(siblings):
                    del ended[outcome.key.observation.victim_id]
                    yield self._reconstruction(siblings)
                elif self._restart_above is not None:
                    again = replace(outcome.key, restart=len(siblings), before=None)
                    queue.put(self._row(again, shared, context))
        yield from _drain(unanswered)

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
        shared: bool,
        context: AttackContext,
    ) -> Iterator[list[Outcome[Key]]]:
        """Run all stages: rows that end in one queue for the next."""
        coarse, *polish = (self._scheduler(stage, first, context) for stage in self._stages)
        if not polish:
            return coarse.ticks(queue)

        def go_on(outcome: Outcome[Key]) -> Row[Key, Targets]:
            dtype = self._stages[-1].dtype
            key = replace(outcome.key, before=outcome)
            target = self._target(key, shared, context.device, dtype)
            return Row(key, outcome.z.to(context.device, dtype), target, outcome.seconds)

        # A restart may come when the first stage has already ended.
        return polish[0].ticks(map(go_on, Renewed(lambda: coarse.run(queue))))

    def _scheduler(
        self, stage: Stage, first: Observation, context: AttackContext
    ) -> Scheduler[Key, Targets]:
        # All stages hold rows at the same time.
        memory = memory_for_rows(context.device, self._memory_gb) // len(self._stages)
        stage = fitted(stage, self._unknowns(first).count, context.device, memory)
        capacity = self._capacity(stage, first, memory, context.device)
        at_once = rows_at_once(first.payload, self._unknowns(first), memory=memory)
        objective = MatchingObjective(
            payload=first.payload,
            unknowns=self._unknowns(first),
            distance=self._distance,
            dtype=stage.dtype,
            chunk=min(at_once, capacity),
            priors=self._priors,
            compiling=self._compiling,
        )
        points = self._trace_points / len(self._stages)
        growth = (stage.optimizer.max_steps + 1) ** (1 / points) if points else None
        return Scheduler(
            optimizer=self._projected(stage.optimizer, self._unknowns(first)),
            objective=objective,
            capacity=capacity,
            snapshot_growth=growth,
            ticked=context.progress,
            profiler=context.profiler,
        )

    def _capacity(self, stage: Stage, first: Observation, memory: int, device: torch.device) -> int:
        """Return how many rows to keep side by side, all with victims as large as the first."""
        if self._rows != "auto" and self._memory_gb is None:
            return self._rows
        payload = first.payload
        start = torch.empty(1, self._unknowns(first).count, dtype=stage.dtype, device="meta")
        # Every row is counted as if it had its network to itself: twice, once as it came.
        network = sum(t.numel() for t in (*payload.parameters.values(), *payload.buffers.values()))
        entries = start.numel() + 3 * network
        fit = rows_that_fit(
            memory=memory,
            bytes_a_row=bytes_of(stage.optimizer.init(start)) + entries * start.element_size(),
            device=device,
        )
        return fit if self._rows == "auto" else min(fit, self._rows)

    def _projected(
        self, optimizer: BatchedOptimizer[Any], unknowns: Unknowns
    ) -> BatchedOptimizer[Any]:
        """Return the optimiser, with the projections after each of its steps."""
        if isinstance(optimizer, Adam) and self._projections:
            return Projected(optimizer, ImageProjection(self._projections, unknowns))
        return optimizer

    def _unknowns(self, observation: Observation) -> Unknowns:
        if observation.num_examples is None:
            raise ValueError("the number of examples is withheld: call ThreatModel.require first")
        weight, _ = last_linear(observation.payload.model)
        classes = len(observation.payload.parameters[weight])
        spec = observation.spec
        tied = self._channels == "tied" or (self._channels == "auto" and spec.greyscale)
        return Unknowns(
            spec,
            observation.num_examples,
            classes,
            self._labels.joint,
            tied=tied and spec.shape[0] > 1,
            boxed=self._boxed,
        )

    def _queue(
        self,
        observations: Iterable[Observation],
        shared: bool,
        context: AttackContext,
        unanswered: list[Reconstruction],
    ) -> Iterator[Row[Key, Targets]]:
        """Yield the rows of all victims; hopeless ones go straight to `unanswered`."""
        side_by_side = self._restarts if self._restart_above is None else 1
        for observation in observations:
            first = Key(observation, 0, self._labels.labels(observation))
            hopeless = self._hopeless(observation)
            if hopeless is not None:
                start = self._first_point(first, context.seed)
                unanswered.append(self._without_attack(first, start, hopeless))
                continue
            row = self._row(first, shared, context)
            yield row
            for restart in range(1, side_by_side):
                # Restarts share the victim's gradient.
                yield self._row(replace(first, restart=restart), shared, context, row.target)

    def _row(
        self, key: Key, shared: bool, context: AttackContext, target: Targets | None = None
    ) -> Row[Key, Targets]:
        """Return a row at its start; its seconds count: a closed form is part of the attack."""
        began = time.perf_counter()
        start = self._first_point(key, context.seed)
        seconds = time.perf_counter() - began
        dtype = self._stages[0].dtype
        if target is None:
            target = self._target(key, shared, context.device, dtype)
        return Row(key, start.to(context.device, dtype), target, seconds)

    def _first_point(self, key: Key, seed: int) -> Tensor:
        unknowns = self._unknowns(key.observation)
        stream = generator(seed, "start", key.observation.victim_id, key.restart)
        images = self._start(key.observation, unknowns.image_shape, stream)
        return unknowns.pack(images, torch.randn(unknowns.label_shape, generator=stream))

    def _target(self, key: Key, shared: bool, device: torch.device, dtype: torch.dtype) -> Targets:
        observation, labels = key.observation, key.labels
        unknowns = self._unknowns(observation)
        classes = unknowns.classes
        probabilities = (
            torch.full(unknowns.label_shape, 1 / classes)
            if labels is None
            else nn.functional.one_hot(labels, classes)
        )
        payload = observation.payload
        parameters, buffers = ({}, {}) if shared else (payload.parameters, float_buffers(payload))
        return Targets(
            gradient=SharedRows(flatten(observation.tensors).to(device, dtype)),
            labels=probabilities.to(device, dtype).unsqueeze(0),
            parameters=flatten(parameters).to(device, dtype).unsqueeze(0),
            buffers=flatten(buffers).to(device, dtype).unsqueeze(0),
        )

    def _hopeless(self, observation: Observation) -> Status | None:
        """Return why nothing can match an update whose squared norm is zero or not finite.

        Both are judged in the attacker's last precision.
        """
        dtype = self._stages[-1].dtype
        squares = [t.to(dtype).square().sum() for t in observation.tensors.values()]
        norm = float(torch.stack(squares).sum())
        if not math.isfinite(norm):
            return Status.NON_FINITE
        return Status.NO_GRADIENT if norm < torch.finfo(dtype).tiny else None

    def _without_attack(self, key: Key, start: Tensor, status: Status) -> Reconstruction:
        """Hand in the start: nothing was sent that could tell one image from another."""
        outcome = Outcome(key, start, math.nan, status, 0, 0, 0.0, ())
        return self._reconstruction([outcome])

    def _reconstruction(self, outcomes: list[Outcome[Key]]) -> Reconstruction:
        best = min(outcomes, key=lambda o: (math.isnan(o.objective), o.objective))
        observation = best.key.observation
        unknowns = self._unknowns(observation)
        images, scores = unknowns.unpack(best.z)
        labels = best.key.labels if scores is None else scores.argmax(1)
        if labels is None:
            raise ValueError("labels are neither known nor optimised")
        return Reconstruction(
            victim_id=observation.victim_id,
            inputs=_pixels(observation, images),
            labels=labels.cpu(),
            objective=best.objective,
            status=best.status,
            steps=best.steps,
            evaluations=sum(o.evaluations for o in outcomes),
            seconds=sum(o.seconds for o in outcomes),
            trace=_trace(best, unknowns),
        )


def _given(parts: Mapping[str, PartT | None] | None) -> tuple[PartT, ...]:
    return tuple(part for part in (parts or {}).values() if part is not None)


def _pixels(observation: Observation, inputs_norm: Tensor) -> Tensor:
    return observation.spec.denormalise(inputs_norm.float()).clamp(0, 1)


def _trace(outcome: Outcome[Key], unknowns: Unknowns) -> Trace | None:
    if not outcome.snapshots:
        return None
    # The last point of a trace is the one handed in.
    handed_in = Snapshot(outcome.steps, outcome.objective, outcome.z)
    points = [*outcome.snapshots, handed_in]
    images = [unknowns.unpack(s.z)[0] for s in points]
    return Trace(
        steps=torch.tensor([s.step for s in points]),
        objective=torch.tensor([s.objective for s in points], dtype=torch.float64),
        inputs=torch.stack([_pixels(outcome.key.observation, i) for i in images]),
    )


def _drain(items: list[Reconstruction]) -> Iterator[Reconstruction]:
    while items:
        yield items.pop(0)
