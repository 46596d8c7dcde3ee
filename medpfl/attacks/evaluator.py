"""Evaluates functions of many rows, as many rows at once as memory takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from medpfl.attacks.compiled import BatchedFunction, Compiled, Compiling
from medpfl.optim.base import Product
from medpfl.optim.capacity import is_out_of_memory
from medpfl.optim.shared_rows import SharedRows

Rows = Tensor | SharedRows
Linearised = Callable[[slice], Product]
"""From some of the rows to the product with their Hessians."""

# The largest block that teaches glibc anything, less its own bookkeeping.
_KEPT_BYTES = 32 * 2**20 - 2**13


class Evaluator:
    """A function of many rows, evaluated chunk by chunk.

    Where memory runs out, chunks are halved for good.

    Args:
        function: takes tensors, and returns tensors with one entry a row.
        rowwise: of each of its arguments, whether it has one entry a row; the others serve all.
        chunk: rows evaluated at once; more are evaluated in turn.
        compiling: how it is compiled.
    """

    def __init__(
        self,
        function: BatchedFunction,
        *,
        rowwise: Sequence[bool],
        chunk: int,
        compiling: Compiling = False,
    ) -> None:
        self._function, self._rowwise = function, tuple(rowwise)
        self._compiling: Compiling = compiling
        self._chunk = chunk
        self._run = self._for_chunks()
        _keep_freed_memory()

    @property
    def chunk(self) -> int:
        """Rows evaluated at once."""
        return self._chunk

    def __call__(self, *arguments: Rows) -> tuple[Tensor, ...]:
        """Return what the function returns; `(B, ...)` each."""
        rows = arguments[self._rowwise.index(True)].shape[0]
        return tuple(map(torch.cat, zip(*self._chunks(arguments, rows), strict=True)))

    def _chunks(self, arguments: Sequence[Rows], rows: int) -> Iterator[tuple[Tensor, ...]]:
        first = 0
        while first < rows:
            # As even as can be: few rows by themselves take as long as many.
            waiting = rows - first
            size = -(-waiting // -(-waiting // self._chunk))
            try:
                results = self._evaluate(arguments, slice(first, first + size))
            except (RuntimeError, MemoryError) as error:
                self._halve(error)
                continue
            yield results
            first += size

    def _evaluate(self, arguments: Sequence[Rows], part: slice) -> tuple[Tensor, ...]:
        pairs = zip(arguments, self._rowwise, strict=True)
        return self._run(*(argument[part] if by_row else argument for argument, by_row in pairs))

    def product(self, linearise: Linearised, rows: int) -> Product:
        """Return the product with rows' Hessians, linearised and multiplied chunk by chunk.

        Args:
            linearise: of some of the rows.
            rows: how many there are.
        """
        whole = linearise(slice(None)) if rows <= self._chunk else None

        def product(vectors: Tensor) -> Tensor:
            nonlocal whole
            while True:
                try:
                    return self._products(whole, linearise, vectors)
                except (RuntimeError, MemoryError) as error:
                    self._halve(error)
                whole = None

        return product

    def _products(self, whole: Product | None, linearise: Linearised, vectors: Tensor) -> Tensor:
        """Multiply `(B, V, D)`; rows that do not fit into one chunk are linearised each time."""
        rows = len(vectors) if whole else self._chunk
        products = []
        for first in range(0, len(vectors), rows):
            part = slice(first, first + rows)
            product = whole or linearise(part)
            pieces = torch.split(vectors[part], max(1, self._chunk // rows), dim=1)
            products.append(torch.cat([product(piece) for piece in pieces], dim=1))
        return torch.cat(products)

    def _halve(self, error: Exception) -> None:
        """Take fewer rows at once from now on.

        Raises:
            Exception: the error itself, where it is another or there is only one row.
        """
        if self._chunk == 1 or not is_out_of_memory(error):
            raise error
        self._chunk //= 2
        self._run = self._for_chunks()

    def _for_chunks(self) -> BatchedFunction:
        if not self._compiling:
            return self._function
        return Compiled(
            self._function,
            rowwise=self._rowwise,
            size=self._chunk,
            cudagraphs=self._compiling == "cudagraphs",
        )


def _keep_freed_memory() -> None:
    """Let go of a block so large that glibc's malloc from now on keeps what it is given back.

    Else it returns the memory of every larger tensor to the system, and gets it anew, page by page
    (measured: thousands of page faults an evaluation, and next to none after this).
    """
    torch.empty(_KEPT_BYTES, dtype=torch.uint8)
