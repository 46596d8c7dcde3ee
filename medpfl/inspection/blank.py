"""Rows that are zero, with thresholds for them beside: an imprint that is measured elsewhere.

A row of zeros is on for no image more than for another, unless something else is added to what it
says. Layers that begin at zero are honest; none has a ladder of as many numbers as rows with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from medpfl.inspection.received import Received, is_statistic
from medpfl.inspection.repeated import LEAST_INPUTS, LEAST_ROWS, REGULAR, regularity
from medpfl.inspection.verdict import Finding

NAME = "blank_rows"


def check(received: Received) -> Iterator[Finding]:
    """Yield a finding for every such layer, of several parameters or one."""
    blank: dict[int, list[str]] = {}
    rows: dict[int, int] = {}
    for layer in received.layers:
        if layer.is_linear and layer.inputs >= LEAST_INPUTS and not bool(layer.weight.any()):
            blank.setdefault(layer.inputs, []).append(layer.name)
            rows[layer.inputs] = rows.get(layer.inputs, 0) + layer.rows
    for inputs, names in blank.items():
        if rows[inputs] < LEAST_ROWS:
            continue
        for name, regular in _ladders(received, rows[inputs]):
            yield Finding(
                check=NAME,
                weight="alarm",
                where=", ".join(names[:3]),
                measured={"rows": rows[inputs], "inputs": inputs, "regularity": regular},
                threshold={"rows": LEAST_ROWS, "regularity": REGULAR},
                why=(
                    f"rows of zeros, and thresholds for as many in {name}: which rows an image "
                    "switches on is measured beside them, and their gradients are the images"
                ),
            )
            break


def _ladders(received: Received, rows: int) -> Iterator[tuple[str, float]]:
    for name, tensor in (*received.parameters.items(), *received.buffers.items()):
        if tensor.shape == (rows,) and tensor.is_floating_point() and not is_statistic(name):
            found = regularity(tensor.detach())
            if found >= REGULAR:
                yield name, found
