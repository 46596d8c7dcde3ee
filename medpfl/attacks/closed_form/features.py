"""The exact input of a fully connected layer, read off its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

# Below this spread, relative to their size, features are one number: of a network of zeros, say.
_LEAST_SPREAD = 1e-9


def layer_input(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor | None:
    """Return the input of a biased linear layer behind an update of one example.

    With one example, dL/dW = d h' and dL/db = d, so every row k with d_k != 0 gives
    h = (dL/dW)_k / d_k (Phong et al. 2018, Eq. 11). The rows are averaged with the weights d_k^2,
    which is the least-squares solution.

    Args:
        weight_gradient: `(K, F)`.
        bias_gradient: `(K,)`.

    Returns:
        `(F,)` in float64; None where the gradient is zero or not finite, or all entries are equal,
        so that they tell nothing of what made them.
    """
    rows, bias = weight_gradient.double(), bias_gradient.double()
    largest = bias.abs().max()
    if not 0 < float(largest) < torch.inf:
        return None
    scaled = bias / largest  # squares of a gradient of 1e-200 would vanish
    features = (rows / largest * scaled.unsqueeze(1)).sum(0) / scaled.square().sum()
    varied = float(features.std()) > _LEAST_SPREAD * float(features.abs().max())
    return features if varied and bool(features.isfinite().all()) else None


def misfit(weight_gradient: Tensor, bias_gradient: Tensor, features: Tensor) -> float:
    """Return how far a gradient is from that of one example with these features, relative to it.

    Args:
        weight_gradient: `(K, F)`, not zero.
        bias_gradient: `(K,)`.
        features: `(F,)`.
    """
    rows = weight_gradient.double()
    largest = rows.abs().max()
    left = rows / largest - torch.outer(bias_gradient.double() / largest, features)
    return float(left.norm() / (rows / largest).norm())
