"""Which reconstruction shows which image, when one update hides several."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def match(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Pair originals and reconstructions one to one at the lowest total squared error.

    One to one, because pairing each original with its nearest reconstruction would count one good
    reconstruction several times.

    Args:
        originals: `(N, C, *S)`, finite.
        reconstructions: `(N, C, *S)`, finite, in any order.

    Returns:
        `(N,)` int64: entry n is the reconstruction that goes with original n.

    Raises:
        ValueError: the shapes differ, or a value is not finite.

    Source: Kuhn 1955 (the Hungarian method).
    """
    if originals.shape != reconstructions.shape:
        raise ValueError(
            f"originals {tuple(originals.shape)} and reconstructions "
            f"{tuple(reconstructions.shape)} must have the same shape"
        )
    costs = _pairwise_mse(originals, reconstructions)
    if not bool(torch.isfinite(costs).all()):
        raise ValueError("originals and reconstructions must be finite; one has NaN or infinity")
    _, columns = linear_sum_assignment(costs.numpy())
    return torch.as_tensor(columns, dtype=torch.int64)


def _pairwise_mse(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Return `(N, N)` float64 on the CPU; row n belongs to original n."""
    rows, columns = (x.detach().cpu().double().flatten(1) for x in (originals, reconstructions))
    # Row by row: (N, N, D) at once would not fit for volumes.
    return torch.stack([(row - columns).square().mean(dim=1) for row in rows])
