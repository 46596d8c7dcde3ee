"""Where the thresholds of an imprint lie: quantiles of what its query measures."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from medpfl.types import DataSpec

Query = Literal["random", "mean"]

# What a pixel is where nothing more is known: uniform on [0, 1].
_MEAN, _STD = 0.5, 12**-0.5
_GRID = 20_001


def query_of(kind: Query, entries: int, support: float, generator: torch.Generator) -> Tensor:
    """Return w, `(D,)` float32 of unit norm.

    Args:
        kind: ``random``: normal numbers at some of the entries; ``mean``: their mean.
        entries: D.
        support: share of the entries that are not zero, in (0, 1].
        generator: where every random number comes from.
    """
    count = max(1, round(support * entries))
    places = torch.randperm(entries, generator=generator)[:count]
    drawn = torch.randn(count, generator=generator) if kind == "random" else torch.ones(count)
    query = torch.zeros(entries)
    query[places] = drawn / drawn.norm()
    return query


def normal_edges(query: Tensor, bins: int, spec: DataSpec) -> tuple[Tensor, float]:
    """Return thresholds by an assumed normal law, `(K,)` float64, and its standard deviation.

    Pixels count as uniform on [0, 1], or as standard normal where the client normalises them. The
    first threshold is below whatever comes.
    """
    plain = all(m == 0 for m in spec.mean) and all(s == 1 for s in spec.std)
    mean, std = (_MEAN, _STD) if plain else (0.0, 1.0)
    centre = mean * float(query.double().sum())
    quantiles = torch.arange(1, bins, dtype=torch.float64) / bins
    edges = centre + std * torch.special.ndtri(quantiles)
    return _open_below(edges, centre, std), std


def measured_edges(responses: Tensor, bins: int) -> tuple[Tensor, float]:
    """Return thresholds by what public images give, `(K,)` float64, and their standard deviation.

    Quantiles of a Gaussian kernel density: there may be more bins than images.

    Args:
        responses: `(A,)` float64: h(x) of public images.
        bins: K.

    Source: Silverman 1986, Eq. 3.31 (the width of the kernel).
    """
    count, std = len(responses), float(responses.std())
    middle = torch.quantile(responses, torch.tensor([0.25, 0.75], dtype=torch.float64))
    spread = min(std, float(middle.diff()) / 1.349) or std or 1.0
    width = 0.9 * spread * count**-0.2
    grid = torch.linspace(
        float(responses.min()) - 4 * width,
        float(responses.max()) + 4 * width,
        _GRID,
        dtype=torch.float64,
    )
    below = torch.cat(
        [
            torch.special.ndtr((part[:, None] - responses) / width).mean(1)
            for part in torch.split(grid, 512)
        ]
    )
    quantiles = torch.arange(1, bins, dtype=torch.float64) / bins
    places = torch.searchsorted(below, quantiles).clamp(1, _GRID - 1)
    low, high = below[places - 1], below[places]
    share = (quantiles - low) / (high - low).clamp_min(1e-300)
    edges = grid[places - 1] + share * (grid[places] - grid[places - 1])
    return _open_below(edges, float(responses.mean()), std), std


def joined(first: Tensor, second: Tensor) -> Tensor:
    """Return the thresholds of two laws as those of their mixture, ascending.

    Each bin of either law is equally likely under it, so that the mixture weighs the laws by their
    bins.

    Args:
        first: `(K,)` thresholds, the first of them below whatever comes.
        second: `(L,)`, likewise.

    Returns:
        `(K + L - 1,)`: one lowest threshold is enough.
    """
    low = torch.minimum(first[:1], second[:1])
    return torch.cat([low, torch.cat([first[1:], second[1:]]).sort().values])


def _open_below(edges: Tensor, centre: float, std: float) -> Tensor:
    lowest = min(centre, float(edges[0]) if len(edges) else centre) - 20 * std
    return torch.cat([torch.tensor([lowest], dtype=torch.float64), edges])
