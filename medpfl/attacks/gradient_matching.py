"""The one gradient-matching attack; DLG, iDLG and CPL are choices of its parts (conf/attack)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

import torch
from torch import Tensor, nn

from medpfl.attacks.base import AttackContext
from medpfl.attacks.distances import Distance
from medpfl.attacks.labels import LabelStrategy
from medpfl.attacks.matching import MatchingObjective, Targets, Unknowns, flatten, rows_at_once
from medpfl.attacks.starts import Start
from medpfl.errors import ConfigurationError
from medpfl.models.structure import last_linear
from medpfl.optim import BatchedOptimizer, RowState
from medpfl.optim.scheduler import Outcome, Row, Scheduler, Snapshot
from medpfl.seeding import generator
from medpfl.types import Observation, Reconstruction, Status, Trace

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
        restarts: independent starts a victim; the one with the lowest objective is handed in.
        rows: rows side by side.
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
        optimizer: BatchedOptimizer[RowState],
        restarts: int = 1,
        rows: int = 64,
        precision: Literal["float32", "float64"] = "float32",
        trace_points: int = 30,
    ) -> None:
        for key, value, least in (
            ("restarts", restarts, 1),
            ("rows", rows, 1),
            ("trace_points", trace_points, 0),
        ):
            if value < least:
                raise ConfigurationError(f"attack.{key}={value}: must be at least {least}")
        if precision not in _DTYPES:
            raise ConfigurationError(f"attack.precision={precision}: choose {' or '.join(_DTYPES)}")
        self.name = name
        self._start = start
        self._labels = labels
        self._distance = distance
        self._optimizer = optimizer
        self._restarts = restarts
        self._rows = rows
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
        for outcome in self._scheduler(first, context).run(queue):
            yield from _drain(unanswered)
            siblings = ended[outcome.key.observation.victim_id]
            siblings.append(outcome)
            if len(siblings) == self._restarts:
                del ended[outcome.key.observation.victim_id]
                yield self._reconstruction(siblings)
        yield from _drain(unanswered)

    def _scheduler(self, first: Observation, context: AttackContext) -> Scheduler[_Key, Targets]:
        objective = MatchingObjective(
            payload=first.payload,
            unknowns=self._unknowns(first),
            distance=self._distance,
            dtype=self._dtype,
            chunk=rows_at_once(first.payload, self._unknowns(first)),
        )
        points = self._trace_points
        growth = (self._optimizer.max_steps + 1) ** (1 / points) if points else None
        return Scheduler(
            optimizer=self._optimizer,
            objective=objective,
            capacity=self._rows,
            snapshot_growth=growth,
            ticked=context.progress,
        )

    def _unknowns(self, observation: Observation) -> Unknowns:
        if observation.num_examples is None:
            raise ValueError("the number of examples is withheld: call ThreatModel.require first")
        weight, _ = last_linear(observation.payload.model)
        classes = len(observation.payload.parameters[weight])
        return Unknowns(observation.spec, observation.num_examples, classes, self._labels.joint)

    def _queue(
        self,
        observations: Iterable[Observation],
        shared: bool,
        context: AttackContext,
        unanswered: list[Reconstruction],
    ) -> Iterator[Row[_Key, Targets]]:
        """Yield the rows of all victims; victims without a gradient go straight to `unanswered`."""
        for observation in observations:
            labels = self._labels.labels(observation)
            keys = [_Key(observation, r, labels) for r in range(self._restarts)]
            starts = [self._first_point(key, context.seed) for key in keys]
            if self._nothing_to_match(observation):
                unanswered.append(self._without_gradient(keys[0], starts[0]))
                continue
            target = self._target(observation, labels, shared, context.device)
            for key, start in zip(keys, starts, strict=True):
                yield Row(key, start.to(context.device, self._dtype), target)

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
        own = {} if shared else observation.payload.parameters
        return Targets(
            gradient=flatten(observation.tensors).to(device, self._dtype).unsqueeze(0),
            labels=probabilities.to(device, self._dtype).unsqueeze(0),
            parameters=flatten(own).to(device, self._dtype).unsqueeze(0),
        )

    def _nothing_to_match(self, observation: Observation) -> bool:
        """Tell whether the update's squared norm is zero in the attacker's precision."""
        squares = [t.to(self._dtype).square().sum() for t in observation.tensors.values()]
        return not float(torch.stack(squares).sum()) >= torch.finfo(self._dtype).tiny

    def _without_gradient(self, key: _Key, start: Tensor) -> Reconstruction:
        """Hand in the start: nothing was sent that could tell one image from another."""
        outcome = Outcome(key, start, math.nan, Status.NO_GRADIENT, 0, 0, 0.0, ())
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
