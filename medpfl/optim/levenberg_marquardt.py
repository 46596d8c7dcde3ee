"""Levenberg-Marquardt on many rows at once: second order, for objectives that are sums of squares.

At an iterate the residual is replaced by its linearisation, so that the objective f becomes the
quadratic f + g.h + h.Hh / 2 with the Gauss-Newton Hessian H = 2 J'J. Its minimiser, held back by a
damping, is the next trial point: one evaluation, one tick, one *step*.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from torch import Tensor

from medpfl.optim.base import (
    CONVERGED,
    NON_FINITE,
    OUT_OF_STEPS,
    STALLED,
    Curvature,
    RowState,
    beginning,
    require,
)
from medpfl.optim.damped import Multiply, conjugate_gradients, factorised, of_one_vector
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range, Steps, Tolerance

# H of a row takes 34 MB (CPU) and 1.2 GB (GPU) in float64 there. Conjugate gradients are faster a
# step from some 500 unknowns on, but crawl where H is as good as singular, and that is where second
# order is needed. A GPU makes the D products of a row side by side.
_DENSE_UP_TO = {"cpu": 2_048, "cuda": 12_288}
_COPIES = 3  # of a row's H while rows enter, leave and move
_LARGEST_FALL = 0.1  # of the damping in one step


@dataclass
class LevenbergMarquardtState(RowState):
    """State of B rows with D unknowns; see `RowState` for the shared fields.

    Fields:
        x: `(B, D)` the iterate; `z` is the trial point.
        f: `(B,)` the objective there.
        g: `(B, D)` its gradient there.
        damping: `(B,)` what is added to H's diagonal; 0 before the first step.
        growth: `(B,)` by what the damping grows should the trial point be worse.
        promised: `(B,)` the fall of the objective that the quadratic promises at `z`.
        moved: `(B,)` bool; whether H is to be formed anew.
        hessian: `(B, D, D)`; `(B, 0, 0)` where only products with it are used.
    """

    x: Tensor
    f: Tensor
    g: Tensor
    damping: Tensor
    growth: Tensor
    promised: Tensor
    moved: Tensor
    hessian: Tensor


@checked("attack.optimizer")
class LevenbergMarquardt:
    """Minimise B independent sums of squares (Levenberg 1944; damping by Nielsen 1999, Eq. 2.4).

    Args:
        max_steps: steps after which a row ends as out of steps.
        damping: the first damping, relative to H's curvature along the gradient; positive. Large
            where starts are poor: the first steps are then short and along the gradient.
        solver: ``dense`` forms H and factorises it, exact and D times the work of a product;
            ``cg`` solves by conjugate gradients on products with H, whose memory is a few vectors;
            ``auto`` is dense up to 2048 unknowns on a CPU and 12288 on a GPU, where memory allows.
        cg_steps: products a step at most, with ``cg``.
        cg_tolerance: ``cg`` ends where its residual is this fraction of the gradient; in (0, 1).
        objective_below: a row has converged where its objective is below this; None never stops
            for that.
        tolerance_change: a row has stalled where a step lowers its objective by no more than this
            fraction of it; not negative.

    Notes:
        A step is one evaluation, and with ``cg`` up to `cg_steps` products besides, each of which
        takes about two evaluations' time; a row's count of evaluations leaves them out.
    """

    def __init__(
        self,
        *,
        max_steps: Steps = 100,
        damping: Annotated[float, Range(0, 1e18, "(]")] = 1e-3,
        solver: Literal["auto", "dense", "cg"] = "auto",
        cg_steps: Annotated[int, Range(1, 100_000)] = 200,
        cg_tolerance: Annotated[float, Range(0, 1, "()")] = 0.1,
        objective_below: Tolerance | None = None,
        tolerance_change: Tolerance = 1e-6,
    ) -> None:
        require(solver in ("auto", "dense", "cg"), "solver", solver, "choose auto, dense or cg")
        self.max_steps = max_steps
        self.evaluations_a_step = 1 + cg_steps  # a product costs about as much
        self.damping = damping
        self.solver = solver
        self.cg_steps = cg_steps
        self.cg_tolerance = cg_tolerance
        self.objective_below = objective_below
        self.tolerance_change = tolerance_change

    def fitted(self, unknowns: int, device: torch.device, *, memory: int) -> Self:
        """Return this optimiser with its solver settled; see `SecondOrder.fitted`."""
        settled = copy.copy(self)
        if self.solver == "auto":
            fits = _COPIES * 8 * unknowns**2 <= memory
            settled.solver = "dense" if fits and self._is_dense(unknowns, device) else "cg"
        return settled

    def _is_dense(self, unknowns: int, device: torch.device) -> bool:
        """Say whether H is formed for rows of D unknowns."""
        if self.solver == "auto":
            return unknowns <= _DENSE_UP_TO.get(device.type, _DENSE_UP_TO["cpu"])
        return self.solver == "dense"

    def init(self, z: Tensor) -> LevenbergMarquardtState:
        """Start rows at `(B, D)` points."""
        rows, unknowns = z.shape
        size = unknowns if self._is_dense(unknowns, z.device) else 0
        zero = z.new_zeros(rows)
        return LevenbergMarquardtState(
            **beginning(z),
            x=z.clone(),
            f=torch.full_like(zero, torch.inf),
            g=torch.zeros_like(z),
            damping=zero.clone(),
            growth=torch.full_like(zero, 2.0),
            promised=zero.clone(),
            moved=torch.ones_like(zero, dtype=torch.bool),
            hessian=z.new_zeros(rows, size, size),
        )

    def tell(self, state: LevenbergMarquardtState, value: Tensor, gradient: Tensor) -> None:
        """Accept or refuse every running row's trial point; see `BatchedOptimizer.tell`."""
        # A trial point that is not finite is one refused; a start that is not ends its row.
        lost = (state.evaluations > 0) & ~(value.isfinite() & gradient.isfinite().all(1))
        value = torch.where(lost, state.f, value)
        gradient = torch.where(lost.unsqueeze(1), state.g, gradient)
        state.note_evaluation(value, gradient)
        judged = state.running & (state.evaluations > 1)
        state.steps += judged
        better = state.running & (value < state.f)
        self._adapt_damping(state, judged, value)
        state.moved = torch.where(state.running, better, state.moved)
        stalled = judged & better & (state.f - value <= self.tolerance_change * state.f)
        mask = better.unsqueeze(1)
        state.x = torch.where(mask, state.z, state.x)
        state.g = torch.where(mask, gradient, state.g)
        state.f = torch.where(better, value, state.f)
        if self.objective_below is not None:
            state.finish(state.f < self.objective_below, CONVERGED)
        state.finish((state.g == 0).all(1), CONVERGED)
        state.finish(stalled, STALLED)
        state.finish(state.steps >= self.max_steps, OUT_OF_STEPS)

    def _adapt_damping(self, state: LevenbergMarquardtState, rows: Tensor, value: Tensor) -> None:
        """Trust the quadratic more where it kept its promise, less where it did not."""
        gain = (state.f - value) / state.promised
        kept = gain > 0
        fall = (1 - (2 * gain - 1) ** 3).clamp_min(_LARGEST_FALL)
        factor = torch.where(kept, fall, state.growth)
        growth = torch.where(kept, 2.0, 2 * state.growth)
        state.damping = torch.where(rows, state.damping * factor, state.damping)
        state.growth = torch.where(rows, growth, state.growth)

    def turn(self, state: LevenbergMarquardtState, curvature: Curvature) -> None:
        """Choose the next trial point of every running row; see `SecondOrder.turn`."""
        running = state.running.nonzero().flatten()
        if not len(running):
            return
        x, g = state.x[running], state.g[running]
        dense = state.hessian.shape[1] > 0
        if dense:
            self._form_hessians(state, curvature)
            hessians = _matrices(state.hessian[running])
        else:
            hessians = of_one_vector(curvature(x, running))
        damping = self._damping(state, running, hessians)
        if dense:
            step, damping = factorised(state.hessian, running, g, damping)
        else:
            step = conjugate_gradients(
                hessians, g, damping, tolerance=self.cg_tolerance, max_steps=self.cg_steps
            )
        broken = torch.zeros_like(state.running)
        broken[running] = ~step.isfinite().all(1)
        state.finish(broken, NON_FINITE)
        state.damping[running] = damping
        state.promised[running] = (step * (damping.unsqueeze(1) * step - g)).sum(1) / 2
        state.z[running] = x + step
        unmoved = torch.zeros_like(state.running)
        unmoved[running] = (x + step == x).all(1)
        state.finish(unmoved, STALLED)

    def _damping(
        self, state: LevenbergMarquardtState, running: Tensor, hessians: Multiply
    ) -> Tensor:
        """Return the damping `(b,)` of rows; of new ones, relative to g.Hg / g.g."""
        damping = state.damping[running]
        if bool((damping > 0).all()):
            return damping
        unit = state.g[running] / state.g[running].norm(dim=1, keepdim=True)
        along = (unit * hessians(unit)).sum(1)
        first = (self.damping * along).clamp_min(torch.finfo(along.dtype).tiny)
        return torch.where(damping > 0, damping, first)

    def _form_hessians(self, state: LevenbergMarquardtState, curvature: Curvature) -> None:
        """Multiply H with every unit vector, row after row: J itself would take far more memory."""
        unknowns = state.z.shape[1]
        units = torch.eye(unknowns, dtype=state.z.dtype, device=state.z.device).unsqueeze(0)
        for row in (state.running & state.moved).nonzero().flatten():
            place = row.unsqueeze(0)
            state.hessian[row] = curvature(state.x[place], place)(units)[0]


def _matrices(hessians: Tensor) -> Multiply:
    return lambda vectors: (hessians @ vectors.unsqueeze(2)).squeeze(2)
