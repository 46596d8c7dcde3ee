"""What an attack by gradient matching is made of: parts, search, machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from medpfl.attacks.arrangements import Arrangements
from medpfl.attacks.compiled import Compiling
from medpfl.attacks.distances import Distance
from medpfl.attacks.epochs import SeparateEpochs
from medpfl.attacks.image_prior import ImageGaussian
from medpfl.attacks.labels import LabelStrategy
from medpfl.attacks.priors import Prior
from medpfl.attacks.projection import ImageProjection, ParticularProjection, Projection
from medpfl.attacks.reading import update_map_of
from medpfl.attacks.stages import Stage, has_curvature
from medpfl.attacks.starts import Start
from medpfl.attacks.surrogate import Surrogate
from medpfl.attacks.unknowns import Unknowns
from medpfl.errors import ConfigurationError
from medpfl.models.structure import last_linear
from medpfl.optim import Adam, BatchedOptimizer
from medpfl.optim.capacity import bytes_of, memory_for_rows, rows_that_fit
from medpfl.optim.projected import Projected
from medpfl.training import Gradient, UpdateMap, mean_gradient
from medpfl.types import DataSpec, Observation, ServerPayload

Channels = Literal["free", "tied", "auto"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is compared, and with what: the mathematics of an attack.

    Args:
        start: draws the first dummy.
        labels: how the labels are known.
        distance: between the dummy's update and the observed one.
        priors: terms added to the distance.
        projections: what is done to the images after every step.
        channels: whether a pixel's channels are one unknown; see `GradientMatching`.
        boxed: whether pixels are sigmoids of the unknowns.
        epochs: whether each of a client's epochs is searched for by itself; None: one set of
            images serves all of them.
        surrogate: at which network the dummy's gradient is taken; None: at the one sent.
        likely: what images are like, see `Unknowns`.
        gradient: what each of the client's steps is thought to follow.
    """

    start: Start
    labels: LabelStrategy
    distance: Distance
    priors: tuple[Prior, ...]
    projections: tuple[Projection, ...]
    channels: Channels
    boxed: bool
    epochs: SeparateEpochs | None = None
    surrogate: Surrogate | None = None
    likely: ImageGaussian | None = None
    gradient: Gradient = mean_gradient

    @property
    def has_curvature(self) -> bool:
        """Whether the objective is a sum of squares."""
        return has_curvature(self.distance, self.priors)

    def unknowns(self, observation: Observation) -> Unknowns:
        """Return how the vector of one restart is read."""
        if observation.num_examples is None:
            raise ValueError("the number of examples is withheld: call ThreatModel.require first")
        weight, _ = last_linear(observation.payload.model)
        spec = observation.spec
        return Unknowns(
            spec,
            observation.num_examples * self.copies(observation),
            len(observation.payload.parameters[weight]),
            self.labels.joint,
            tied=self.ties(spec),
            boxed=self.boxed,
            surrogate=self.surrogate,
            likely=self.likely,
        )

    def copies(self, observation: Observation) -> int:
        """Return how many times each image is searched for."""
        return 1 if self.epochs is None else self.epochs.epochs(observation)

    def update_map(self, observation: Observation) -> UpdateMap:
        """Return the function from what is searched for to the update."""
        if self.surrogate is not None:
            return self.surrogate.update(observation)
        if self.epochs is not None:
            return self.epochs.update_map(observation)
        return update_map_of(observation)

    def priors_of(self, copies: int, spec: DataSpec) -> tuple[Prior, ...]:
        """Return the terms for so many copies of the images, what holds them together last."""
        if self.epochs is None or copies == 1:
            return self.priors
        return (*self.priors, self.epochs.prior(copies, spec))

    def handed_in(self, inputs_norm: Tensor, count: int) -> Tensor:
        """Return the N images that `count` says, of all their copies."""
        return inputs_norm if self.epochs is None else self.epochs.together(inputs_norm, count)

    def seen(self, observation: Observation) -> Observation:
        """Return an update as that of the network at which its gradient is first taken."""
        return observation if self.surrogate is None else self.surrogate.seen(observation)

    def ties(self, spec: DataSpec) -> bool:
        """Say whether the channels of a pixel are one unknown."""
        tied = self.channels == "tied" or (self.channels == "auto" and spec.greyscale)
        return tied and spec.shape[0] > 1

    def pixels(self, spec: DataSpec) -> int:
        """Return the number of unknowns of an image."""
        return math.prod(spec.shape[1:]) * (1 if self.ties(spec) else spec.shape[0])

    def check_data(self, spec: DataSpec) -> None:
        """Raise a `ConfigurationError` where a part does not go with such data."""
        for projection in self.projections:
            if isinstance(projection, ParticularProjection):
                projection.check(spec)

    def check_sum(self) -> None:
        """Raise a `ConfigurationError` where a part reads differences of one client's weights."""
        named = {"epochs": self.epochs, "surrogate": self.surrogate}
        for name, part in named.items():
            if part is not None:
                raise ConfigurationError(
                    f"attack.{name}: {type(part).__name__} follows the weights of one client, and "
                    "under threat.aggregation=secure the server sees the mean over several, each "
                    f"trained on its own. Set attack.{name}=null, or use attack=scale_free"
                )

    def projected(
        self, optimizer: BatchedOptimizer[Any], unknowns: Unknowns, members: int
    ) -> BatchedOptimizer[Any]:
        """Return the optimiser, with the projections after each of its steps."""
        if isinstance(optimizer, Adam) and self.projections:
            return Projected(optimizer, ImageProjection(self.projections, unknowns, members))
        return optimizer


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the unknowns are looked for.

    Args:
        stages: the passes over all rows.
        restarts: independent starts an update.
        restart_above: the next restart is made only where no objective so far is this low.
        group_consistency: weight of the pull of restarts towards their mean, which makes them one
            row; None keeps them apart.
        determination: whether rows that end converged are asked how much of their images the
            update determines.
        trace_points: intermediate reconstructions kept an update, about.
        arrangements: what is done where it is not known which image is behind which step; None
            takes the images in turn, with the labels as they were counted.
    """

    stages: tuple[Stage, ...]
    restarts: int
    restart_above: float | None
    group_consistency: float | None
    determination: bool
    trace_points: int
    arrangements: Arrangements | None = None

    @property
    def members(self) -> int:
        """Restarts that a row holds."""
        return 1 if self.group_consistency is None else self.restarts

    @property
    def side_by_side(self) -> int:
        """Restarts that are made at once; the others follow one after another."""
        return self.restarts if self.restart_above is None else 1

    def suffices(self, objectives: list[float]) -> bool:
        """Say whether an update needs no restart beyond those that have ended."""
        if len(objectives) == self.restarts:
            return True
        if self.restart_above is None:
            return False
        return any(objective <= self.restart_above for objective in objectives)

    def compares(self, objectives: list[float]) -> bool:
        """Say whether an update's restarts can speak for each other.

        Not where each was made as those before it had failed, nor where they were pulled together.
        """
        above = self.restart_above
        found = above is not None and any(o <= above for o in objectives)
        return self.members == 1 and not found

    def snapshot_growth(self, stage: Stage) -> float | None:
        """Return the factor between two steps of a stage that are kept; None keeps none."""
        points = self.trace_points / len(self.stages)
        growth: float | None = (stage.optimizer.max_steps + 1) ** (1 / points) if points else None
        return growth


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How much is computed at once.

    Args:
        rows: rows side by side; ``auto``: as many as memory takes.
        memory_gb: what rows and their evaluation may take, in 10^9 bytes, or None.
        compiling: how evaluations are compiled.
    """

    rows: int | Literal["auto"]
    memory_gb: float | None
    compiling: Compiling

    def memory(self, device: torch.device) -> int:
        """Return the bytes for rows and their evaluation."""
        return memory_for_rows(device, self.memory_gb)

    def capacity(
        self,
        stage: Stage,
        payloads: Sequence[ServerPayload],
        unknowns: int,
        *,
        memory: int,
        at_once: int,
        device: torch.device,
    ) -> int:
        """Return how many rows to keep side by side.

        Args:
            stage: what moves them.
            payloads: a row's networks, one a round that it must explain.
            unknowns: of a row.
            memory: bytes for all of them.
            at_once: how many are evaluated together.
            device: where.
        """
        if self.rows != "auto" and self.memory_gb is None:
            return self.rows
        start = torch.empty(1, unknowns, dtype=stage.dtype, device="meta")
        # Every row is counted as if it had its network to itself: twice, once as it came.
        tensors = (t for p in payloads for t in (*p.parameters.values(), *p.buffers.values()))
        network = sum(tensor.numel() for tensor in tensors)
        entries = start.numel() + 3 * network
        fit = rows_that_fit(
            memory=memory,
            bytes_a_row=bytes_of(stage.optimizer.init(start)) + entries * start.element_size(),
            device=device,
            at_once=at_once,
        )
        return fit if self.rows == "auto" else min(fit, self.rows)
