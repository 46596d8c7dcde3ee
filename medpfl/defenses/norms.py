"""Sizes of an update, in float64: squares of small float32 numbers would underflow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# Entries that are put into float64 together: a layer may have as many as fit into memory once.
_AT_ONCE = 2**24


def energy_of(tensors: Iterable[Tensor]) -> float:
    """Return the sum of the squares of all entries."""
    return math.fsum(
        part.double().square().sum().item()
        for tensor in tensors
        for part in torch.split(tensor.flatten(), _AT_ONCE)
    )


def norm_of(tensors: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm of all entries together."""
    return math.sqrt(energy_of(tensors.values()))


def entries_of(tensors: Mapping[str, Tensor]) -> int:
    """Return how many entries there are."""
    return sum(tensor.numel() for tensor in tensors.values())
