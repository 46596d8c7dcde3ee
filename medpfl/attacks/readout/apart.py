"""Which read-outs are the same image: by some of their entries, so that no image need be kept."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# Entries of an image by which it is compared, drawn at random: of a root mean square over all of
# them, the error is about a hundredth.
_COMPARED = 4096
# Of pixels, around their mean over images, a root mean square.
_PIXELS = 0.2


def sketches_of(images: Iterable[Tensor], entries: int) -> Tensor:
    """Return some entries of every image, `(M, S)` float32: the same ones of all.

    Args:
        images: M of D entries each; none is kept.
        entries: D.
    """
    stream = torch.Generator().manual_seed(0)
    taken = torch.randperm(entries, generator=stream)[:_COMPARED]
    found = [image.flatten()[taken].float() for image in images]
    return torch.stack(found) if found else torch.zeros(0, len(taken))


def as_pixels(sketches: Tensor) -> Tensor:
    """Return sketches of features, `(M, S)`, that differ as much as those of pixels do."""
    spread = (sketches - sketches.mean(0)).square().mean().sqrt() if len(sketches) else 1.0
    return sketches * (_PIXELS / max(float(spread), 1e-30))


def leaders_of(sketches: Tensor, tolerance: float, order: Iterable[int]) -> dict[int, list[int]]:
    """Gather what differs by less than a tolerance around the first of its kind.

    Args:
        sketches: `(M, S)`.
        tolerance: root mean square of a difference.
        order: some of the M numbers: who comes first.

    Returns:
        Leaders in their order, each with its own: itself, and those nearest to it.
    """
    groups = dict[int, list[int]]()
    kept = sketches.new_empty(sketches.shape)
    for one in order:
        apart = (kept[: len(groups)] - sketches[one]).square().mean(1)
        nearest = int(apart.argmin()) if len(groups) else 0
        if len(groups) and float(apart[nearest]) < tolerance**2:
            groups[list(groups)[nearest]].append(one)
        else:
            kept[len(groups)] = sketches[one]
            groups[one] = [one]
    return groups
