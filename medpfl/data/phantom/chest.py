"""Frontal chest radiographs, clear or with an opacity in a lung."""

from __future__ import annotations

import numpy as np

from medpfl.data.phantom.canvas import Array, Random, blend, clipped, ellipse, grid, rotated, step

FINDINGS = ("clear", "opacity")


def draw(random: Random, finding: bool) -> Array:
    """Draw one radiograph, `(SIZE, SIZE)` in [0, 1]; dense tissue is bright."""
    x, y = grid()
    x, y = rotated(x, y, random.uniform(-0.05, 0.05))
    x = x * random.uniform(0.95, 1.08) + random.uniform(-0.04, 0.04)
    y = y * random.uniform(0.95, 1.08) + random.uniform(-0.05, 0.05)

    body = _body(x, y)
    lungs = _lungs(random, x, y)
    image = random.uniform(0.5, 0.58) + 0.06 * y + 0.04 * random.clouds(3)
    image = blend(image, random.uniform(0.14, 0.22), lungs)
    image = image + 0.05 * lungs * _vessels(random, x, y)
    image = image + _ribs(random, x, y) * (0.55 + 0.45 * lungs)
    if finding:
        image = blend(image, random.uniform(0.68, 0.78), _opacity(random, x, y) * lungs)
    image = _middle(random, x, y, image)
    image = image * body + 0.02 * random.grain() * body
    return clipped(image)


def _body(x: Array, y: Array) -> Array:
    """Neck, sloping shoulders and trunk."""
    half_width = 0.3 + 0.72 * clipped((y + 0.98) / 0.42) ** 0.7
    return step(np.abs(x) - half_width, 0.04)


def _lungs(random: Random, x: Array, y: Array) -> Array:
    """Two lobes, narrow at the top, cut off by the domes of the diaphragm."""
    lungs = np.zeros_like(x)
    for side in (-1.0, 1.0):
        floor = random.uniform(0.52, 0.64) - 0.05 * side
        dome = floor + 0.9 * (x - side * 0.36) ** 2
        narrowing = 1 - 0.22 * clipped(-y)
        lobe = ellipse(
            (x - side * 0.4) / narrowing + side * 0.4,
            y,
            centre=(side * 0.42, 0.05),
            radii=(random.uniform(0.29, 0.33), random.uniform(0.78, 0.84)),
            angle=-side * 0.1,
            softness=0.04,
        )
        lungs = np.maximum(lungs, lobe * step(y - dome, 0.03))
    return lungs


def _vessels(random: Random, x: Array, y: Array) -> Array:
    """Branches that fade away from the hilum of each lung."""
    from_hilum = np.hypot(np.abs(x) - 0.15, y - 0.02)
    fibres = 1 - np.abs(random.clouds(14))
    fading: Array = np.exp(-2.2 * from_hilum)
    return 2.5 * fibres**3 * fading


def _ribs(random: Random, x: Array, y: Array) -> Array:
    """Posterior ribs that fall towards the sides, and the collar bones."""
    across = np.abs(x)
    cage = step(across - 0.74 - 0.1 * clipped(y, -1, 0.5), 0.04) * step(0.08 - across, 0.03)
    cage = cage * step(y - 0.72, 0.08)
    spacing = random.uniform(0.15, 0.18)
    height = y - 0.55 * clipped(across - 0.12) ** 1.4 + random.uniform(0, spacing)
    beat = np.abs((height / spacing) % 1 - 0.5) * spacing
    ribs = random.uniform(0.1, 0.15) * step(beat - 0.026, 0.014) * cage * step(-0.78 - y, 0.03)

    slope = y + random.uniform(0.6, 0.66) + 0.28 * (across - 0.1) - 0.25 * (across - 0.4) ** 2
    collar = step(np.abs(slope) - 0.032, 0.015) * step(0.1 - across, 0.02)
    collar = collar * step(across - 0.72, 0.03)
    return ribs + 0.2 * collar


def _middle(random: Random, x: Array, y: Array, image: Array) -> Array:
    """Spine, great vessels and heart; the heart leans to the patient's left, the viewer's right."""
    bright = random.uniform(0.66, 0.76)
    vessels = step(np.abs(x - 0.02) - 0.12 - 0.05 * clipped(y, -1, 1), 0.05)
    image = blend(image, bright - 0.1, 0.85 * vessels)
    heart = ellipse(
        x,
        y,
        centre=(random.uniform(0.13, 0.18), random.uniform(0.28, 0.34)),
        radii=(random.uniform(0.38, 0.46), random.uniform(0.25, 0.3)),
        angle=random.uniform(0.5, 0.8),
        softness=0.05,
    )
    image = blend(image, bright, 0.9 * heart)
    belly = step(0.68 - y, 0.12)
    image = blend(image, bright - 0.04, 0.7 * belly)
    vertebrae = 0.6 + 0.4 * np.cos(2 * np.pi * y / random.uniform(0.12, 0.14))
    spine: Array = vertebrae * step(np.abs(x) - 0.07, 0.03)
    return image + 0.07 * spine


def _opacity(random: Random, x: Array, y: Array) -> Array:
    """Cloud one lung with a consolidation."""
    side = random.sign()
    centre = (side * random.uniform(0.36, 0.5), random.uniform(-0.35, 0.3))
    size = random.uniform(0.2, 0.3)
    distance = np.hypot(x - centre[0], (y - centre[1]) * 0.85) / size
    cloud = 1.3 * np.exp(-(distance**2)) * (1 + 0.5 * random.clouds(10))
    return clipped(cloud, 0, 0.92)
