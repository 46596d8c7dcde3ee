"""A biased linear layer that looks at whole images, ahead of the first convolution.

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
    "a biased linear layer that looks at whole images: its weights' gradient over its biases' is "
    "an image wherever one image alone switches a row on"
)


def check(received: Received) -> Iterator[Finding]:
    """Yield a finding for every such layer.

    An alarm where convolutions follow and it has as many inputs as an image has entries; a note
    where nothing follows that would be odd, or nobody says how large images are.
    """
    layers = received.layers
    ahead = tuple(takewhile(lambda layer: layer.is_linear, layers))
    convolutions = len(ahead) < len(layers)
    entries = None if received.input_shape is None else math.prod(received.input_shape)
    for layer in ahead if convolutions else ahead[:1]:
        if not _is_wide(layer) or (entries is not None and layer.inputs != entries):
            continue
        yield Finding(
            check=NAME,
            weight="alarm" if convolutions and entries is not None else "note",
            where=layer.name,
            measured={"inputs": layer.inputs, "rows": layer.rows},
            threshold={"inputs": entries or LEAST_INPUTS, "rows": LEAST_ROWS},
            why=_WHY + ("; convolutions follow, which have no use for it" if convolutions else ""),
        )


def _is_wide(layer: Layer) -> bool:
    biased = layer.bias is not None
    return biased and layer.rows >= LEAST_ROWS and layer.inputs >= LEAST_INPUTS
