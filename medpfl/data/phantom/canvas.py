"""Brushes: soft-edged shapes on the square [-1, 1] x [-1, 1], y pointing down."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Array = NDArray[np.floating[Any]]

SIZE = 192
"""Pixels a side of every drawing."""


class Random:
    """Draw numbers from one generator.

    Args:
        generator: the image's own stream.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def uniform(self, low: float, high: float) -> float:
        """Return a number between low and high."""
        return low + (high - low) * float(torch.rand((), generator=self._generator))

    def sign(self) -> float:
        """Return -1 or 1."""
        return 1.0 if self.uniform(0, 1) < 0.5 else -1.0

    def integer(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self._generator))

    def clouds(self, cells: int) -> Array:
        """Return smooth noise in about [-1, 1], with `cells` bumps a side, `(SIZE, SIZE)`."""
        coarse = torch.randn((1, 1, cells, cells), generator=self._generator)
        smooth = functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic", align_corners=True)
        return torch.tanh(smooth[0, 0]).numpy()

    def solid_clouds(self, cells: int, side: int) -> Array:
        """Return smooth noise in about [-1, 1], `cells` bumps a side, `(side, side, side)`."""
        coarse = torch.randn((1, 1, cells, cells, cells), generator=self._generator)
        size = (side, side, side)
        smooth = functional.interpolate(coarse, size, mode="trilinear", align_corners=True)
        return torch.tanh(smooth[0, 0]).numpy()

    def grain(self) -> Array:
        """Return standard normal noise without correlation, `(SIZE, SIZE)`."""
        return torch.randn((SIZE, SIZE), generator=self._generator).numpy()


@cache
def grid() -> tuple[Array, Array]:
    """Return the coordinates x and y of every pixel's centre, each `(SIZE, SIZE)`."""
    axis = ((np.arange(SIZE) + 0.5) * 2 / SIZE - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def clipped(values: Array, low: float = 0.0, high: float = 1.0) -> Array:
    """Return the values, cut off at low and high."""
    result: Array = np.clip(values, low, high)
    return result


def step(distance: Array, softness: float) -> Array:
    """Return 1 where the distance is negative, 0 where it is positive, smooth in between."""
    return clipped(0.5 - distance / (2 * softness))


def rotated(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    """Return the coordinates in a frame turned by an angle in radians."""
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x


def ellipse(
    x: Array,
    y: Array,
    *,
    centre: tuple[float, float],
    radii: tuple[float, float],
    angle: float = 0.0,
    softness: float = 0.02,
) -> Array:
    """Return a filled ellipse, 1 inside and 0 outside."""
    along, across = rotated(x - centre[0], y - centre[1], angle)
    relative = np.sqrt((along / radii[0]) ** 2 + (across / radii[1]) ** 2)
    return step((relative - 1) * min(radii), softness)


def blend(under: Array, over: Array | float, mask: Array | float) -> Array:
    """Lay one picture over another where the mask is 1."""
    return under + (over - under) * mask
