"""Parameters that are no numbers, or beyond any sane scale."""

from __future__ import annotations

from collections.abc import Iterator

from medpfl.inspection.received import Received
from medpfl.inspection.verdict import Finding

NAME = "odd_numbers"
LARGEST = 1e4


def check(received: Received) -> Iterator[Finding]:
    """Yield a finding for every tensor with such numbers."""
    for name, tensor in (*received.parameters.items(), *received.buffers.items()):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        odd = int((~tensor.isfinite()).sum())
        largest = float(tensor.abs().max()) if not odd else float("inf")
        if odd or (name in received.parameters and largest > LARGEST):
            yield Finding(
                check=NAME,
                weight="alarm",
                where=name,
                measured={"not_finite": odd} if odd else {"largest": largest},
                threshold={"not_finite": 1} if odd else {"largest": LARGEST},
                why=(
                    "NaN or infinite numbers: gradients of it say nothing, or go nowhere"
                    if odd
                    else "weights this large make an activation a switch, which a server can set"
                ),
            )
