"""Adam on many rows at once, with the semantics of ``torch.optim.Adam`` a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from medpfl.optim.base import OUT_OF_STEPS, RowState, beginning, require
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range, Rate, Steps


@dataclass
class AdamState(RowState):
    """State of B rows with D unknowns; see `RowState` for the shared fields.

    Fields:
        m: `(B, D)` decaying mean of the gradients (``exp_avg``).
        v: `(B, D)` decaying mean of their squares (``exp_avg_sq``).
    """

    m: Tensor
    v: Tensor


@checked("attack.optimizer")
class Adam:
    """Minimise B independent objectives by Adam (Kingma and Ba 2015, Alg. 1).

    Args:
        lr: step length before the first milestone; positive.
        max_steps: steps after which a row ends as out of steps; one evaluation each.
        betas: decay of the means of the gradients and of their squares, each in [0, 1).
        eps: added to the root of the second mean; not negative.
        signed: give Adam the sign of the gradient (Geiping et al. 2020).
        milestones: steps after which the step length is multiplied by `gamma`; below 1, as a
            fraction of `max_steps`.
        gamma: see `milestones`; positive.
    """

    def __init__(
        self,
        *,
        lr: Rate,
        max_steps: Steps,
        betas: Sequence[Annotated[float, Range(0, 1, "[)")]] = (0.9, 0.999),
        eps: Annotated[float, Range(0, 1)] = 1e-8,
        signed: bool = False,
        milestones: Sequence[Annotated[float, Range(0, 10_000_000, "(]")]] = (),
        gamma: Rate = 0.1,
    ) -> None:
        require(len(betas) == 2, "betas", betas, "must be two numbers")
        self.lr = lr
        self.max_steps = max_steps
        self.evaluations_a_step = 1
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.signed = signed
        self.milestones = tuple(int(m * max_steps) if m < 1 else int(m) for m in milestones)
        self.gamma = gamma

    def init(self, z: Tensor) -> AdamState:
        """Start rows at `(B, D)` points."""
        return AdamState(
            **beginning(z),
            m=torch.zeros_like(z),
            v=torch.zeros_like(z),
        )

    def tell(self, state: AdamState, value: Tensor, gradient: Tensor) -> None:
        """Move every running row by one step; see `BatchedOptimizer.tell`."""
        state.note_evaluation(value, gradient)
        moving = state.running
        mask = moving.unsqueeze(1)
        if self.signed:
            gradient = gradient.sign()
        lr = self.learning_rate(state.steps)
        state.steps += moving
        beta1, beta2 = self.betas
        state.m = torch.where(mask, state.m.lerp(gradient, 1 - beta1), state.m)
        squares = beta2 * state.v + (1 - beta2) * gradient.square()
        state.v = torch.where(mask, squares, state.v)
        # float64: 1 - beta ** steps would lose its digits at the first steps
        first, second = (1 - beta ** state.steps.double() for beta in self.betas)
        length = (lr / first).to(state.z.dtype).unsqueeze(1)
        root = second.sqrt().to(state.z.dtype).unsqueeze(1)
        target = state.z - length * state.m / (state.v.sqrt() / root + self.eps)
        state.z = torch.where(mask, target, state.z)
        state.finish(state.steps >= self.max_steps, OUT_OF_STEPS)

    def learning_rate(self, steps: Tensor) -> Tensor:
        """Return the float64 step length of rows that have taken `(B,)` steps."""
        milestones = torch.tensor(self.milestones, device=steps.device)
        passed = (steps.unsqueeze(1) >= milestones).sum(1)
        return self.lr * torch.full_like(steps, self.gamma, dtype=torch.float64) ** passed
