"""Chests as in CT at a lung window, volumes of them, clear or with an opacity in a lung."""

from __future__ import annotations

import numpy as np

from medpfl.data.phantom.canvas import Array, Random, blend, clipped, step
from medpfl.data.phantom.solid import SIDE, ellipsoid, radius, space

SPACING_MM = 6.0


def draw(random: Random, finding: bool) -> Array:
    """Draw one chest, `(SIDE, SIDE, SIDE)` in [0, 1], in the axes of `space`; air is black."""
    bend = 0.03 * random.solid_clouds(3, SIDE)
    widths = random.uniform(0.97, 1.08), random.uniform(0.95, 1.1), random.uniform(0.95, 1.05)
    x, y, z = (p * w + bend for p, w in zip(space(), widths, strict=True))
    body = radius((x, y, 0 * z), (0, 0, 0), (0.92, 0.62, 1.0))
    image = random.uniform(0.5, 0.58) + 0.03 * random.solid_clouds(5, SIDE)
    image = blend(image, 0.4, step(0.9 - body, 0.03))  # fat below the skin
    image = _ribs(random, z, body, image)
    lungs = _lungs(random, x, y, z)
    air = random.uniform(0.08, 0.14) + _vessels(random, x, y, z)
    if finding:
        air = blend(air, random.uniform(0.5, 0.6), _opacity(random, x, y, z))
    image = blend(image, air, lungs)
    heart = ellipsoid(
        (x, y, z),
        centre=(-random.uniform(0.1, 0.16), 0.16, -random.uniform(0.18, 0.26)),
        radii=(random.uniform(0.26, 0.32), 0.24, random.uniform(0.28, 0.34)),
        softness=0.04,
    )
    image = blend(image, random.uniform(0.6, 0.68), heart)
    spine = step(np.hypot(x, y + 0.42) - 0.11, 0.03)
    discs = 0.8 + 0.2 * np.cos(2 * np.pi * z / random.uniform(0.16, 0.2))
    image = blend(image, 0.9, spine * discs)
    return clipped(image * step(body - 1, 0.02))


def _lungs(random: Random, x: Array, y: Array, z: Array) -> Array:
    """Two lobes, cut off by the domes of the diaphragm; the patient's right one reaches lower."""
    lungs = np.zeros_like(x)
    for side in (-1.0, 1.0):
        lobe = ellipsoid(
            (x, y, z),
            centre=(side * 0.43, -0.02, 0.05),
            radii=(random.uniform(0.32, 0.36), random.uniform(0.44, 0.48), 0.88),
        )
        floor = -0.55 - 0.05 * side + 0.25 * random.uniform(0.8, 1.2)
        dome = floor - 0.9 * ((x - side * 0.43) ** 2 + y**2)
        lungs = np.maximum(lungs, lobe * step(dome - z, 0.04))
    return lungs


def _vessels(random: Random, x: Array, y: Array, z: Array) -> Array:
    """Branches that fade away from the hilum of each lung."""
    from_hilum = np.sqrt((np.abs(x) - 0.16) ** 2 + y**2 + z**2)
    fibres = clipped(1 - 2.5 * np.abs(random.solid_clouds(13, SIDE)))
    fading: Array = 0.7 * fibres * np.exp(-2.5 * from_hilum)
    return fading


def _ribs(random: Random, z: Array, body: Array, image: Array) -> Array:
    spacing = random.uniform(0.2, 0.24)
    beat = np.abs(((z + 0.4 * body) / spacing) % 1 - 0.5) * spacing
    ribs = step(beat - 0.045, 0.02) * step(np.abs(body - 0.84) - 0.035, 0.015)
    return blend(image, random.uniform(0.8, 0.9), ribs)


def _opacity(random: Random, x: Array, y: Array, z: Array) -> Array:
    """Cloud a part of one lung."""
    centre = (
        random.sign() * random.uniform(0.38, 0.5),
        random.uniform(-0.2, 0.2),
        random.uniform(-0.1, 0.4),
    )
    size = random.uniform(0.2, 0.28)
    away = radius((x, y, z), centre, (size, size, size))
    cloud = 1.4 * np.exp(-(away**2)) * (1 + 0.5 * random.solid_clouds(8, SIDE))
    return clipped(cloud, 0, 0.95)
