"""Convolutions that pass single channels on and are zero otherwise: kernels for one client.

LOKI (Zhao et al. 2023, Sec. 4) sends each client a convolution whose kernels for the other clients
are zero, and whose own pass the image on, so that a sum over clients keeps their images apart.
"""

from __future__ import annotations

from collections.abc import Iterator

from medpfl.inspection.received import Received
from medpfl.inspection.verdict import Finding

NAME = "single_channel_kernels"
LEAST_INPUTS, LEAST_ZERO = 8, 0.5


def check(received: Received) -> Iterator[Finding]:
    """Yield a finding for every such convolution."""
    for layer in received.layers:
        if layer.is_linear or layer.inputs < LEAST_INPUTS:
            continue
        entries = (layer.weight != 0).sum(1)
        zero, one = int((entries == 0).sum()), int((entries == 1).sum())
        if one and zero + one == layer.rows and zero >= LEAST_ZERO * layer.rows:
            yield Finding(
                check=NAME,
                weight="alarm",
                where=layer.name,
                measured={"zero": zero, "single": one, "kernels": layer.rows},
                threshold={"zero": LEAST_ZERO * layer.rows},
                why=(
                    "kernels that are zero, or copy one channel: the image goes through as it is, "
                    "in channels of this client's own, and a sum over clients keeps it apart"
                ),
            )
