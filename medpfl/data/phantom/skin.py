"""Dermoscopy of a mole, regular, or irregular in border and colour."""

from __future__ import annotations

import numpy as np

from medpfl.data.phantom.canvas import Array, Random, blend, clipped, grid, rotated, step

FINDINGS = ("regular", "irregular")

_LIGHT_SKIN = (0.95, 0.78, 0.71)
_DARK_SKIN = (0.72, 0.5, 0.39)
_BROWN = (0.5, 0.3, 0.19)
_DARK_BROWN = (0.24, 0.12, 0.09)
_BLACK = (0.09, 0.06, 0.07)
_BLUE_GREY = (0.34, 0.34, 0.41)
_RED = (0.62, 0.32, 0.27)


def draw(random: Random, finding: bool) -> Array:
    """Draw one image, `(SIZE, SIZE, 3)` in [0, 1]."""
    x, y = grid()
    image = _skin(random)
    u, v = x - random.uniform(-0.15, 0.15), y - random.uniform(-0.15, 0.15)
    image = _irregular(random, u, v, image) if finding else _regular(random, u, v, image)
    for _ in range(random.integer(0, 4)):
        image = _hair(random, x, y, image)
    lens = step(np.hypot(x, y) - random.uniform(1.1, 1.4), 0.12)
    image = image * (0.25 + 0.75 * lens)[..., None]
    return clipped(image + 0.012 * random.grain()[..., None])


def _skin(random: Random) -> Array:
    tone = blend(_colour(_LIGHT_SKIN), _colour(_DARK_SKIN), random.uniform(0, 1))
    shade = 1 + 0.05 * random.clouds(3) + 0.025 * random.clouds(40)
    return tone * shade[..., None]


def _regular(random: Random, u: Array, v: Array, image: Array) -> Array:
    """Add a round mole of one brown, darker towards its middle."""
    relative = _relative_radius(random, u, v, waves=2, amplitude=0.08, softness=0.02)
    brown = blend(_colour(_BROWN), _colour(_DARK_BROWN), random.uniform(0, 0.5))
    depth = 1 - 0.25 * clipped(1 - relative) + 0.05 * random.clouds(24)
    return blend(image, brown * depth[..., None], step(relative - 1, 0.12)[..., None])


def _irregular(random: Random, u: Array, v: Array, image: Array) -> Array:
    """Add a ragged, lopsided lesion in several colours."""
    relative = _relative_radius(random, u, v, waves=5, amplitude=0.36, softness=0.12)
    lesion = np.broadcast_to(_colour(_BROWN), image.shape)
    for colour, coverage in ((_DARK_BROWN, 0.0), (_RED, 0.5), (_BLACK, 0.3), (_BLUE_GREY, 0.5)):
        patch = step(coverage - random.clouds(4), 0.25)
        lesion = blend(lesion, _colour(colour), 0.9 * patch[..., None])
    lesion = lesion * (1 + 0.12 * random.clouds(24))[..., None]
    return blend(image, lesion, step(relative - 1, 0.08)[..., None])


def _relative_radius(
    random: Random, u: Array, v: Array, *, waves: int, amplitude: float, softness: float
) -> Array:
    """Distance from the middle as a share of the border's: 1 on the border."""
    along, across = rotated(u, v, random.uniform(0, np.pi))
    across = across * random.uniform(1.0, 1.3)
    angle = np.arctan2(across, along)
    border = np.ones_like(u)
    for wave in range(2, 2 + waves):
        phase = random.uniform(0, 2 * np.pi)
        border = border + random.uniform(0.3, 1) * amplitude / wave * np.cos(wave * angle + phase)
    border = clipped(border + softness * random.clouds(10), 0.35, 3.0)
    relative: Array = np.hypot(along, across) / (random.uniform(0.42, 0.6) * border)
    return relative


def _hair(random: Random, x: Array, y: Array, image: Array) -> Array:
    along, across = rotated(x, y, random.uniform(0, np.pi))
    path = random.uniform(-0.9, 0.9) + random.uniform(-0.3, 0.3) * along**2
    hair = step(np.abs(across - path) - 0.004, 0.008)
    return blend(image, _colour(_BLACK), 0.75 * hair[..., None])


def _colour(values: tuple[float, float, float]) -> Array:
    return np.array(values, dtype=np.float32)
