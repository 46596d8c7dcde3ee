"""An evaluation of many rows, compiled for a few numbers of rows.

Compiled code is kept in the inductor's own cache between runs: the folder that
``TORCHINDUCTOR_CACHE_DIR`` names, else ``torchinductor_<user>`` in the system's folder for
temporary files. The first run of a network and a number of rows takes a minute or so more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from medpfl.optim.capacity import is_out_of_memory

Compiling = bool | Literal["cudagraphs"]
BatchedFunction = Callable[..., tuple[Tensor, ...]]

_log = logging.getLogger(__name__)

# The other number of rows that is compiled for, relative to the largest: the last rows of a queue
# would else take as long as all.
_FRACTION = 8


class Compiled:
    """A function of many rows, run as compiled code where this machine can compile.

    Every number of rows is padded up to one of two, so that it is compiled twice at most. Where
    compiling fails (no C++ compiler, no Triton), one warning is logged and the function itself runs
    from then on.

    Args:
        function: takes tensors and returns tensors with one entry a row.
        rowwise: of each argument, whether it has one entry a row; the others serve all rows.
        size: the largest number of rows.
        cudagraphs: whether the code is replayed as a CUDA graph (``mode="reduce-overhead"``).
    """

    def __init__(
        self, function: BatchedFunction, *, rowwise: Sequence[bool], size: int, cudagraphs: bool
    ) -> None:
        self._function = function
        self._rowwise = tuple(rowwise)
        self._sizes = sorted({max(1, size // _FRACTION), size})
        self._graphs = cudagraphs
        self._compiled: BatchedFunction | None = None
        self._failed = False

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Return what the function returns; `(B, ...)` each."""
        if self._failed:
            return self._function(*arguments)
        try:
            return self._run(arguments)
        except (RuntimeError, OSError, ImportError, SyntaxError) as error:
            if is_out_of_memory(error):
                raise
            self._failed = True
            # An error of the function itself comes again below, and is not hidden.
            result = self._function(*arguments)
            _log.warning(
                "attack.compile: this machine cannot compile the attack, which now runs without "
                "(%s: %s)",
                type(error).__name__,
                (str(error).strip() or "no message").splitlines()[0],
            )
            return result

    def _run(self, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self._compiled is None:
            mode = "reduce-overhead" if self._graphs else None
            self._compiled = torch.compile(self._function, dynamic=False, mode=mode)
        rows = len(arguments[self._rowwise.index(True)])
        size = next((size for size in self._sizes if size >= rows), rows)
        padded = (
            _padded(argument, size) if by_row else argument
            for argument, by_row in zip(arguments, self._rowwise, strict=True)
        )
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        results = self._compiled(*padded)
        # A CUDA graph writes its next results over these.
        return tuple(r[:rows].clone() if self._graphs else r[:rows] for r in results)


def _padded(rows: Tensor, size: int) -> Tensor:
    """Repeat the last row up to a size; contiguous, for other strides would be compiled anew."""
    missing = size - len(rows)
    if missing == 0:
        return rows.contiguous()
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
