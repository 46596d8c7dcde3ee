"""Rows that all have as many negative weights as each other: signs that were dealt out.

Signs that come from drawing or training scatter from row to row, at least about as much as tosses
of a coin. A trap has exactly half of its weights negative (Boenisch et al. 2021), and some jitter
on the weights turns few signs around.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from medpfl.inspection.received import Received
from medpfl.inspection.verdict import Finding

NAME = "balanced_signs"
LEAST_ROWS, LEAST_INPUTS = 32, 128
# 32 rows of tosses go below it once in 1e9 layers; honest layers were measured from 0.46 on.
DISPERSION = 0.15
_MOST_ROWS, _SHARED = 2048, 0.1


def check(received: Received) -> Iterator[Finding]:
    """Yield a finding for every layer whose rows are balanced."""
    for layer in received.layers:
        if layer.rows >= LEAST_ROWS and layer.inputs >= LEAST_INPUTS:
            rows = layer.weight[:_MOST_ROWS]
            found = dispersion(rows)
            if found < DISPERSION and not _alike(rows):
                yield Finding(
                    check=NAME,
                    weight="alarm",
                    where=layer.name,
                    measured={"dispersion": found, "rows": layer.rows},
                    threshold={"dispersion": DISPERSION},
                    why=(
                        "every row has as many negative weights as the others: they were dealt "
                        "out, so that each row is on for few images"
                    ),
                )


def _alike(rows: Tensor) -> bool:
    """Tell whether rows share signs with the next, or have the others: rows along one direction.

    Their numbers of negative weights agree because the rows do.
    """
    same = (rows[1:].sign() == rows[:-1].sign()).float().mean(1)
    return float((same - 0.5).abs().mean()) > _SHARED


def dispersion(weight: Tensor) -> float:
    """Return the variance of the rows' number of negative weights, over that of tosses of a coin.

    Args:
        weight: `(K, D)`; zeros are left out, and so are rows of few other entries.

    Returns:
        About 1 for independent signs; 1 where too few rows are left.
    """
    entries = (weight != 0).sum(1).double()
    kept = entries >= LEAST_INPUTS / 2
    if int(kept.sum()) < LEAST_ROWS:
        return 1.0
    negative, entries = (weight < 0).sum(1).double()[kept], entries[kept]
    rate = negative.sum() / entries.sum()
    expected = entries * rate * (1 - rate)
    if not bool((expected > 0).all()):
        return 1.0
    return float(((negative - entries * rate) ** 2 / expected).mean())
