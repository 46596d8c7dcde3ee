"""Patches: boxes out of a volume, each an image of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medpfl.data.volumes.grid import Grid, cut_or_pad
from medpfl.seeding import generator


@dataclass(frozen=True)
class Patches:
    """Cuts boxes out of volumes, around voxels that are brighter than the volume's mean.

    So that few of them show air. Where a box is no smaller than the volume, it lies in its middle.

    Args:
        seed: the run's; the places follow from it and the patch's number.
    """

    seed: int

    def cut(self, grid: Grid, sizes: Sequence[int], number: int) -> Grid:
        """Return the patch of a number, `sizes` voxels along each axis."""
        bright = np.flatnonzero(grid.values > grid.values.mean())
        stream = generator(self.seed, "patch", number)
        drawn = int(bright[int(torch.randint(len(bright), (), generator=stream))])
        centre = np.unravel_index(drawn, grid.values.shape)
        first = [
            (n - size) // 2 if size >= n else min(max(0, int(c) - size // 2), n - size)
            for n, size, c in zip(grid.values.shape, sizes, centre, strict=True)
        ]
        return cut_or_pad(grid, sizes, first)
