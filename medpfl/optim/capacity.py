"""How much memory there is, how many rows fit into it, and what running out of it looks like."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

import torch

from medpfl.errors import ConfigurationError
from medpfl.optim.base import BatchedOptimizer, SecondOrder
from medpfl.optim.rows import RowTable

# More rows make a CPU no faster, and a run that is killed loses all that are under way.
_MOST_ROWS_ON_CPU = 64
# Fewer leave the optimiser's own work, which is done for all rows together, dear.
_FEWEST_ROWS_ON_CPU = 8
# A row's tensors, and their copies while rows enter, leave and move.
_COPIES = 3
_UNKNOWN_MACHINE = 4_000_000_000
_FAULTS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def bytes_of(table: RowTable) -> int:
    """Return what the tensors of a table take, or would take where they are on `meta`."""
    values = [getattr(table, f.name) for f in fields(table)]
    return sum(bytes_of(v) if isinstance(v, RowTable) else v.nbytes for v in values)


def rows_that_fit(
    *, memory: int, bytes_a_row: int, device: torch.device, at_once: int | None = None
) -> int:
    """Return how many rows to keep side by side, at least 1.

    Args:
        memory: bytes for rows and their evaluation; each gets half.
        bytes_a_row: what a row holds: the optimiser's history, its target, its start.
        device: where; a CPU gains nothing from more than 64.
        at_once: rows that are evaluated together at most, or None. On a CPU half as many fill it
            as well (measured: 8, 17 and 40 rows of the 7-layer network take the same time), and
            the first image is there so much earlier.
    """
    rows = memory // 2 // max(1, _COPIES * bytes_a_row)
    if device.type != "cuda":
        enough = _MOST_ROWS_ON_CPU if at_once is None else max(_FEWEST_ROWS_ON_CPU, at_once // 2)
        rows = min(rows, enough, _MOST_ROWS_ON_CPU)
    return max(1, rows)


def memory_for_rows(device: torch.device, memory_gb: float | None) -> int:
    """Return the bytes that rows and their evaluation may take.

    Args:
        device: where the attacker computes.
        memory_gb: an upper bound in 10^9 bytes, positive, or None.

    Returns:
        What CUDA reports as free, or half of a CPU's memory, and at most the bound. Not what a CPU
        has free at the moment: the same run then takes the same rows, whatever runs beside it.
    """
    if memory_gb is not None and not memory_gb > 0:
        raise ConfigurationError(f"attack.memory_gb={memory_gb}: must be positive, or null")
    if device.type == "cuda":
        available, _ = torch.cuda.mem_get_info(device)
    else:
        available = machine_memory() // 2
    return available if memory_gb is None else min(available, int(memory_gb * 1e9))


def check_row(
    optimizer: BatchedOptimizer[Any], unknowns: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse an optimiser whose state of a single row is larger than the device's memory.

    Args:
        optimizer: as configured.
        unknowns: D of the row.
        dtype: the attacker's precision.
        device: where the attacker computes.

    Raises:
        ConfigurationError: names both amounts.
    """
    there = machine_memory()
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    if isinstance(optimizer, SecondOrder):
        optimizer = optimizer.fitted(unknowns, device, memory=there // 2)
    try:
        needed = bytes_of(optimizer.init(torch.empty(1, unknowns, dtype=dtype, device="meta")))
    except RuntimeError:  # an optimiser of one's own may look at its points, and these have none
        return
    if needed > there:
        history = getattr(optimizer, "history", None)
        remedy = "" if history is None else f"attack.optimizer.history below {history}, or "
        raise ConfigurationError(
            f"attack.optimizer: {type(optimizer).__name__} takes {needed / 1e9:,.0f} GB for a row "
            f"of {unknowns:,} unknowns, {device} has {there / 1e9:,.0f} GB: choose {remedy}a "
            "smaller preprocess.size or federation.batch_size"
        )


def machine_memory() -> int:
    """Return the bytes of the machine's memory, whoever uses them."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such function, or name, on this system
        return _UNKNOWN_MACHINE


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error means that memory has run out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(fault in str(error) for fault in _FAULTS)
