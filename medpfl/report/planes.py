"""A volume as a picture: its three middle slices, as a reader of scans has them before them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def three_planes(volume: Array) -> Array:
    """Return the axial slice beside the coronal one, and the sagittal one below.

    Head and front are up; the patient's left is on the left, and the front on the right of the
    sagittal slice. The corner that is left is black.

    Args:
        volume: `(C, D, H, W)`, its axes running to head, front and right, as `Geometry` says.

    Returns:
        `(C, max(H, D) + D, max(W, H) + W)`.
    """
    channels, depth, height, width = volume.shape
    axial = volume[:, depth // 2, ::-1, :]
    coronal = volume[:, ::-1, height // 2, :]
    sagittal = volume[:, ::-1, :, width // 2]
    top, left = max(height, depth), max(width, height)
    picture = np.zeros((channels, top + depth, left + width), dtype=volume.dtype)
    picture[:, :height, :width] = axial
    picture[:, :depth, left:] = coronal
    picture[:, top:, :height] = sagittal
    return picture
