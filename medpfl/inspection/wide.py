"""A linear layer that looks at whole images, ahead of the first convolution.

The gradient of such a layer gives its inputs away, whatever its weights are; a network that goes on
with convolutions has no use for it. A multilayer perceptron begins like this, too, and honestly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import takewhile

from medpfl.inspection.received import Layer, Received
from medpfl.inspection.verdict import Finding

NAME = "wide_first_layer"
LEAST_ROWS, LEAST_INPUTS = 8, 256
_WHY = (
    "a linear layer that looks at whole images: its weights' gradient over its biases' is "
    "an image wherever one image alone switches a row on"
)


def check(received: Received) -> Iterator[Finding]:
    """Yield a finding for every such layer.

    An alarm where convolutions are known to follow, and it has as many inputs as an image has
    entries, or as several have: then columns of each client's own (LOKI, Zhao et al. 2023). A note
    where nothing follows that would be odd; where the order of the layers is not known, as in
    files; or where nobody says how large images are.
    """
    entries = None if received.input_shape is None else math.prod(received.input_shape)
    ahead, convolutions = _candidates(received, entries)
    for layer in ahead:
        if not _is_wide(layer) or (entries is not None and layer.inputs % entries):
            continue
        sure = convolutions and entries is not None and received.in_order
        follow = "; convolutions follow, which have no use for it" if sure else ""
        yield Finding(
            check=NAME,
            weight="alarm" if sure else "note",
            where=layer.name,
            measured={"inputs": layer.inputs, "rows": layer.rows},
            threshold={"inputs": entries or LEAST_INPUTS, "rows": LEAST_ROWS},
            why=_WHY + follow,
        )


def _candidates(received: Received, entries: int | None) -> tuple[tuple[Layer, ...], bool]:
    """Return the layers that may look at images, and whether there are convolutions behind."""
    layers = received.layers
    if not received.in_order:
        linear = tuple(layer for layer in layers if layer.is_linear)
        return (linear if entries is not None else ()), len(linear) < len(layers)
    ahead = tuple(takewhile(lambda layer: layer.is_linear, layers))
    convolutions = len(ahead) < len(layers)
    return (ahead if convolutions else ahead[:1]), convolutions


def _is_wide(layer: Layer) -> bool:
    return layer.rows >= LEAST_ROWS and layer.inputs >= LEAST_INPUTS
