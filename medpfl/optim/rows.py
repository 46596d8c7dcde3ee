"""Tables of rows: dataclasses of tensors whose first axis is the row.

Everything that belongs to a row (an optimiser's state, a victim's target) is kept in such a table,
so that rows can leave and others take their place without anybody knowing the fields.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor


@dataclass
class RowTable:
    """A dataclass whose fields are tensors `(B, ...)` or further row tables."""

    def select(self, index: Tensor) -> Self:
        """Return a new table of the rows named by `index`, an int64 tensor of any length."""
        return type(self)(**{f.name: _select(getattr(self, f.name), index) for f in fields(self)})

    def part(self, rows: slice) -> Self:
        """Return a table of views: what is written to it in place is written here."""
        return type(self)(**{f.name: _part(getattr(self, f.name), rows) for f in fields(self)})

    def join(self, *others: Self) -> Self:
        """Return a new table: these rows, then those of the others."""
        tables = (self, *others)
        return type(self)(
            **{f.name: _join([getattr(t, f.name) for t in tables]) for f in fields(self)}
        )

    def write(self, index: Tensor, other: Self) -> None:
        """Overwrite the rows named by `index` with the rows of `other`, in place."""
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if isinstance(mine, RowTable):
                mine.write(index, theirs)
            else:
                mine.index_copy_(0, index, theirs)


def _select(value: Tensor | RowTable, index: Tensor) -> Tensor | RowTable:
    return value.select(index) if isinstance(value, RowTable) else value.index_select(0, index)


def _part(value: Tensor | RowTable, rows: slice) -> Tensor | RowTable:
    return value.part(rows) if isinstance(value, RowTable) else value[rows]


def _join(values: list[Any]) -> Tensor | RowTable:
    first, *rest = values
    if isinstance(first, RowTable):
        return first.join(*rest)
    return torch.cat(values)


def rowwise(values: Tensor, like: Tensor) -> Tensor:
    """View `(B,)` values so that they broadcast over the trailing axes of `like`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
