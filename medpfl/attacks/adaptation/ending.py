"""How a search goes on whose objective is another: when it ends, and what can follow it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.stages import Stage
from medpfl.errors import ConfigurationError
from medpfl.optim import LBFGS, BatchedOptimizer
from medpfl.optim.base import SecondOrder

# In nats a standard deviation of the prior: the posterior is flat to a hundredth of its width.
_FLAT = 0.01


def without_threshold(search: Search) -> Search:
    """Return a search that ends where its objective is flat or out of steps, however high that is.

    Neither a likelihood nor a prior is zero at the true images: no value of theirs says that an
    image was found, nor what the update determines, nor that a start was a bad one, so that no
    second one is made because the first had not ended low. Starts side by side stay.
    """
    stages = tuple(map(_stage, search.stages))
    restarts = search.restarts if search.restart_above is None else 1
    return replace(
        search, stages=stages, determination=False, restart_above=None, restarts=restarts
    )


def fitting(search: Search, parts: Parts, told: Sequence[str]) -> Search:
    """Return a search without stages of second order, where the objective has no such curvature.

    Args:
        search: of an attack.
        parts: whose objective it follows now.
        told: the names of the parts of the defense that made it what it is.

    Raises:
        ConfigurationError: no stage is left.
    """
    if parts.has_curvature:
        return search
    stages = tuple(s for s in search.stages if not isinstance(s.optimizer, SecondOrder))
    if not stages:
        name = type(search.stages[0].optimizer).__name__
        raise ConfigurationError(
            f"attack.optimizer: {name} needs a sum of squares, and an attack that is told of "
            f"{', '.join(told)} follows none. Use "
            "medpfl.optim.LBFGS (attack=scale_free), or leave defense out of threat.knows"
        )
    return replace(search, stages=stages)


def _stage(stage: Stage) -> Stage:
    optimizer: BatchedOptimizer[Any] = copy.copy(stage.optimizer)
    if getattr(optimizer, "objective_below", None) is not None:
        optimizer.objective_below = None  # type: ignore[attr-defined]
    if isinstance(optimizer, LBFGS):
        optimizer.tolerance_grad = _FLAT
    return replace(stage, optimizer=optimizer)
