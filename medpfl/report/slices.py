"""A volume as a reader scrolls through it: original and reconstruction, one slice after another."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

MOST_SLICES = 32
_SIDE = 128
_GAP = 4
_MILLISECONDS = 120
_WHITE = 255
_STEP = 5  # of 255: 52 greys, which take half the room of 256


def save_slices(file: BinaryIO, original: Tensor | None, reconstruction: Tensor | None) -> None:
    """Write an animated GIF of the axial slices, from the feet up: original | reconstruction.

    Where either is not there, its half is white. Slices are seen as in `three_planes`, enlarged
    without smoothing to at least 128 pixels, in 52 greys; of several channels the mean is shown.
    At most 32 slices are shown, evenly spread.

    Args:
        file: what to write to.
        original: `(C, D, H, W)` in [0, 1], or None.
        reconstruction: `(C, D, H, W)` in [0, 1], or None.

    Raises:
        ValueError: neither is there.
    """
    halves = [None if volume is None else _slices(volume) for volume in (original, reconstruction)]
    shapes = [half.shape for half in halves if half is not None]
    if not shapes:
        raise ValueError("save_slices: there is neither an original nor a reconstruction")
    white = np.full(shapes[0], _WHITE, np.uint8)
    left, right = (white if half is None else half for half in halves)
    gap = np.full((*white.shape[:2], _GAP), _WHITE, np.uint8)
    first, *others = map(Image.fromarray, np.concatenate([left, gap, right], axis=2))
    first.save(
        file, format="GIF", save_all=True, append_images=others, duration=_MILLISECONDS, loop=0
    )


def _slices(volume: Tensor) -> NDArray[np.uint8]:
    """Return the slices shown, `(D', H', W')`."""
    depth = volume.shape[1]
    count = min(depth, MOST_SLICES)
    # The middle of each part: the ends of a scan show little.
    shown = torch.div((2 * torch.arange(count) + 1) * depth, 2 * count, rounding_mode="floor")
    grey = volume.detach().cpu().mean(0)[shown].flip(1).clamp(0, 1)
    pixels: NDArray[np.uint8] = ((grey * (_WHITE // _STEP)).round() * _STEP).byte().numpy()
    factor = math.ceil(_SIDE / max(pixels.shape[1:]))
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)
