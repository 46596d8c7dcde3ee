"""Brushes for volumes: soft-edged solids in the cube [-1, 1]^3, as the patient's axes run.

x points to the patient's right, y to the front, z to the head: RAS+, as volumes are kept.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from medpfl.data.phantom.canvas import Array, step

SIDE = 64
"""Voxels a side of every drawing."""


@cache
def space() -> tuple[Array, Array, Array]:
    """Return the coordinates x, y and z of every voxel's centre, each `(SIDE, SIDE, SIDE)`."""
    axis = ((np.arange(SIDE) + 0.5) * 2 / SIDE - 1).astype(np.float32)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    x.flags.writeable = y.flags.writeable = z.flags.writeable = False
    return x, y, z


def ellipsoid(
    place: tuple[Array, Array, Array],
    *,
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    softness: float = 0.03,
) -> Array:
    """Return a filled ellipsoid, 1 inside and 0 outside."""
    return step((radius(place, centre, radii) - 1) * min(radii), softness)


def radius(
    place: tuple[Array, Array, Array],
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
) -> Array:
    """Return the distance from a centre as a share of an ellipsoid's: 1 on its surface."""
    squares = [((p - c) / r) ** 2 for p, c, r in zip(place, centre, radii, strict=True)]
    relative: Array = np.sqrt(squares[0] + squares[1] + squares[2])
    return relative
