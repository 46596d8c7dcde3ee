"""How long an attack may take on this device, read off one evaluation of its objective."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from medpfl.attacks.base import AttackContext
from medpfl.attacks.stages import Stage
from medpfl.optim import Adam
from medpfl.types import Observation

# The first evaluation also loads what later ones find, and any may be disturbed; a long one hardly
# notices.
_LONG, _TRIES = 0.25, 5


@dataclass(frozen=True)
class Longest:
    """What one victim takes at most.

    Args:
        restarts: independent starts.
        steps: of each, all stages together.
        evaluations: of the objective in these steps, about.
        seconds: of one evaluation of one restart.
        certain: whether every step is always taken, so that no row ends early.
    """

    restarts: int
    steps: int
    evaluations: int
    seconds: float
    certain: bool

    @property
    def total(self) -> float:
        """Seconds of a victim."""
        return self.restarts * self.evaluations * self.seconds


@runtime_checkable
class Timed(Protocol):
    """An attack that can say how long it may take."""

    def evaluations(self) -> int:
        """Return the evaluations of one victim at most, all restarts together, about."""
        ...

    def longest(self, observation: Observation, context: AttackContext) -> Longest:
        """Time one evaluation of the attack on a victim."""
        ...


def steps_of(stages: Sequence[Stage]) -> int:
    """Return the steps of a row at most."""
    return sum(stage.optimizer.max_steps for stage in stages)


def evaluations_of(stages: Sequence[Stage]) -> int:
    """Return the evaluations of a row at most, about."""
    return sum(s.optimizer.max_steps * s.optimizer.evaluations_a_step for s in stages)


def takes_every_step(stages: Sequence[Stage]) -> bool:
    """Tell whether a row always goes on to its last step: Adam knows no end before it."""
    return all(isinstance(stage.optimizer, Adam) for stage in stages)


def seconds_of(evaluate: Callable[[], object]) -> float:
    """Return what an evaluation takes once everything is warm: the least of a few short ones."""
    least = math.inf
    for _ in range(_TRIES):
        began = time.perf_counter()
        evaluate()
        least = min(least, time.perf_counter() - began)
        if least > _LONG:
            break
    return least
