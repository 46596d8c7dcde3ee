"""Rows in which every weight has a partner of the other sign: trap weights.

Half of a trap's entries are drawn, and the other half are the same numbers, times minus a scale, in
other places (Boenisch et al. 2021, Sec. 4). So the logarithms of its positive entries are those of
its negative ones, moved by the logarithm of the scale, to the rounding. Entries that were drawn by
themselves agree at no such distance more often than at the distances beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from medpfl.inspection.received import Layer, Received
from medpfl.inspection.verdict import Finding

NAME = "paired_weights"
LEAST_ROWS, LEAST_INPUTS, MANY_INPUTS = 4, 128, 512
EXCESS, EXCESS_OF_MANY, SHARE = 12.0, 16.0, 0.25

# Entries below this share of the largest are left out, and so are scales below it.
_RANGE = math.log(1e5)
_WIDTHS, _SMOOTH, _BROAD = (2, 16), 64, 32
_ONE_TO_ONE = 1.3
_MOST_ROWS, _AT_ONCE = 128, 32
_REPEATED = 0.02


def check(received: Received) -> Iterator[Finding]:
    """Yield a finding for every layer with such rows."""
    for layer in received.layers:
        if layer.rows >= LEAST_ROWS and layer.inputs >= LEAST_INPUTS:
            excess, share, scale = _partners(layer)
            trapped = (excess >= least_excess(layer.inputs)) & (share >= SHARE)
            if int(trapped.sum()) >= LEAST_ROWS:
                yield _finding(layer, excess[trapped], share[trapped], scale[trapped])


def least_excess(inputs: int) -> float:
    """Return the excess from which on a row of so many inputs is a trap."""
    return EXCESS if inputs <= MANY_INPUTS else EXCESS_OF_MANY


def partners(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how far entries of one sign are those of the other times a scale.

    Pairs of a positive and a negative entry are counted by the distance of their logarithms. The
    excess at a distance is over what its neighbourhood has, in standard deviations: of a Poisson
    law, or of the row's other distances where these scatter more.

    Args:
        weight: `(K, D)`.

    Returns:
        Of each row the largest excess, the share of the entries of the rarer sign that have a
        partner there, and the scale; `(K,)` each.
    """
    values = weight.float()
    bins = 2 ** min(15, max(12, math.ceil(math.log2(8 * values.shape[1]))))
    sizes = _spread(values)
    largest = sizes.amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    place = ((sizes / largest).clamp_min(1e-30).log() / _RANGE + 1) * bins
    counted = (place >= 0) & (sizes > 0)
    place = place.long().clamp(0, bins - 1)
    signs = []
    for has in (values > 0, values < 0):
        counts = torch.zeros(len(values), bins, device=values.device)
        signs.append(counts.scatter_add_(1, place, (has & counted).float()))
    positive, negative = (torch.fft.rfft(counts, n=2 * bins) for counts in signs)
    pairs = torch.fft.irfft(positive * negative.conj(), n=2 * bins).roll(bins, dims=1)
    rarer = torch.minimum(signs[0].sum(1), signs[1].sum(1)).clamp_min(1)
    return _largest(pairs, rarer, bins)


def _largest(pairs: Tensor, rarer: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    best, share = torch.zeros(len(pairs)), torch.zeros(len(pairs))
    scale = torch.ones(len(pairs))
    # Rows whose entries are all of one size, as pruning leaves them, agree at any small distance.
    broad = pairs.sum(1) / (_sums(pairs, _SMOOTH).amax(1) / _SMOOTH).clamp_min(1e-9)
    for width in _WIDTHS:
        here = _sums(pairs, width)
        beside = _beside(pairs, width, here.shape[1])
        excess = (here - beside) / (beside + 1).sqrt()
        most, where = excess.max(1)
        most = most / _scatter(excess, beside, where, width)
        above = (here - beside).gather(1, where[:, None])[:, 0] / rarer
        moved = ((where + width / 2 - bins) * _RANGE / bins).cpu()
        known = (broad >= _BROAD * width) & (rarer >= LEAST_INPUTS / 4)
        one_to_one = (above >= SHARE) & (above <= _ONE_TO_ONE)
        better = (most.cpu() > best) & (one_to_one & known).cpu()
        best = torch.where(better, most.cpu(), best)
        share = torch.where(better, above.cpu(), share)
        scale = torch.where(better, torch.exp(-moved.abs()), scale)
    return best, share, scale


def _scatter(excess: Tensor, beside: Tensor, where: Tensor, width: int) -> Tensor:
    """Return the root mean square of the excess away from its largest, at least 1, `(K,)`.

    It is 1 where entries are independent, and more where they come in groups of equal ones, as the
    weights of three equal channels do.
    """
    places = torch.arange(excess.shape[1], device=excess.device)
    others = ((places - where[:, None]).abs() > 2 * width) & (beside >= 1)
    mean = (excess.square() * others).sum(1) / others.sum(1).clamp_min(1)
    return mean.sqrt().clamp_min(1)


def _beside(pairs: Tensor, width: int, count: int) -> Tensor:
    """Return what windows a little to the left and right hold, on average."""
    flank = _sums(pairs, 4 * width)
    left = pad(flank, (5 * width, 0))[:, :count]
    right = pad(flank, (0, 7 * width))[:, 2 * width : 2 * width + count]
    return (left + right) / 8


def _sums(values: Tensor, width: int) -> Tensor:
    total = pad(values.double().cumsum(1), (1, 0))
    return (total[:, width:] - total[:, :-width]).float()


def _spread(values: Tensor) -> Tensor:
    """Return absolute values, those that repeat spread over the gaps to the next.

    Of quantised rows, any two entries agree at some distance.

    Args:
        values: `(K, D)`; what repeats under the other sign alone is left as it is.
    """
    sizes, ordered = values.abs(), values.sort(dim=1).values
    same = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != 0)
    repeated = same.sum(1) > _REPEATED * (sizes > 0).sum(1)
    if not bool(repeated.any()):
        return sizes
    stream = torch.Generator().manual_seed(0)
    result = sizes.clone()
    for row in repeated.nonzero()[:, 0].tolist():
        levels, which = torch.unique(sizes[row], return_inverse=True)
        middles = (levels[1:] + levels[:-1]) / 2
        low, high = torch.cat([levels[:1], middles]), torch.cat([middles, levels[-1:]])
        drawn = torch.rand(sizes.shape[1], generator=stream).to(sizes.device)
        spread = low[which] + (high - low)[which] * drawn
        result[row] = torch.where(sizes[row] > 0, spread, sizes[row])
    return result


def _partners(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    kept = torch.linspace(0, layer.rows - 1, min(layer.rows, _MOST_ROWS)).long()
    parts = [partners(layer.weight[some]) for some in torch.split(kept, _AT_ONCE)]
    excess, share, scale = (torch.cat(column) for column in zip(*parts, strict=True))
    return excess, share, scale


def _finding(layer: Layer, excess: Tensor, share: Tensor, scale: Tensor) -> Finding:
    return Finding(
        check=NAME,
        weight="alarm",
        where=layer.name,
        measured={
            "rows": len(excess),
            "excess": float(excess.median()),
            "share": float(share.median()),
            "scale": float(scale.median()),
        },
        threshold={
            "rows": LEAST_ROWS,
            "excess": least_excess(layer.inputs),
            "share": SHARE,
        },
        why=(
            "half of a row's weights are the other half times minus a scale: such rows are on for "
            "few images, and the gradient of one that is on for one image is that image"
        ),
    )
