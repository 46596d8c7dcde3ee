"""What a malicious server put into the model that it sent: its secrets, which no client gets.

The layer is linear with a ReLU behind it. Row k's gradient is the sum of a_i x_i over the images i
that switch the row on, and its bias' gradient the sum of a_i: one over the other is the image where
one image alone did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

QUALITY = {
    "mismatch": "of the row's bias gradient, how much no label of the image read out explains",
    "out_of_range": "mean distance of its pixels from [0, 1], before they are cut to it",
    "total_variation": "mean absolute difference of neighbouring pixels",
    "rows": "rows that the same image was read from",
}
"""What a read-out says of each image without the truth: columns of ``metrics.csv``."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A linear layer whose rows single images out.

    Args:
        weights: names of the parameters that hold the rows, each `(k_j, D)`, in the rows' order.
        biases: names of those that hold their biases, each `(k_j,)`.
        shape: of what a row looks at, D entries: `(C, *S)` of images in the client's input space,
            or of the features where the layer was put.
        place: the module that the layer is ahead of; None: the whole network.
        reach: what biases are multiplied by in the layer.
        clients: that have columns and biases of their own: weights are `(k_j, clients D)` and
            biases `(k_j, clients)` where there are several.
    """

    weights: tuple[str, ...]
    biases: tuple[str, ...]
    shape: tuple[int, ...]
    place: str | None = None
    reach: float = 1.0
    clients: int = 1


@dataclass(frozen=True, kw_only=True)
class PlantedBins(Planted):
    """Rows that all measure the same, each from another threshold on (Fowl et al. 2022).

    Args:
        kind: ``cumulative``: row k is on for every image above its threshold, so that neighbouring
            rows differ by the images of one bin; ``sparse``: row k is on in its own bin alone.
        edges: `(K,)` float64, ascending: the thresholds.
    """

    kind: Literal["cumulative", "sparse"]
    edges: Tensor


@dataclass(frozen=True, kw_only=True)
class PlantedTraps(Planted):
    """Rows that are on for few images, each for others (Boenisch et al. 2021).

    Args:
        firing_rate: how often a row is on for one image, as measured on public images; NaN where
            the server had none.
        share: of the images behind the update, those that it expects to be alone in a row, as
            public images switch rows on; NaN where it had none.
    """

    firing_rate: float
    share: float = math.nan
