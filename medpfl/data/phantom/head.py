"""Slices of a head as in T1-weighted MRI, healthy or with a lesion."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage.data import shepp_logan_phantom

from medpfl.data.phantom.canvas import Array, Random, blend, clipped, ellipse, grid, rotated, step

FINDINGS = ("healthy", "lesion")


def draw(random: Random, finding: bool) -> Array:
    """Draw one slice, `(SIZE, SIZE)` in [0, 1].

    The skull and the ventricles are the Shepp-Logan phantom's (Shepp and Logan, 1974); shape,
    folds and tissue differ from image to image.
    """
    x, y = grid()
    u, v = rotated(x, y, random.uniform(-0.12, 0.12))
    bend = 0.035 * random.clouds(3)
    u, v = u * random.uniform(0.82, 0.95) + bend, v * random.uniform(0.98, 1.06) + bend.T
    phantom = _sampled(u, v)
    radius = np.sqrt((u / 0.66) ** 2 + ((v + 0.02) / 0.87) ** 2)
    brain = step(radius - 0.955, 0.02)

    tissue = _tissue(random, u, v, radius)
    ventricles = step(phantom - 0.07, 0.03) * step(np.hypot(1.3 * u, v) - 0.36, 0.04)
    tissue = blend(tissue, 0.1, ventricles)
    if finding:
        tissue = _lesion(random, u, v, tissue)
    scalp = clipped((phantom - 0.5) * 2) * random.uniform(0.75, 0.95)
    image = np.maximum(tissue * brain, scalp) + 0.012 * random.grain()
    return clipped(image * (1 + 0.1 * random.clouds(2)))


def _tissue(random: Random, u: Array, v: Array, radius: Array) -> Array:
    """White matter, and a cortex that is folded towards the skull and along the midline."""
    folds = np.cos(9 * np.pi * random.clouds(7) / 2 + 22 * np.arctan2(v, u))
    cortex = step(0.72 + 0.14 * folds - radius, 0.05)
    tissue = random.uniform(0.62, 0.72) - 0.2 * cortex
    sulci = step(0.4 - folds, 0.4) * step(0.84 - radius, 0.06)
    midline = step(np.abs(u + 0.02 * folds) - 0.012, 0.02) * step(0.42 - np.abs(v), 0.05)
    tissue = tissue * (1 - 0.5 * sulci) * (1 - 0.65 * midline)
    for side in (-1.0, 1.0):
        nucleus = ellipse(
            u,
            v,
            centre=(side * random.uniform(0.26, 0.31), random.uniform(-0.05, 0.1)),
            radii=(random.uniform(0.05, 0.08), random.uniform(0.1, 0.16)),
            angle=side * random.uniform(-0.5, 0.0),
            softness=0.04,
        )
        tissue = tissue - 0.14 * nucleus
    return tissue


def _lesion(random: Random, u: Array, v: Array, tissue: Array) -> Array:
    """Add a bright irregular rim around a dark core, in a dark swelling."""
    angle = random.sign() * random.uniform(0.5, 2.6)
    x, y = u - 0.34 * np.sin(angle), (v - 0.5 * np.cos(angle)) * random.uniform(0.75, 1.25)
    size = random.uniform(0.15, 0.22)
    outer = np.hypot(x, y) * (1 + 0.3 * random.clouds(8)) - size
    inner = np.hypot(x, y) * (1 + 0.4 * random.clouds(9)) - size * random.uniform(0.35, 0.65)
    tissue = blend(tissue, 0.25, 0.75 * step(outer - 0.7 * size, 0.1))
    tissue = blend(tissue, random.uniform(0.88, 1.0), step(outer, 0.025))
    return blend(tissue, random.uniform(0.3, 0.5), step(inner, 0.04))


@cache
def _shepp_logan() -> Array:
    smooth: Array = gaussian_filter(shepp_logan_phantom().astype(np.float32), 1.5)
    return smooth


def _sampled(u: Array, v: Array) -> Array:
    base = _shepp_logan()
    rows, columns = ((axis + 1) / 2 * base.shape[0] - 0.5 for axis in (v, u))
    values: Array = map_coordinates(base, [rows, columns], order=1)
    return values
