"""Which reconstruction shows which image, when one update hides several."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from medpfl.metrics.image_quality import WINDOW, ssim

UNMATCHED = -1
"""In an order: the original that no reconstruction was left for."""

_MOST_PIXELS = 2**26  # of all pairs; beyond, an SSIM of every pair takes more than ten seconds
_NEAREST = 3
_ROUNDS = 10
_BLOCK = 2**14

Array = NDArray[np.float64]


def match(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Pair originals and reconstructions one to one at the highest total SSIM.

    One to one, because pairing each original with its nearest reconstruction would count one good
    reconstruction several times. SSIM, because the squared error can prefer to give a perfect
    reconstruction away, where that spares another image a grey blur. Images too small for an SSIM
    are paired at the lowest total squared error. Of many pairs of large images, such as 22 by 22 of
    224 pixels a side, the SSIM is computed where it may matter alone, see `_among_the_nearest`.

    Args:
        originals: `(N, C, *S)` in [0, 1].
        reconstructions: `(M, C, *S)` in [0, 1], in any order; M may be smaller, larger or 0.

    Returns:
        `(N,)` int64: entry n is the reconstruction that goes with original n, or `UNMATCHED`, where
        there are fewer reconstructions than originals.

    Raises:
        ValueError: the shapes of single images differ, or a value is not finite.

    Source: Kuhn 1955 (the Hungarian method).
    """
    if originals.shape[1:] != reconstructions.shape[1:]:
        raise ValueError(
            f"originals {tuple(originals.shape)} and reconstructions "
            f"{tuple(reconstructions.shape)} must hold images of the same shape"
        )
    if not all(bool(x.isfinite().all()) for x in (originals, reconstructions)):
        raise ValueError("originals and reconstructions must be finite; one has NaN or infinity")
    order = torch.full((len(originals),), UNMATCHED, dtype=torch.int64)
    if len(originals) == len(reconstructions) == 1:
        return torch.zeros_like(order)
    rows, columns = _pairs(originals.detach().cpu(), reconstructions.detach().cpu())
    order[torch.as_tensor(rows)] = torch.as_tensor(columns, dtype=torch.int64)
    return order


def squared_errors(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Return the mean squared error of all pairs, `(N, M)` float64 on the CPU.

    From products of the two, a block of pixels at a time: right to about 1e-15 of the images'
    mean squares, and never more in memory than the images themselves.

    Args:
        originals: `(N, C, *S)` in [0, 1].
        reconstructions: `(M, C, *S)` in [0, 1].
    """
    rows, columns = (x.detach().cpu().flatten(1) for x in (originals, reconstructions))
    total = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for first in range(0, rows.shape[1], _BLOCK):
        x, y = (part[:, first : first + _BLOCK].double() for part in (rows, columns))
        total += x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return total.clamp_min(0) / rows.shape[1]


def _pairs(originals: Tensor, reconstructions: Tensor) -> tuple[NDArray[np.intp], ...]:
    """Return the numbers of the originals that have a partner, and of these partners."""
    if min(originals.shape[2:], default=0) < WINDOW:
        return _assigned(_exact_errors(originals, reconstructions))
    if originals.numel() * len(reconstructions) > _MOST_PIXELS:
        return _among_the_nearest(originals, reconstructions)
    costs = np.empty((len(originals), len(reconstructions)))
    _fill(costs, np.ones_like(costs, dtype=bool), originals, reconstructions)
    return _assigned(costs)


def _among_the_nearest(originals: Tensor, reconstructions: Tensor) -> tuple[NDArray[np.intp], ...]:
    """Pair at the highest total SSIM, without the SSIM of every pair.

    It is computed of the three nearest of each image, by squared error, either way. Any other pair
    counts as the least alike of those that were computed of its two images; where it is chosen all
    the same, it is computed, and all are paired anew, ten times at most. That is the best pairing
    where no image is more like a far one than like the least similar of its nearest: so it is for
    whatever was rebuilt, and where nothing was, the total may be a little lower.
    """
    errors = squared_errors(originals, reconstructions).numpy()
    near = min(_NEAREST, *errors.shape)
    wanted = np.zeros(errors.shape, dtype=bool)
    for axis in (0, 1):
        nearest = np.argpartition(errors, near - 1, axis).take(range(near), axis)
        np.put_along_axis(wanted, nearest, True, axis)
    costs = np.full(errors.shape, np.inf)
    for _ in range(_ROUNDS):
        _fill(costs, wanted, originals, reconstructions)
        known = np.isfinite(costs)
        computed = np.where(known, costs, -np.inf)
        worst = np.maximum(computed.max(1, keepdims=True), computed.max(0, keepdims=True))
        pairs = _assigned(np.where(known, costs, worst))
        wanted = np.zeros_like(known)
        wanted[pairs] = True
        wanted &= ~known
        if not wanted.any():
            break
    return pairs


def _fill(
    costs: Array, wanted: NDArray[np.bool_], originals: Tensor, reconstructions: Tensor
) -> None:
    """Put `1 - ssim` where it is wanted; row n belongs to original n."""
    for n, m in zip(*wanted.nonzero(), strict=True):
        costs[n, m] = 1 - ssim(originals[n], reconstructions[m])


def _assigned(costs: Array) -> tuple[NDArray[np.intp], ...]:
    found: tuple[NDArray[np.intp], ...] = linear_sum_assignment(costs)
    return found


def _exact_errors(originals: Tensor, reconstructions: Tensor) -> Array:
    """Return `(N, M)` by differences, which of equal images are exactly 0."""
    columns = reconstructions.double().flatten(1)
    # Row by row: (N, M, D) at once would not fit for volumes.
    rows = [(row - columns).square().mean(dim=1) for row in originals.double().flatten(1)]
    return torch.stack(rows).numpy()
