"""What every batched optimiser shares: a row's status, counters and best point.

Optimisers are driven by ask and tell. `state.z` is the point where each row wants its objective
evaluated; `tell` takes the values and gradients there and moves every running row on. One
evaluation of all rows is a tick; rows are at different places of their algorithms at the same tick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor

from medpfl.errors import ConfigurationError
from medpfl.optim.rows import RowTable
from medpfl.outcomes import Status

RUNNING = 0
_ENDED = (
    Status.CONVERGED,
    Status.STALLED,
    Status.OUT_OF_STEPS,
    Status.NON_FINITE,
)
CONVERGED, STALLED, OUT_OF_STEPS, NON_FINITE = range(1, 5)


def status_of(code: int) -> Status:
    """Return the status that a row's code stands for; ValueError for a row still running."""
    if code == RUNNING:
        raise ValueError("the row is still running and has no final status")
    return _ENDED[code - 1]


@dataclass
class RowState(RowTable):
    """The part of an optimiser's state that the scheduler reads; D unknowns a row.

    Fields:
        z: `(B, D)` the points to evaluate next.
        code: `(B,)` int64; 0 while running, else why the row ended.
        steps: `(B,)` optimiser steps finished.
        evaluations: `(B,)` evaluations told so far.
        best_z: `(B, D)` the point with the lowest objective so far.
        best_value: `(B,)` its objective; infinity before the first evaluation.
    """

    z: Tensor
    code: Tensor
    steps: Tensor
    evaluations: Tensor
    best_z: Tensor
    best_value: Tensor

    @property
    def running(self) -> Tensor:
        """`(B,)` bool."""
        return self.code == RUNNING

    def finish(self, rows: Tensor, code: int) -> None:
        """End the running rows of a `(B,)` mask with a code."""
        self.code[rows & self.running] = code

    def note_evaluation(self, value: Tensor, gradient: Tensor) -> None:
        """Count the evaluation, keep the best point, and end rows that are not finite."""
        running = self.running
        self.evaluations += running
        finite = value.isfinite() & gradient.isfinite().all(dim=1)
        better = running & finite & (value < self.best_value)
        self.best_value = torch.where(better, value, self.best_value)
        self.best_z[better] = self.z[better]
        self.finish(~finite, NON_FINITE)


def beginning(z: Tensor) -> dict[str, Tensor]:
    """Return the fields of `RowState` for rows that start at `(B, D)` points."""
    count = z.new_zeros(len(z), dtype=torch.int64)
    return {
        "z": z.clone(),
        "code": count.clone(),
        "steps": count.clone(),
        "evaluations": count.clone(),
        "best_z": z.clone(),
        "best_value": z.new_full((len(z),), torch.inf),
    }


def require(fine: bool, name: str, value: object, rule: str) -> None:
    """Raise a `ConfigurationError` that names an optimiser's setting, where it is not fine."""
    if not fine:
        raise ConfigurationError(f"attack.optimizer.{name}={value}: {rule}")


StateT = TypeVar("StateT", bound=RowState)


class BatchedOptimizer(Protocol[StateT]):
    """An optimiser that moves many independent rows at once."""

    max_steps: int
    """Steps after which a row ends as out of steps."""

    @property
    def evaluations_a_step(self) -> int:
        """Evaluations in a step, about; products with a Hessian count as such."""
        ...

    def init(self, z: Tensor) -> StateT:
        """Start rows at `(B, D)` points."""
        ...

    def tell(self, state: StateT, value: Tensor, gradient: Tensor) -> None:
        """Move every running row on, in place, given `(B,)` values and `(B, D)` gradients."""
        ...


class Product(Protocol):
    """Multiplies vectors with the Gauss-Newton Hessians of rows' objectives, at fixed points."""

    def __call__(self, vectors: Tensor, /) -> Tensor:
        """Return `(b, V, D)`: each row's Hessian times its V vectors, of `(b, V, D)`."""
        ...


class Curvature(Protocol):
    """Says how rows' objectives, sums of squares, are curved."""

    def __call__(self, z: Tensor, rows: Tensor) -> Product:
        """Linearise the residuals of some rows.

        Args:
            z: `(b, D)` the points where.
            rows: `(b,)` int64, the rows' places in the state.
        """
        ...


@runtime_checkable
class SecondOrder(BatchedOptimizer[StateT], Protocol[StateT]):
    """An optimiser that also wants to know how objectives are curved, tick by tick after `tell`."""

    def fitted(self, unknowns: int, device: torch.device, *, memory: int) -> Self:
        """Return the optimiser as it is for rows of D unknowns, within some bytes of memory."""
        ...

    def turn(self, state: StateT, curvature: Curvature) -> None:
        """Choose the next point of every running row, in place."""
        ...
