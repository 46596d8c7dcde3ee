"""Pairs of different images of one dataset: what a reconstruction that shows nothing is like."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def unrelated_pairs(total: int, count: int, stream: torch.Generator) -> Iterator[tuple[int, int]]:
    """Draw pairs of different places; a pair may come again.

    Args:
        total: images there are, at least 2.
        count: pairs to draw.
        stream: draws them, as they are asked for.
    """
    for _ in range(count):
        first, step = (
            int(torch.randint(low, high, (), generator=stream))
            for low, high in ((0, total), (1, total))
        )
        yield first, (first + step) % total
