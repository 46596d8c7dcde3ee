"""A strong Wolfe line search for many rows, one evaluation a row and tick.

The algorithm is Nocedal and Wright 2006, Alg. 3.5 (bracketing) and 3.6 (zoom) with cubic
interpolation, in the order of decisions of ``torch.optim.lbfgs._strong_wolfe``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medpfl.optim.rows import RowTable, rowwise

if TYPE_CHECKING:
    from medpfl.optim.lbfgs import LBFGSState

_SUFFICIENT_DECREASE = 1e-4  # c1
_CURVATURE = 0.9  # c2
_SMALLEST_BRACKET = 1e-9
_IDLE, _BRACKETING, _ZOOMING = range(3)


@dataclass
class WolfeSearch(RowTable):
    """Searches under way; phi(t) is the objective along the row's direction.

    Fields:
        stage: `(B,)` idle, bracketing or zooming.
        trial: `(B,)` t now being evaluated.
        used: `(B,)` trials evaluated after the first (``ls_iter``).
        budget: `(B,)` the most of them (``max_ls``).
        t, f, slope: `(B, 2)` ends of the bracket; while bracketing, [1] is the previous trial.
        g: `(B, 2, D)` gradients there.
        f0, slope0, width: `(B,)` phi(0), phi'(0), the largest entry of the direction.
        lagging: `(B,)` bool; the last trial hugged an end of the bracket.
        accepted_f: `(B,)`, accepted_g: `(B, D)`: the outcome of the last search.
    """

    stage: Tensor
    trial: Tensor
    used: Tensor
    budget: Tensor
    t: Tensor
    f: Tensor
    slope: Tensor
    g: Tensor
    f0: Tensor
    slope0: Tensor
    width: Tensor
    lagging: Tensor
    accepted_f: Tensor
    accepted_g: Tensor

    @classmethod
    def idle(cls, like: Tensor) -> WolfeSearch:
        """Return the table of rows that are not searching; `like` is `(B, D)`."""
        rows, unknowns = like.shape
        scalar, pair = like.new_zeros(rows), like.new_zeros(rows, 2)
        count = like.new_zeros(rows, dtype=torch.int64)
        return cls(
            stage=count.clone(),
            trial=scalar.clone(),
            used=count.clone(),
            budget=count.clone(),
            t=pair.clone(),
            f=pair.clone(),
            slope=pair.clone(),
            g=like.new_zeros(rows, 2, unknowns),
            f0=scalar.clone(),
            slope0=scalar.clone(),
            width=scalar.clone(),
            lagging=torch.zeros_like(count, dtype=torch.bool),
            accepted_f=scalar.clone(),
            accepted_g=torch.zeros_like(like),
        )

    @property
    def searching(self) -> Tensor:
        """`(B,)` bool."""
        return self.stage != _IDLE

    def begin(
        self, rows: Tensor, state: LBFGSState, value: Tensor, gradient: Tensor, budget: Tensor
    ) -> None:
        """Start the rows of a mask at t = `state.t` along `state.d`, from the point `state.x`."""
        self.stage[rows] = _BRACKETING
        self.trial = torch.where(rows, state.t, self.trial)
        self.used[rows] = 0
        self.budget = torch.where(rows, budget, self.budget)
        self.f0 = torch.where(rows, value, self.f0)
        self.slope0 = torch.where(rows, state.slope, self.slope0)
        self.width = torch.where(rows, state.d.abs().amax(1), self.width)
        self._put(rows, 1, torch.zeros_like(value), value, gradient, state.slope)

    def advance(self, state: LBFGSState, value: Tensor, gradient: Tensor) -> Tensor:
        """Take phi and its gradient at the trials; return the `(B,)` mask of searches now over.

        Rows that go on have their next trial in `trial`; rows that are over have theirs in
        `trial`, `accepted_f` and `accepted_g`.
        """
        slope = (gradient * state.d).sum(1)
        bracketing = state.running & (self.stage == _BRACKETING)
        zooming = state.running & (self.stage == _ZOOMING)
        over = self._bracket(bracketing, value, gradient, slope, state.g)
        over |= self._zoom(zooming, value, gradient, slope)
        over |= self._next_zoom_trial(state.running & ~over & (self.stage == _ZOOMING))
        self.stage[over] = _IDLE
        return over

    def _bracket(
        self, rows: Tensor, value: Tensor, gradient: Tensor, slope: Tensor, gradient0: Tensor
    ) -> Tensor:
        spent = rows & (self.used >= self.budget)
        rows = rows & ~spent
        rising = value > self.f0 + _SUFFICIENT_DECREASE * self.trial * self.slope0
        rising |= (self.used > 1) & (value >= self.f[:, 1])
        good = rows & ~rising & (slope.abs() <= -_CURVATURE * self.slope0)
        found = rows & ~good & (rising | (slope >= 0))
        self._accept(good, value, gradient, self.trial)
        # The bracket is [previous trial, this trial]: the previous one moves to place 0.
        for field in (self.t, self.f, self.slope, self.g):
            field[:, 0] = torch.where(rowwise(found, field[:, 0]), field[:, 1], field[:, 0])
        # A search without budget compares the start with the last trial.
        zero = torch.zeros_like(value)
        self._put(spent, 0, zero, self.f0, gradient0, self.slope0)
        extrapolated = self._extrapolate(value, slope)
        self._put(rows & ~good | spent, 1, self.trial, value, gradient, slope)
        self.stage[found] = _ZOOMING
        self.lagging[found] = False
        more = rows & ~good & ~found
        self.trial = torch.where(more, extrapolated, self.trial)
        self.used += more
        self._accept_lower_end(spent)
        return good | spent

    def _extrapolate(self, value: Tensor, slope: Tensor) -> Tensor:
        low = self.trial + 0.01 * (self.trial - self.t[:, 1])
        previous = (self.t[:, 1], self.f[:, 1], self.slope[:, 1])
        return _cubic_minimum(previous, (self.trial, value, slope), low, self.trial * 10)

    def _zoom(self, rows: Tensor, value: Tensor, gradient: Tensor, slope: Tensor) -> Tensor:
        """Put the trial just evaluated into the bracket; return which rows are done."""
        low = self._lower_end()
        low_f, low_t, high_t = (_pick(self.f, low), _pick(self.t, low), _pick(self.t, 1 - low))
        worse = value > self.f0 + _SUFFICIENT_DECREASE * self.trial * self.slope0
        worse |= value >= low_f
        done = rows & ~worse & (slope.abs() <= -_CURVATURE * self.slope0)
        flip = rows & ~worse & ~done & (slope * (high_t - low_t) >= 0)
        for place in (0, 1):
            # The old low end becomes the high end where the minimum lies between it and the trial.
            turned = flip & (low != place)
            for field in (self.t, self.f, self.slope, self.g):
                other = field[:, 1 - place]
                field[:, place] = torch.where(rowwise(turned, other), other, field[:, place])
        for place in (0, 1):
            replaced = rows & torch.where(worse, low != place, low == place)
            self._put(replaced, place, self.trial, value, gradient, slope)
        self._accept(done, value, gradient, self.trial)
        return done

    def _next_zoom_trial(self, rows: Tensor) -> Tensor:
        """Choose the next trial inside the bracket; return which rows must take its lower end."""
        left, right = self.t.amin(1), self.t.amax(1)
        over = rows & (
            (self.used >= self.budget) | ((right - left) * self.width < _SMALLEST_BRACKET)
        )
        self._accept_lower_end(over)
        rows = rows & ~over
        ends = [(self.t[:, i], self.f[:, i], self.slope[:, i]) for i in (0, 1)]
        trial = _cubic_minimum(ends[0], ends[1], left, right)
        margin = 0.1 * (right - left)
        hugging = torch.minimum(right - trial, trial - left) < margin
        pushed = hugging & (self.lagging | (trial >= right) | (trial <= left))
        nearer_right = (trial - right).abs() < (trial - left).abs()
        trial = torch.where(pushed, torch.where(nearer_right, right - margin, left + margin), trial)
        self.trial = torch.where(rows, trial, self.trial)
        self.lagging = torch.where(rows, hugging & ~pushed, self.lagging)
        self.used += rows
        return over

    def _lower_end(self) -> Tensor:
        """`(B,)` 0 or 1: the end of the bracket with the lower objective."""
        return (self.f[:, 0] > self.f[:, 1]).long()

    def _accept_lower_end(self, rows: Tensor) -> None:
        low = self._lower_end()
        self._accept(rows, _pick(self.f, low), _pick(self.g, low), _pick(self.t, low))

    def _accept(self, rows: Tensor, value: Tensor, gradient: Tensor, t: Tensor) -> None:
        self.trial = torch.where(rows, t, self.trial)
        self.accepted_f = torch.where(rows, value, self.accepted_f)
        self.accepted_g = torch.where(rows.unsqueeze(1), gradient, self.accepted_g)

    def _put(
        self, rows: Tensor, place: int, t: Tensor, f: Tensor, g: Tensor, slope: Tensor
    ) -> None:
        self.t[:, place] = torch.where(rows, t, self.t[:, place])
        self.f[:, place] = torch.where(rows, f, self.f[:, place])
        self.slope[:, place] = torch.where(rows, slope, self.slope[:, place])
        self.g[:, place] = torch.where(rows.unsqueeze(1), g, self.g[:, place])


def _pick(ends: Tensor, place: Tensor) -> Tensor:
    return ends[torch.arange(len(ends), device=ends.device), place]


_End = tuple[Tensor, Tensor, Tensor]


def _cubic_minimum(first: _End, second: _End, low: Tensor, high: Tensor) -> Tensor:
    """Return the minimum of the cubic through two ends (t, f, slope), clipped to [low, high].

    Nocedal and Wright 2006, Eq. 3.59; the middle of the interval where the cubic has no minimum.
    """
    (t1, f1, s1), (t2, f2, s2) = first, second
    d1 = s1 + s2 - 3 * (f1 - f2) / (t1 - t2)
    discriminant = d1.square() - s1 * s2
    d2 = discriminant.clamp_min(0).sqrt()
    forward = t2 - (t2 - t1) * ((s2 + d2 - d1) / (s2 - s1 + 2 * d2))
    backward = t1 - (t1 - t2) * ((s1 + d2 - d1) / (s1 - s2 + 2 * d2))
    minimum = torch.where(t1 <= t2, forward, backward)
    inside = torch.minimum(torch.maximum(minimum, low), high)
    return torch.where(discriminant >= 0, inside, (low + high) / 2)
