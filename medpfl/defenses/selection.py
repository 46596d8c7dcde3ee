"""Parts of an update: which of its entries are left, and which are set to zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

Per = Literal["update", "layer"]
PER = ("update", "layer")


def share_of(entries: int, fraction: float) -> int:
    """Return how many of so many entries a fraction is: at least one, unless there are none."""
    return min(entries, max(1, round(fraction * entries)))


def largest(values: Tensor, count: int) -> Tensor:
    """Return `(D,)` True at the largest magnitudes of `(D,)` values, of equal ones at the first."""
    order = values.abs().argsort(descending=True, stable=True)
    return _at(values, order[:count])


def random_entries(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `(D,)` True at so many random places, all sets of places equally likely."""
    order = torch.randperm(len(values), generator=generator, device=generator.device)
    return _at(values, order[:count].to(values.device))


def keep(
    tensors: Mapping[str, Tensor], chosen: Callable[[Tensor], Tensor], per: Per
) -> tuple[dict[str, Tensor], int]:
    """Set all entries but the chosen ones to zero.

    Args:
        tensors: `{name: P_i}`.
        chosen: from `(D,)` values to `(D,)`, True where an entry stays.
        per: whether it chooses among all entries of the update, or tensor by tensor.

    Returns:
        The tensors, and how many entries stay.
    """
    if per == "layer":
        masks = {name: chosen(tensor.flatten()) for name, tensor in tensors.items()}
    else:
        whole = chosen(torch.cat([tensor.flatten() for tensor in tensors.values()]))
        pieces = torch.split(whole, [tensor.numel() for tensor in tensors.values()])
        masks = dict(zip(tensors, pieces, strict=True))
    kept = {n: torch.where(masks[n].view_as(t), t, 0) for n, t in tensors.items()}
    return kept, sum(int(mask.sum()) for mask in masks.values())


def _at(values: Tensor, places: Tensor) -> Tensor:
    mask = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    mask[places] = True
    return mask
