"""An optimiser whose points are moved to where they are allowed to be, after every step."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from medpfl.optim.adam import Adam, AdamState


class RowProjection(Protocol):
    """Moves points to allowed ones."""

    def __call__(self, z: Tensor, steps: Tensor) -> Tensor:
        """Return the points `(B, D)` for those of rows that have taken `(B,)` steps."""
        ...


class Projected:
    """Project every row after each step of Adam.

    Adam's state is made of gradients alone, so that a row can be moved and go on; an L-BFGS memory
    is made of moves, and would be wrong.

    Args:
        optimizer: takes the steps.
        projection: see `RowProjection`; row b of its result depends on row b alone.
    """

    def __init__(self, optimizer: Adam, projection: RowProjection) -> None:
        self._optimizer = optimizer
        self._projection = projection
        self.max_steps = optimizer.max_steps
        self.evaluations_a_step = optimizer.evaluations_a_step

    def init(self, z: Tensor) -> AdamState:
        """Start rows at `(B, D)` points, as they are."""
        return self._optimizer.init(z)

    def tell(self, state: AdamState, value: Tensor, gradient: Tensor) -> None:
        """Move and project every running row; see `BatchedOptimizer.tell`."""
        self._optimizer.tell(state, value, gradient)
        projected = self._projection(state.z, state.steps)
        state.z = torch.where(state.running.unsqueeze(1), projected, state.z)
