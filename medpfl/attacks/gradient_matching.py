"""The one gradient-matching attack; those of the literature choose its parts (conf/attack)."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
from medpfl.attacks.starts import Start
from medpfl.errors import ConfigurationError
from medpfl.models.structure import last_linear
from medpfl.optim import Adam, BatchedOptimizer
from medpfl.optim.capacity import bytes_of, memory_for_rows, rows_that_fit
from medpfl.optim.projected import Projected
from medpfl.optim.scheduler import Outcome, Row, Scheduler, Snapshot
from medpfl.optim.shared_rows import SharedRows
from medpfl.seeding import generator
from medpfl.types import Observation, Reconstruction, Status, Trace

PartT = TypeVar("PartT")

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class _Key:
    """Names a row: one restart of one victim."""

    observation: Observation
    restart: int
    labels: Tensor | None


class GradientMatching:
    """Find images whose gradient is the observed one (Zhu et al. 2019, Eq. 4).

    Args:
        name: the composition's name in the literature.
        start: draws the first dummy.
        labels: how the labels are known.
        distance: between the dummy's gradient and the observed one.
        optimizer: moves the rows.
        priors: terms added to the distance, by name; None entries are left out.
        projections: what is done to the images after every step, by name, in this order; None
            entries are left out. Only `Adam` can be combined with them.
        channels: ``tied`` makes the channels of a pixel one unknown, ``auto`` does so for data that
            is known to be greyscale: a third of the unknowns for the same gradient.
        restarts: independent starts a victim; the one with the lowest objective is handed in.
        rows: rows side by side; ``auto``: as many as memory takes, and on a CPU at most 64.
        memory_gb: what rows and their evaluation may take, in 10^9 bytes; positive, or None for
            half of a CPU's memory and what CUDA has free.
        compile: whether evaluations are compiled, or also replayed as CUDA graphs
            (``cudagraphs``). Pays for long runs: compiling takes minutes, once a machine.
        precision: the attacker's floating-point type; the client's own is not affected.
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
        priors: Mapping[str, Prior | None] | None = None,
        projections: Mapping[str, Projection | None] | None = None,
        channels: Literal["free", "tied", "auto"] = "free",
        restarts: int = 1,
        rows: int | Literal["auto"] = "auto",
        memory_gb: float | None = None,
        compile: Compiling = False,  # noqa: A002 - the name of the setting
        precision: Literal["float32", "float64"] = "float32",
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
        if compile not in (True, False, "cudagraphs"):
            raise ConfigurationError(f"attack.compile={compile}: choose true, false or cudagraphs")
        if precision not in _DTYPES:
            raise ConfigurationError(f"attack.precision={precision}: choose {' or '.join(_DTYPES)}")
        self.name = name
        self._start = start
        self._labels = labels
        self._distance = distance
        self._optimizer = optimizer
        self._priors = _given(priors)
        self._projections = _given(projections)
        if self._projections and not isinstance(optimizer, Adam):
            raise ConfigurationError(
                f"attack.projections: {type(optimizer).__name__} cannot go on from a point that "
                "was moved. Use medpfl.optim.Adam, or attack.projections=null"
            )
        if channels not in ("free", "tied", "auto"):
            raise ConfigurationError(f"attack.channels={channels}: choose free, tied or auto")
        if channels != "free" and self._projections:
            raise ConfigurationError(
                f"attack.channels={channels}: projections are made for free channels. "
                "Use attack.channels=free, or attack.projections=null"
            )
        self._channels = channels
        self._restarts = restarts
        self._rows = rows
        self._memory_gb = memory_gb
        self._compiling: Compiling = compile
        self._dtype = _DTYPES[precision]
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
        queue = self._queue(chain(ahead, waiting), shared, context, unanswered)
        ended: dict[str, list[Outcome[_Key]]] = defaultdict(list)
        for outcomes in self._scheduler(first, context).ticks(queue):
            yield from _drain(unanswered)
            for outcome in outcomes:
                siblings = ended[outcome.key.observation.victim_id]
                siblings.append(outcome)
                if len(siblings) == self._restarts:
                    del ended[outcome.key.observation.victim_id]
                    yield self._reconstruction(siblings)
        yield from _drain(unanswered)

    def _scheduler(self, first: Observation, context: AttackContext) -> Scheduler[_Key, Targets]:
        memory = memory_for_rows(context.device, self._memory_gb)
        capacity = self._capacity(first, memory, context.device)
        at_once = rows_at_once(first.payload, self._unknowns(first), memory=memory)
        objective = MatchingObjective(
            payload=first.payload,
            unknowns=self._unknowns(first),
            distance=self._distance,
            dtype=self._dtype,
            chunk=min(at_once, capacity),
            priors=self._priors,
            compiling=self._compiling,
        )
        points = self._trace_points
        growth = (self._optimizer.max_steps + 1) ** (1 / points) if points else None
        return Scheduler(
            optimizer=self._projected(self._unknowns(first)),
            objective=objective,
            capacity=capacity,
            snapshot_growth=growth,
            ticked=context.progress,
            profiler=context.profiler,
        )

    def _capacity(self, first: Observation, memory: int, device: torch.device) -> int:
        """Return how many rows to keep side by side, all with victims as large as the first."""
        if self._rows != "auto" and self._memory_gb is None:
            return self._rows
        unknowns, payload = self._unknowns(first), first.payload
        blank = (
            torch.empty(s, device="meta") for s in (unknowns.image_shape, unknowns.label_shape)
        )
        start = unknowns.pack(*blank).to(self._dtype).unsqueeze(0)
        # Every row is counted as if it had its network to itself: twice, once as it came.
        network = sum(t.numel() for t in (*payload.parameters.values(), *payload.buffers.values()))
        entries = start.numel() + 3 * network
        fit = rows_that_fit(
            memory=memory,
            bytes_a_row=bytes_of(self._optimizer.init(start)) + entries * start.element_size(),
            device=device,
        )
        return fit if self._rows == "auto" else min(fit, self._rows)

    def _projected(self, unknowns: Unknowns) -> BatchedOptimizer[Any]:
        """Return the optimiser, with the projections after each of its steps."""
        if isinstance(self._optimizer, Adam) and self._projections:
            return Projected(self._optimizer, ImageProjection(self._projections, unknowns))
        return self._optimizer

    def _unknowns(self, observation: Observation) -> Unknowns:
        if observation.num_examples is None:
            raise ValueError("the number of examples is withheld: call ThreatModel.require first")
        weight, _ = last_linear(observation.payload.model)
        classes = len(observation.payload.parameters[weight])
        spec = observation.spec
        tied = self._channels == "tied" or (self._channels == "auto" and spec.greyscale)
        return Unknowns(
            spec, observation.num_examples, classes, self._labels.joint, tied and spec.shape[0] > 1
        )

    def _queue(
        self,
        observations: Iterable[Observation],
        shared: bool,
        context: AttackContext,
        unanswered: list[Reconstruction],
    ) -> Iterator[Row[_Key, Targets]]:
        """Yield the rows of all victims; hopeless ones go straight to `unanswered`."""
        for observation in observations:
            labels = self._labels.labels(observation)
            keys = [_Key(observation, r, labels) for r in range(self._restarts)]
            starts = [self._timed_first_point(key, context.seed) for key in keys]
            hopeless = self._hopeless(observation)
            if hopeless is not None:
                unanswered.append(self._without_attack(keys[0], starts[0][0], hopeless))
                continue
            target = self._target(observation, labels, shared, context.device)
            for key, (start, seconds) in zip(keys, starts, strict=True):
                yield Row(key, start.to(context.device, self._dtype), target, seconds)

    def _timed_first_point(self, key: _Key, seed: int) -> tuple[Tensor, float]:
        """Return a row's start and the seconds it took: a closed form is part of the attack."""
        began = time.perf_counter()
        return self._first_point(key, seed), time.perf_counter() - began

    def _first_point(self, key: _Key, seed: int) -> Tensor:
        unknowns = self._unknowns(key.observation)
        stream = generator(seed, "start", key.observation.victim_id, key.restart)
        images = self._start(key.observation, unknowns.image_shape, stream)
        return unknowns.pack(images, torch.randn(unknowns.label_shape, generator=stream))

    def _target(
        self, observation: Observation, labels: Tensor | None, shared: bool, device: torch.device
    ) -> Targets:
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
            gradient=SharedRows(flatten(observation.tensors).to(device, self._dtype)),
            labels=probabilities.to(device, self._dtype).unsqueeze(0),
            parameters=flatten(parameters).to(device, self._dtype).unsqueeze(0),
            buffers=flatten(buffers).to(device, self._dtype).unsqueeze(0),
        )

    def _hopeless(self, observation: Observation) -> Status | None:
        """Return why nothing can match an update whose squared norm is zero or not finite.

        Both are judged in the attacker's precision.
        """
        squares = [t.to(self._dtype).square().sum() for t in observation.tensors.values()]
        norm = float(torch.stack(squares).sum())
        if not math.isfinite(norm):
            return Status.NON_FINITE
        return Status.NO_GRADIENT if norm < torch.finfo(self._dtype).tiny else None

    def _without_attack(self, key: _Key, start: Tensor, status: Status) -> Reconstruction:
        """Hand in the start: nothing was sent that could tell one image from another."""
        outcome = Outcome(key, start, math.nan, status, 0, 0, 0.0, ())
        return self._reconstruction([outcome])

    def _reconstruction(self, outcomes: list[Outcome[_Key]]) -> Reconstruction:
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


def _trace(outcome: Outcome[_Key], unknowns: Unknowns) -> Trace | None:
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
