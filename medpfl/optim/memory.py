"""The limited memory of L-BFGS for many rows, and the direction that it gives.

With the last m pairs s_i = x_{i+1} - x_i and y_i = g_{i+1} - g_i in order of age, L = the upper
triangle of S'Y and D = its diagonal, the two-loop recursion (Nocedal 1980, p. 779) is two
triangular solves around two products with the pairs:

    L a = -S g,    q = -(g + Y'a),    L' c = D a - h Y q,    d = h q + S'c,

with h the scale of the initial inverse Hessian. Row b of every tensor uses row b alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.optim.rows import RowTable

# A direction takes five passes over half of a row's pairs. The pairs of so few rows stay in a CPU's
# cache after the first one.
_CACHED_BYTES = 10_000_000


@dataclass
class PairMemory(RowTable):
    """A ring buffer of correction pairs a row; M slots, D unknowns.

    Fields:
        s: `(B, M, D)` steps.
        y: `(B, M, D)` gradient changes.
        sy: `(B, M, M)`; entry (i, j) is s_i . y_j, valid where pair i is at least as old as j.
        count: `(B,)` pairs held.
        head: `(B,)` the slot that the next pair takes.
        scale: `(B,)` h = s.y / y.y of the newest pair; 1 where there is none.
    """

    s: Tensor
    y: Tensor
    sy: Tensor
    count: Tensor
    head: Tensor
    scale: Tensor

    @classmethod
    def empty(cls, like: Tensor, *, slots: int) -> PairMemory:
        """Return the memory of rows that have not moved; `like` is `(B, D)`."""
        rows, unknowns = like.shape
        zeros = like.new_zeros
        return cls(
            s=zeros(rows, slots, unknowns),
            y=zeros(rows, slots, unknowns),
            sy=torch.eye(slots, dtype=like.dtype, device=like.device).repeat(rows, 1, 1),
            count=zeros(rows, dtype=torch.int64),
            head=zeros(rows, dtype=torch.int64),
            scale=like.new_ones(rows),
        )

    def cached_parts(self) -> Iterator[slice]:
        """Yield slices of all rows, each few enough for a CPU's cache; all at once elsewhere."""
        rows = len(self.count)
        row_bytes = 2 * self.s[:1].nbytes
        size = max(1, _CACHED_BYTES // max(1, row_bytes)) if self.s.device.type == "cpu" else rows
        return (slice(first, first + size) for first in range(0, rows, size))

    def clear(self, rows: Tensor) -> None:
        """Forget all pairs of the rows of a `(B,)` mask."""
        index = rows.nonzero().squeeze(1)
        if len(index):
            self.write(index, PairMemory.empty(self.s[index, 0], slots=self.s.shape[1]))

    def append(self, rows: Tensor, s: Tensor, y: Tensor, curvature: Tensor) -> None:
        """Store the pairs `(B, D)` of the rows of a `(B,)` mask; `curvature` is s . y, positive."""
        index = rows.nonzero().squeeze(1)
        if not len(index):
            return
        slots = self.s.shape[1]
        head = self.head[index]
        self.s[index, head] = s[index]
        self.y[index, head] = y[index]
        self.count[index] = (self.count[index] + 1).clamp_max(slots)
        used = int(self.count.max())
        column = _times(self.s[:, :used], y)
        self.sy[index, :used, head] = column[index]
        self.head[index] = (head + 1) % slots
        self.scale[index] = (curvature / y.square().sum(1))[index]

    def direction(self, gradient: Tensor) -> Tensor:
        """Return d = -H g, `(B, D)`; steepest descent for rows that hold no pair."""
        used = int(self.count.max())
        scale = self.scale.unsqueeze(1)
        if used == 0:
            return -scale * gradient
        s, y = self.s[:, :used], self.y[:, :used]
        order = self._by_age(used)
        upper = self._sy_by_age(order, used)
        a = -_solve(upper, _times(s, gradient).gather(1, order))
        q = -(gradient + _transposed_times(y, _back(a, order)))
        right = upper.diagonal(dim1=1, dim2=2) * a - scale * _times(y, q).gather(1, order)
        c = _solve(upper.mT, right, upper=False)
        return scale * q + _transposed_times(s, _back(c, order))

    def _by_age(self, used: int) -> Tensor:
        """Return `(B, used)`: the slot of each pair, oldest first; empty slots come last."""
        slots = torch.arange(used, device=self.head.device)
        return (slots + (self.head - self.count).unsqueeze(1)) % used

    def _sy_by_age(self, order: Tensor, used: int) -> Tensor:
        """Return s_i . y_j `(B, used, used)` by age; below the diagonal it means nothing."""
        sy = self.sy[:, :used, :used]
        if not bool((order[:, 0] != 0).any()):
            return sy
        places = order.unsqueeze(2) * used + order.unsqueeze(1)
        return sy.flatten(1).gather(1, places.flatten(1)).view_as(sy)


def _times(pairs: Tensor, vector: Tensor) -> Tensor:
    # The vector on the left: with it on the right, MKL is ten times as slow on a batch.
    return torch.bmm(vector.unsqueeze(1), pairs.mT).squeeze(1)


def _transposed_times(pairs: Tensor, weights: Tensor) -> Tensor:
    return torch.bmm(weights.unsqueeze(1), pairs).squeeze(1)


def _back(values: Tensor, order: Tensor) -> Tensor:
    """Put values sorted by age back into their slots."""
    return torch.empty_like(values).scatter_(1, order, values)


def _solve(triangle: Tensor, right: Tensor, *, upper: bool = True) -> Tensor:
    solution: Tensor = torch.linalg.solve_triangular(triangle, right.unsqueeze(2), upper=upper)
    return solution.squeeze(2)
