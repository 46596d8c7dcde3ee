"""Which reconstruction shows which image, when one update hides several."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from medpfl.metrics.image_quality import WINDOW, ssim


def match(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Pair originals and reconstructions one to one at the highest total SSIM.

    One to one, because pairing each original with its nearest reconstruction would count one good
    reconstruction several times. SSIM, because the squared error can prefer to give a perfect
    reconstruction away, where that spares another image a grey blur. Images too small for an SSIM
    are paired at the lowest total squared error.

    Args:
        originals: `(N, C, *S)` in [0, 1].
        reconstructions: `(N, C, *S)` in [0, 1], in any order.

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
    if not all(bool(x.isfinite().all()) for x in (originals, reconstructions)):
        raise ValueError("originals and reconstructions must be finite; one has NaN or infinity")
    if len(originals) == 1:
        return torch.zeros(1, dtype=torch.int64)
    large = min(originals.shape[2:], default=0) >= WINDOW
    costs = (_dissimilarity if large else _pairwise_mse)(originals, reconstructions)
    _, columns = linear_sum_assignment(costs.numpy())
    return torch.as_tensor(columns, dtype=torch.int64)


def _pairwise_mse(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Return `(N, N)` float64 on the CPU; row n belongs to original n."""
    rows, columns = (x.detach().cpu().double().flatten(1) for x in (originals, reconstructions))
    # Row by row: (N, N, D) at once would not fit for volumes.
    return torch.stack([(row - columns).square().mean(dim=1) for row in rows])


def _dissimilarity(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Return `1 - ssim` of all pairs, `(N, N)` float64; row n belongs to original n."""
    rows = [[1 - ssim(x, y) for y in reconstructions] for x in originals]
    return torch.tensor(rows, dtype=torch.float64)
