"""Victims as rows of an optimisation, and rows that have ended as reconstructions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medpfl.attacks.arrangements import Arrangement
from medpfl.attacks.composition import Parts
from medpfl.attacks.determination import LEAST_DETERMINED, rounding
from medpfl.attacks.distances import Distance
from medpfl.attacks.matching import Targets, flatten, float_buffers
from medpfl.attacks.stages import Key, Lead
from medpfl.attacks.starts import Solving
from medpfl.attacks.unknowns import Unknowns
from medpfl.optim.scheduler import Outcome, Row, Snapshot
from medpfl.optim.shared_rows import SharedRows
from medpfl.outcomes import Status
from medpfl.seeding import generator
from medpfl.types import Observation, Reconstruction, Trace

# The rounding is known by its mean square alone.
_NEAR = 1.5
Asked = Callable[[Outcome[Key]], float]


def from_closed_form(outcome: Outcome[Key]) -> float:
    """Return which share of the image a closed form's equations determine; NaN where unknown."""
    solution = outcome.key.solution
    return math.nan if solution is None else solution.determined


def not_asked(outcome: Outcome[Key]) -> float:
    """Return NaN."""
    return math.nan


@dataclass(frozen=True, kw_only=True)
class VictimRows:
    """What a row is: where it starts, what it must match, what is handed in where it ends.

    Args:
        parts: what is compared.
        members: restarts that a row holds; more than one where they are a group.
        shared: whether all rows share one network.
        seed: the run's.
        device: where rows are evaluated.
    """

    parts: Parts
    members: int
    shared: bool
    seed: int
    device: torch.device

    def unknowns(self, observation: Observation) -> Unknowns:
        """Return how the vector of a member is read."""
        return self.parts.unknowns(observation)

    def key(self, observation: Observation) -> Key:
        """Return the name of a victim's first restart."""
        labels = self.parts.labels.labels(self.parts.seen(observation.rounds[0]))
        return Key(observation, 0, (Lead(Arrangement(labels)),))

    def row(self, key: Key, dtype: torch.dtype, target: Targets | None = None) -> Row[Key, Targets]:
        """Return a row at its start; its seconds count: a closed form is part of the attack.

        Args:
            key: names it; of a group, its first member.
            dtype: the precision.
            target: where that of another restart serves, too.
        """
        began = time.perf_counter()
        if isinstance(self.parts.start, Solving) and key.restart == 0:
            # The same for every restart: the others are to begin elsewhere.
            # Of several rounds the first is read, whose network has learnt least.
            key = replace(key, solution=self.parts.start.solve(key.observation.rounds[0]))
        restarts = range(key.restart, key.restart + self.members)
        start = torch.cat([self._first_point(replace(key, restart=r)) for r in restarts])
        seconds = time.perf_counter() - began
        target = self.target(key, dtype) if target is None else target
        return Row(key, start.to(self.device, dtype), target, seconds)

    def target(self, key: Key, dtype: torch.dtype) -> Targets:
        """Return what a row must match."""
        observation, labels = key.observation, key.arrangement.labels
        unknowns = self.unknowns(observation)
        classes = unknowns.classes
        probabilities = (
            torch.full(unknowns.label_shape, 1 / classes)
            if labels is None
            else nn.functional.one_hot(labels, classes).repeat(unknowns.images // len(labels), 1)
        )
        order = key.arrangement.order
        order = torch.zeros(0, dtype=torch.int64) if order is None else order
        rounds = observation.rounds
        own = () if self.shared else tuple(seen.payload for seen in rounds)
        parameters = self._joined([payload.parameters for payload in own], dtype)
        buffers = self._joined([float_buffers(payload) for payload in own], dtype)
        return Targets(
            gradient=SharedRows(self._joined([seen.tensors for seen in rounds], dtype)),
            labels=probabilities.to(self.device, dtype).unsqueeze(0),
            parameters=parameters.unsqueeze(0),
            buffers=buffers.unsqueeze(0),
            order=order.to(self.device).unsqueeze(0),
        )

    def _joined(self, rounds: Sequence[Mapping[str, Tensor]], dtype: torch.dtype) -> Tensor:
        """Return the entries of all rounds, one round after another; `(0,)` of none."""
        parts = [flatten(tensors).to(self.device, dtype) for tensors in rounds]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype, device=self.device)

    def untouched(self, key: Key, status: Status) -> Reconstruction:
        """Hand in the start: nothing was sent that could tell one image from another."""
        start = self._first_point(key)
        return self.reconstruction([Outcome(key, start, math.nan, status, 0, 0, 0.0, ())])

    def solved(self, row: Row[Key, Targets], objective: float) -> Reconstruction:
        """Hand in the start of a row: a closed form whose image no search would change."""
        ended = Outcome(
            row.key, row.start.cpu(), objective, Status.CONVERGED, 0, 1, row.seconds, snapshots=()
        )
        return self.reconstruction([ended])

    def reconstruction(
        self,
        outcomes: Sequence[Outcome[Key]],
        determined: Asked = from_closed_form,
        unexplained: Asked = not_asked,
        *,
        compared: bool = False,
    ) -> Reconstruction:
        """Hand in the restart of lowest objective; work is that of all of them.

        Args:
            outcomes: one a restart.
            determined: says which share of the unknowns the update determines.
            unexplained: says what is left of the objective, relative to a blank image's.
            compared: whether the second best restart is handed in beside the best.
        """
        best, *others = sorted(outcomes, key=lambda o: (math.isnan(o.objective), o.objective))
        began = time.perf_counter()
        share, left = determined(best), unexplained(best)
        asked = time.perf_counter() - began
        observation, (evaluations, seconds) = best.key.observation, best.key.spent
        unknowns = self.unknowns(observation)
        images, scores = unknowns.unpack(best.z)
        labels = best.key.arrangement.labels if scores is None else scores.argmax(1)
        if labels is None:
            raise ValueError("labels are neither known nor optimised")
        return Reconstruction(
            capture_id=observation.capture_id,
            inputs=_pixels(observation, self._handed_in(observation, images)),
            labels=labels.cpu(),
            objective=best.objective,
            status=_status(best, share, self.parts.distance),
            steps=best.steps,
            evaluations=sum(o.evaluations for o in outcomes) + evaluations,
            seconds=sum(o.seconds for o in outcomes) + seconds + asked,
            trace=self._trace(best),
            closed_form=best.key.solution is not None,
            unknowns=unknowns.count,
            determined=share,
            unexplained=left,
            runner_up=self._runner_up(best, others) if compared else None,
        )

    def _handed_in(self, observation: Observation, inputs_norm: Tensor) -> Tensor:
        count = observation.num_examples
        return inputs_norm if count is None else self.parts.handed_in(inputs_norm, count)

    def _trace(self, outcome: Outcome[Key]) -> Trace | None:
        if not outcome.snapshots:
            return None
        observation = outcome.key.observation
        unknowns = self.unknowns(observation)
        # The last point of a trace is the one handed in.
        points = [*outcome.snapshots, Snapshot(outcome.steps, outcome.objective, outcome.z)]
        images = [self._handed_in(observation, unknowns.unpack(s.z)[0]) for s in points]
        return Trace(
            steps=torch.tensor([s.step for s in points]),
            objective=torch.tensor([s.objective for s in points], dtype=torch.float64),
            inputs=torch.stack([_pixels(observation, i) for i in images]),
        )

    def _runner_up(self, best: Outcome[Key], others: Sequence[Outcome[Key]]) -> Tensor | None:
        """Return the images of the second best restart; None where there is no other.

        Restarts that end in the same bits have begun in the same: theirs is one search, made twice.
        """
        observation = best.key.observation
        unknowns = self.unknowns(observation)
        for other in others:
            if math.isfinite(other.objective) and not torch.equal(other.z, best.z):
                images = self._handed_in(observation, unknowns.unpack(other.z)[0])
                return _pixels(observation, images)
        return None

    def _first_point(self, key: Key) -> Tensor:
        if key.point is not None:
            return key.point
        unknowns = self.unknowns(key.observation)
        stream = generator(self.seed, "start", key.observation.capture_id, key.restart)
        solution = key.solution if key.restart == 0 else None
        if solution is not None:
            images = solution.image.unsqueeze(0)
        elif isinstance(self.parts.start, Solving):
            images = self.parts.start.draw(key.observation, unknowns.image_shape, stream)
        else:
            images = self.parts.start(key.observation, unknowns.image_shape, stream)
        scores = torch.randn(unknowns.label_shape, generator=stream)
        return unknowns.pack(images, scores, solved=solution is not None)


def _status(outcome: Outcome[Key], determined: float, distance: Distance) -> Status:
    """Return why a row ended; one whose update leaves the image open has not converged.

    Whatever is left of the distance to a difference of weights may be these weights' rounding: then
    the row has converged, however it ended.
    """
    status, observation = outcome.status, outcome.key.observation
    of_weights = observation.weights_rounding > 0
    if of_weights and status in (Status.STALLED, Status.OUT_OF_STEPS):
        at_the_end = outcome.objective <= _NEAR * rounding(distance, observation)
        status = Status.CONVERGED if at_the_end else status
    if status is Status.CONVERGED and determined < LEAST_DETERMINED:
        return Status.UNDETERMINED
    return status


def hopeless(observation: Observation, dtype: torch.dtype) -> Status | None:
    """Return why nothing can match an update whose squared norm is zero or not finite, in dtype."""
    squares = [t.to(dtype).square().sum() for t in observation.tensors.values()]
    norm = float(torch.stack(squares).sum())
    if not math.isfinite(norm):
        return Status.NON_FINITE
    return Status.NO_GRADIENT if norm < torch.finfo(dtype).tiny else None


def members_of(outcome: Outcome[Key], values: Sequence[float]) -> list[Outcome[Key]]:
    """Return how each member of a group ended, as if it had been a restart by itself.

    Args:
        outcome: of the group.
        values: the members' own objectives, at the group's best point.
    """
    count = len(values)
    points = [s.z.chunk(count) for s in outcome.snapshots]
    return [
        replace(
            outcome,
            key=replace(outcome.key, restart=outcome.key.restart + member),
            z=z,
            objective=value,
            evaluations=outcome.evaluations + 1,  # its own objective is one more
            seconds=outcome.seconds / count,
            snapshots=tuple(
                # Of single members nothing is known on the way: the mean stands for each.
                Snapshot(s.step, s.objective / count, point[member])
                for s, point in zip(outcome.snapshots, points, strict=True)
            ),
        )
        for member, (z, value) in enumerate(zip(outcome.z.chunk(count), values, strict=True))
    ]


def _pixels(observation: Observation, inputs_norm: Tensor) -> Tensor:
    return observation.spec.denormalise(inputs_norm.float()).clamp(0, 1)
