"""A column of a row table whose rows may be one and the same tensor."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from medpfl.optim.rows import RowTable


class SharedRows(RowTable):
    """Rows held by reference: the restarts of a victim share its gradient instead of copying it.

    The gradient of ResNet-18 is 47 MB in float32; with 8 restarts, copies would take 374 MB.

    Args:
        rows: B tensors of one shape `(...)`; left unchanged.
    """

    def __init__(self, *rows: Tensor) -> None:
        self._rows = list(rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(B, ...)`."""
        return (len(self._rows), *(self._rows[0].shape if self._rows else ()))

    def __getitem__(self, part: slice) -> Tensor:
        """Return some rows `(b, ...)`; a view where they are one tensor, else a copy."""
        rows = self._rows[part]
        if all(row is rows[0] for row in rows):
            return rows[0].expand(len(rows), *rows[0].shape)
        return torch.stack(rows)

    def columns(self, part: slice) -> Self:
        """Return some entries of every row; rows that were one tensor stay one."""
        views = {id(row): row[part] for row in self._rows}
        return type(self)(*(views[id(row)] for row in self._rows))

    def select(self, index: Tensor) -> Self:
        """See `RowTable.select`."""
        return type(self)(*(self._rows[i] for i in index.tolist()))

    def join(self, *others: Self) -> Self:
        """See `RowTable.join`."""
        return type(self)(*self._rows, *(row for other in others for row in other._rows))

    def write(self, index: Tensor, other: Self) -> None:
        """See `RowTable.write`."""
        for place, row in zip(index.tolist(), other._rows, strict=True):
            self._rows[place] = row
