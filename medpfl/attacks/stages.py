"""The passes an attack makes over its rows, each going on from where the one before has ended."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from medpfl.attacks.arrangements import Arrangement
from medpfl.attacks.distances import Distance, LeastSquares
from medpfl.attacks.priors import Prior, SquaredPrior
from medpfl.attacks.starts import Solution
from medpfl.errors import ConfigurationError
from medpfl.optim.base import BatchedOptimizer, SecondOrder
from medpfl.optim.scheduler import Outcome
from medpfl.types import Observation

Precision = Literal["float32", "float64", "mixed"]

_DTYPES = {
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "mixed": (torch.float32, torch.float64),
}


@dataclass(frozen=True)
class Stage:
    """One pass over all rows.

    Args:
        optimizer: moves them.
        dtype: the attacker's precision.
    """

    optimizer: BatchedOptimizer[Any]
    dtype: torch.dtype


@dataclass(frozen=True)
class Lead:
    """Where a restart begins, and what it takes for granted.

    Args:
        arrangement: which labels and which order.
        point: `(D,)` where a short search has ended; None to begin anew.
    """

    arrangement: Arrangement
    point: Tensor | None = None


@dataclass(frozen=True)
class Key:
    """Names a row: one restart of one victim, and how it ended in the stage before.

    Args:
        observation: of the victim.
        restart: counted from 0.
        leads: what restarts take up, one after another and then again from the first.
        before: None in the first stage.
        solution: the image as a closed form gave it, where one did; the row started there.
        spent: evaluations and seconds that finding the leads took.
    """

    observation: Observation
    restart: int
    leads: tuple[Lead, ...]
    before: Outcome[Key] | None = None
    solution: Solution | None = None
    spent: tuple[int, float] = (0, 0.0)

    @property
    def arrangement(self) -> Arrangement:
        """The labels and the order that the restart takes for the truth."""
        return self.leads[self.restart % len(self.leads)].arrangement

    @property
    def point(self) -> Tensor | None:
        """Where the restart begins, if a short search has been there for it."""
        return self.leads[self.restart].point if self.restart < len(self.leads) else None


def stages_of(
    optimizer: BatchedOptimizer[Any], polish: BatchedOptimizer[Any] | None, precision: Precision
) -> tuple[Stage, ...]:
    """Return the first stage and, where there is a polish or precision is mixed, the second."""
    if precision not in _DTYPES:
        raise ConfigurationError(f"attack.precision={precision}: choose {', '.join(_DTYPES)}")
    coarse, fine = _DTYPES[precision]
    first = Stage(optimizer, coarse)
    if polish is None and precision != "mixed":
        return (first,)
    return (first, Stage(polish or optimizer, fine))


def check_curvature(stages: Sequence[Stage], distance: Distance, priors: Sequence[Prior]) -> None:
    """Raise a `ConfigurationError` where an optimiser of second order lacks a sum of squares."""
    for stage in stages:
        name = type(stage.optimizer).__name__
        if not isinstance(stage.optimizer, SecondOrder):
            continue
        if not isinstance(distance, LeastSquares):
            raise ConfigurationError(
                f"attack.distance: {name} needs a sum of squares, which {type(distance).__name__} "
                "is not. Use Cosine, NormalisedError or SquaredError, or medpfl.optim.LBFGS"
            )
        for prior in priors:
            if not isinstance(prior, SquaredPrior):
                raise ConfigurationError(
                    f"attack.priors: {name} needs sums of squares, which {type(prior).__name__} is "
                    "not. Use OutOfRange or attack.priors=null, or medpfl.optim.LBFGS"
                )


def has_curvature(distance: Distance, priors: Sequence[Prior]) -> bool:
    """Say whether an objective is a sum of squares."""
    return isinstance(distance, LeastSquares) and all(isinstance(p, SquaredPrior) for p in priors)


def fitted(stage: Stage, unknowns: int, device: torch.device, memory: int) -> Stage:
    """Return the stage with an optimiser of second order made for rows of D unknowns."""
    if not isinstance(stage.optimizer, SecondOrder):
        return stage
    # The other half is for evaluations.
    optimizer = stage.optimizer.fitted(unknowns, device, memory=memory // 2)
    return replace(stage, optimizer=optimizer)


def shortened(stage: Stage, steps: int) -> Stage:
    """Return the stage with an optimiser that takes so many steps at most."""
    optimizer = copy(stage.optimizer)
    optimizer.max_steps = min(steps, optimizer.max_steps)
    return replace(stage, optimizer=optimizer)


def whole(outcome: Outcome[Key]) -> Outcome[Key]:
    """Return how a row ended with what it took in all of its stages; seconds are carried along."""
    before = outcome.key.before
    if before is None:
        return outcome
    before = whole(before)
    later = (replace(s, step=before.steps + s.step) for s in outcome.snapshots)
    return replace(
        outcome,
        steps=before.steps + outcome.steps,
        evaluations=before.evaluations + outcome.evaluations,
        snapshots=(*before.snapshots, *later),
    )
