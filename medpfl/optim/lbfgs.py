"""Limited-memory BFGS on many rows at once, with the semantics of ``torch.optim.LBFGS`` a row.

One *step* is one call of ``torch.optim.LBFGS.step``: at most `max_iter` iterations and `max_eval`
evaluations, ended early by the tolerances. A row goes through its steps on its own clock: at every
tick each running row uses one evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from medpfl.optim.base import CONVERGED, OUT_OF_STEPS, STALLED, RowState, beginning, require
from medpfl.optim.line_search import WolfeSearch
from medpfl.optim.memory import PairMemory
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range, Rate, Steps, Tolerance

# torch.optim.LBFGS keeps a pair only where s.y exceeds this; scale-free, s.y / |s||y|.
_CURVATURE_FLOOR = 1e-10


@dataclass
class LBFGSState(RowState):
    """State of B rows with D unknowns; see `RowState` for the shared fields.

    Fields:
        x: `(B, D)` the iterate; differs from `z` only during a line search.
        d: `(B, D)` the last direction.
        t: `(B,)` the last step length.
        g: `(B, D)` the gradient from which the last direction was made (``prev_flat_grad``).
        f: `(B,)` the objective there (``prev_loss``).
        slope: `(B,)` g . d.
        iterations: `(B,)` iterations since the memory was empty (``n_iter``).
        inner: `(B,)` iterations in this step.
        inner_evaluations: `(B,)` evaluations in this step (``current_evals``).
        memory: the correction pairs.
        search: the line search under way; unused rows hold zeros.
    """

    x: Tensor
    d: Tensor
    t: Tensor
    g: Tensor
    f: Tensor
    slope: Tensor
    iterations: Tensor
    inner: Tensor
    inner_evaluations: Tensor
    memory: PairMemory
    search: WolfeSearch


@checked("attack.optimizer")
class LBFGS:
    """Minimise B independent objectives by limited-memory BFGS (Liu and Nocedal 1989, Alg. 2.1).

    Args:
        lr: step length of every iteration, or the first trial of the line search; positive.
        max_steps: steps after which a row ends as out of steps.
        max_iter: iterations in a step.
        max_eval: evaluations in a step; 1.25 x `max_iter` where None.
        history: correction pairs kept.
        tolerance_grad: a row has converged where the largest entry of its gradient is at most this.
        tolerance_change: a step ends early where the move or the change of the objective is below.
        line_search: ``None`` or ``strong_wolfe``.
        objective_below: a row has converged where, after a step whose number is a multiple of
            `check_every`, its objective is below this; None never stops for that.
        check_every: see `objective_below`.
        on_stall: ``stop`` ends a row that can move no further; ``reset`` first lets it forget its
            pairs and start again along the gradient, and ends it where that does not help.
        scale_free: whether thresholds are relative, so that multiplying the objective by a number
            changes nothing. torch drops pairs with s.y <= 1e-10, which is all of them once an
            objective of 1e-7 is near its minimum, and its first step shrinks with the gradient.

    Notes:
        ``torch.optim.LBFGS`` evaluates a point again at the start of the next step; here the values
        already known are used, so that a row needs fewer evaluations for the same iterates. A row
        whose next steps would all leave it in place ends (converged, stalled) instead of idling.
    """

    def __init__(
        self,
        *,
        lr: Rate = 1.0,
        max_steps: Steps = 300,
        max_iter: Steps = 20,
        max_eval: Steps | None = None,
        history: Annotated[int, Range(1, 100_000)] = 100,
        tolerance_grad: Tolerance = 1e-7,
        tolerance_change: Tolerance = 1e-9,
        line_search: Literal["strong_wolfe"] | None = None,
        objective_below: Tolerance | None = None,
        check_every: Steps = 1,
        on_stall: Literal["stop", "reset"] = "stop",
        scale_free: bool = False,
    ) -> None:
        known = line_search in (None, "strong_wolfe")
        require(known, "line_search", line_search, "choose null or strong_wolfe")
        require(on_stall in ("stop", "reset"), "on_stall", on_stall, "choose stop or reset")
        self.lr = lr
        self.max_steps = max_steps
        self.max_iter = max_iter
        self.evaluations_a_step = max_iter * 5 // 4  # line searches mostly take the first point
        self.max_eval = max_iter * 5 // 4 if max_eval is None else max_eval
        self.history = history
        self.tolerance_grad = tolerance_grad
        self.tolerance_change = tolerance_change
        self.line_search = line_search
        self.objective_below = objective_below
        self.check_every = check_every
        self.on_stall = on_stall
        self.scale_free = scale_free

    def init(self, z: Tensor) -> LBFGSState:
        """Start rows at `(B, D)` points."""
        rows = len(z)
        count = z.new_zeros(rows, dtype=torch.int64)
        zero = z.new_zeros(rows)
        return LBFGSState(
            **beginning(z),
            x=z.clone(),
            d=torch.zeros_like(z),
            t=zero.clone(),
            g=torch.zeros_like(z),
            f=zero.clone(),
            slope=zero.clone(),
            iterations=count.clone(),
            inner=count.clone(),
            inner_evaluations=count.clone(),
            memory=PairMemory.empty(z, slots=self.history),
            search=WolfeSearch.idle(z if self.line_search else z[:, :0]),
        )

    def tell(self, state: LBFGSState, value: Tensor, gradient: Tensor) -> None:
        """Move every running row to its next point; see `BatchedOptimizer.tell`."""
        state.note_evaluation(value, gradient)
        state.inner_evaluations += state.running
        if self.line_search is None:
            arrived = state.running
        else:
            arrived = self._search(state, value, gradient)
            searched = arrived & (state.inner > 0)
            value = torch.where(searched, state.search.accepted_f, value)
            gradient = torch.where(searched.unsqueeze(1), state.search.accepted_g, gradient)
        moved = arrived & (state.inner > 0)
        self._end_step(state, moved & self._step_is_over(state, value, gradient))
        starting = arrived & state.running & (state.inner == 0)
        state.finish(starting & self._has_converged(state, value, gradient), CONVERGED)
        state.inner_evaluations[starting] = 1
        self._iterate(state, arrived & state.running, value, gradient)

    def _search(self, state: LBFGSState, value: Tensor, gradient: Tensor) -> Tensor:
        """Feed the line searches; return which rows stand at an iterate and want a direction."""
        over = state.search.advance(state, value, gradient)
        state.t = torch.where(over, state.search.trial, state.t)
        state.x = torch.where(over.unsqueeze(1), state.x + state.t.unsqueeze(1) * state.d, state.x)
        along = torch.where(state.search.searching, state.search.trial, 0.0).unsqueeze(1)
        state.z = state.x + along * state.d
        # A search that comes back to its start would come back to it for ever.
        self._handle_stuck(state, over & (state.t == 0))
        return state.running & ~state.search.searching

    def _has_converged(self, state: LBFGSState, value: Tensor, gradient: Tensor) -> Tensor:
        flat = gradient.abs().amax(1) <= self.tolerance_grad
        if self.objective_below is None:
            return flat
        checked = (state.steps > 0) & (state.steps % self.check_every == 0)
        return flat | (checked & (value < self.objective_below))

    def _step_is_over(self, state: LBFGSState, value: Tensor, gradient: Tensor) -> Tensor:
        """Return which rows leave ``torch.optim.LBFGS.step`` at the point just evaluated."""
        move = (state.d.abs().amax(1) * state.t).abs()
        return (
            (state.inner >= self.max_iter)
            | (state.inner_evaluations >= self.max_eval)
            | (gradient.abs().amax(1) <= self.tolerance_grad)
            | (move <= self.tolerance_change)
            | ((value - state.f).abs() < self.tolerance_change)
        )

    def _end_step(self, state: LBFGSState, rows: Tensor) -> None:
        state.steps += rows
        state.inner[rows] = 0
        state.finish(rows & (state.steps >= self.max_steps), OUT_OF_STEPS)

    def _iterate(self, state: LBFGSState, rows: Tensor, value: Tensor, gradient: Tensor) -> None:
        """Make one direction and move along it: the body of torch's loop, for a mask of rows."""
        if not bool(rows.any()):
            return
        mask = rows.unsqueeze(1)
        first = state.iterations == 0
        direction = self._direction(state, rows, gradient)
        state.iterations += rows
        state.inner += rows
        state.d = torch.where(mask, direction, state.d)
        state.g = torch.where(mask, gradient, state.g)
        state.f = torch.where(rows, value, state.f)
        gentle = 1 / gradient.abs().sum(1)
        if not self.scale_free:
            gentle = gentle.clamp_max(1.0)
        length = torch.where(first, gentle, torch.ones_like(gentle)) * self.lr
        state.t = torch.where(rows, length, state.t)
        state.slope = torch.where(rows, (gradient * direction).sum(1), state.slope)
        stuck = rows & (state.slope > -self.tolerance_change)
        self._handle_stuck(state, stuck)
        self._move(state, rows & ~stuck, value, gradient)

    def _direction(self, state: LBFGSState, rows: Tensor, gradient: Tensor) -> Tensor:
        """Remember the move just made, and return the next directions of a mask of rows."""
        y = gradient - state.g
        s = state.d * state.t.unsqueeze(1)
        curvature = (s * y).sum(1)
        floor = _CURVATURE_FLOOR * (s.norm(dim=1) * y.norm(dim=1) if self.scale_free else 1.0)
        kept = rows & (state.iterations > 0) & (curvature > floor)
        direction = torch.zeros_like(gradient)
        for part in state.memory.cached_parts():
            if bool(rows[part].any()):
                memory = state.memory.part(part)
                memory.append(kept[part], s[part], y[part], curvature[part])
                direction[part] = memory.direction(gradient[part])
        return direction

    def _handle_stuck(self, state: LBFGSState, rows: Tensor) -> None:
        """End rows whose direction does not descend: every later step would find the same."""
        if self.on_stall == "reset":
            again = rows & (state.memory.count > 0)
            state.memory.clear(again)
            state.iterations[again] = 0
            rows = rows & ~again
        state.steps += rows
        state.finish(rows, STALLED)

    def _move(self, state: LBFGSState, rows: Tensor, value: Tensor, gradient: Tensor) -> None:
        mask = rows.unsqueeze(1)
        target = state.x + state.t.unsqueeze(1) * state.d
        state.z = torch.where(mask, target, state.z)
        if self.line_search is None:
            state.x = torch.where(mask, target, state.x)
            # torch leaves a step after its last iteration without looking at the new point.
            self._end_step(state, rows & (state.inner >= self.max_iter))
        else:
            budget = self.max_eval - state.inner_evaluations
            state.search.begin(rows, state, value, gradient, budget)
