"""How a search goes on whose objective is another: when it ends, and what can follow it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.stages import Stage
from medpfl.errors import ConfigurationError
from medpfl.optim import BatchedOptimizer
from medpfl.optim.base import SecondOrder


def without_threshold(search: Search) -> Search:
    """Return a search that ends at rest or out of steps, and makes no start over.

    A likelihood is not zero at the true images, nor is a prior: no value of theirs says that an
    image was found, or that a start was a bad one. Starts that are asked for side by side stay.
    """
    stages = tuple(_stage(stage) for stage in search.stages)
    above = None if search.restart_above is None else math.inf
    return replace(search, stages=stages, restart_above=above, determination=False)


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
    if getattr(stage.optimizer, "objective_below", None) is None:
        return stage
    optimizer: BatchedOptimizer[Any] = copy.copy(stage.optimizer)
    optimizer.objective_below = None  # type: ignore[attr-defined]
    return replace(stage, optimizer=optimizer)
