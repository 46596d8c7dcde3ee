"""Heads as in T1-weighted MRI, volumes of them, healthy or with a lesion."""

from __future__ import annotations

import numpy as np

from medpfl.data.phantom.canvas import Array, Random, blend, clipped, step
from medpfl.data.phantom.solid import SIDE, ellipsoid, radius, space

SPACING_MM = 3.5


def draw(random: Random, finding: bool) -> Array:
    """Draw one head, `(SIDE, SIDE, SIDE)` in [0, 1], in the axes of `space`."""
    bend = 0.05 * random.solid_clouds(3, SIDE)
    widths = random.uniform(1.05, 1.2), random.uniform(0.95, 1.05), random.uniform(1.0, 1.1)
    x, y, z = (p * w + bend for p, w in zip(space(), widths, strict=True))
    head = radius((x, y, z), (0, 0, 0), (0.78, 0.95, 0.9))
    brain = step(head - 0.84, 0.03) * step(-0.55 - z, 0.08)
    neck = step(np.hypot(x, y + 0.15) - 0.42, 0.04) * step(z + 0.3, 0.05)

    tissue = _tissue(random, x, y, z, head)
    if finding:
        tissue = _lesion(random, x, y, z, tissue)
    scalp = step(np.abs(head - 0.96) - 0.035, 0.02) * random.uniform(0.75, 0.95)
    image = np.maximum(tissue * brain, np.maximum(scalp, 0.5 * neck))
    return clipped(image * (1 + 0.1 * random.solid_clouds(2, SIDE)))


def _tissue(random: Random, x: Array, y: Array, z: Array, head: Array) -> Array:
    """White matter, a folded cortex, the gap between the hemispheres, and ventricles."""
    folds = np.cos(7 * np.pi * random.solid_clouds(6, SIDE))
    cortex = step(0.66 + 0.1 * folds - head, 0.05)
    sulci = step(0.4 - folds, 0.4) * step(0.74 - head, 0.06)
    tissue = random.uniform(0.62, 0.72) - 0.2 * cortex
    gap = step(np.abs(x) - 0.015, 0.03) * step(0.35 - z, 0.1)
    tissue = tissue * (1 - 0.45 * sulci) * (1 - 0.6 * gap)
    for side in (-1.0, 1.0):
        ventricle = ellipsoid(
            (x, y, z),
            centre=(side * random.uniform(0.12, 0.16), random.uniform(-0.08, 0.05), 0.12),
            radii=(0.08, random.uniform(0.26, 0.36), random.uniform(0.1, 0.16)),
        )
        tissue = blend(tissue, 0.1, ventricle)
    return tissue


def _lesion(random: Random, x: Array, y: Array, z: Array, tissue: Array) -> Array:
    """Add a bright irregular rim around a dark core, in a dark swelling."""
    centre = (
        random.sign() * random.uniform(0.28, 0.42),
        random.uniform(-0.4, 0.4),
        random.uniform(0.0, 0.4),
    )
    size = random.uniform(0.17, 0.25)
    away = radius((x, y, z), centre, (1, 1, 1)) * (1 + 0.3 * random.solid_clouds(7, SIDE))
    tissue = blend(tissue, 0.25, 0.75 * step(away - 1.6 * size, 0.08))
    tissue = blend(tissue, random.uniform(0.88, 1.0), step(away - size, 0.03))
    core = size * random.uniform(0.4, 0.65)
    return blend(tissue, random.uniform(0.3, 0.45), step(away - core, 0.04))
