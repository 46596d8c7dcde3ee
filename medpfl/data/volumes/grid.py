"""Volumes on a grid, and where the grid lies: resampled, cropped and padded, never without both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medpfl.errors import DataError
from medpfl.geometry import Geometry
from medpfl.optim.capacity import machine_memory

Array = NDArray[np.floating[Any]]

# Bytes a voxel while a volume is read: what is stored, its float32 copy, and one to work on.
_BYTES_A_VOXEL = 12
# Of the volume of a voxel with sides of its spacing: less, and two axes are all but parallel.
_FLATTEST = 1e-6


@dataclass(frozen=True, eq=False)
class Grid:
    """One volume, its axes next to the patient's: right, anterior, superior.

    Args:
        values: `(X, Y, Z)` float32.
        affine: `(4, 4)` float64: from the place of a voxel to millimetres, RAS+.
        stored: how the source's axes ran, such as ``LPS``.
    """

    values: Array = field(repr=False)
    affine: Array
    stored: str = "RAS"

    @property
    def spacing_mm(self) -> Array:
        """Millimetres between neighbouring voxels along each axis, `(3,)`."""
        lengths: Array = np.linalg.norm(self.affine[:3, :3], axis=0)
        return lengths

    @property
    def geometry(self) -> Geometry:
        """Where the voxels lie."""
        return Geometry(torch.from_numpy(self.affine.astype(np.float64)), self.stored)

    def example(self) -> Tensor:
        """Return the voxels as `(1, D, H, W)`: slices from feet to head, D first."""
        turned = np.ascontiguousarray(self.values.transpose(2, 1, 0), dtype=np.float32)
        return torch.from_numpy(turned)[None]


def canonical(values: Array, affine: Array) -> Grid:
    """Turn and mirror a volume's axes until they lie next to right, anterior and superior.

    No voxel is interpolated, and each stays where it was in the patient.

    Args:
        values: `(X, Y, Z)`, in the file's order.
        affine: `(4, 4)`: from the place of a voxel in the file to millimetres, RAS+.

    Raises:
        DataError: the affine is none, or voxels are not finite.
    """
    from nibabel.orientations import (
        aff2axcodes,
        apply_orientation,
        inv_ornt_aff,
        io_orientation,
    )

    check_affine(affine)
    check_finite(values)
    turns = io_orientation(affine)
    turned = np.ascontiguousarray(apply_orientation(values, turns), dtype=np.float32)
    letters = "".join(aff2axcodes(affine))
    return Grid(turned, affine @ inv_ornt_aff(turns, values.shape), letters)


def check_affine(affine: Array) -> None:
    """Refuse an affine from which no place in the patient follows."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise DataError("its affine is not finite: where its voxels lie is not known")
    axes = affine[:3, :3]
    sides = np.linalg.norm(axes, axis=0)
    if not sides.all() or abs(np.linalg.det(axes / sides)) < _FLATTEST:
        raise DataError(
            "its affine is singular: voxels of different places would lie at one. Repair the "
            "header, or export the volume again"
        )


def check_finite(values: Array) -> None:
    """Refuse voxels that are no numbers."""
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise DataError(
            f"{bad} of its {values.size} voxels are NaN or infinite: fill them, or leave it out"
        )


def check_memory(shape: Sequence[int], what: str) -> None:
    """Refuse a grid that this machine cannot hold, before any of it is allocated.

    Args:
        shape: voxels along each axis.
        what: where they come from, such as ``its header``.
    """
    voxels = 1
    for side in shape:
        voxels *= int(side)
    needed, there = _BYTES_A_VOXEL * voxels, machine_memory()
    if min(shape) < 1:
        raise DataError(f"{what} says {_times(shape)} voxels: there is no image")
    if needed > there:
        raise DataError(
            f"{what} says {_times(shape)} voxels, which take {needed / 1e9:,.0f} GB to read; this "
            f"machine has {there / 1e9:,.0f} GB"
        )


def with_spacing(grid: Grid, spacing_mm: Sequence[float]) -> Grid:
    """Resample a volume to another spacing; its outer faces stay where they are.

    Args:
        grid: the volume.
        spacing_mm: of X, Y and Z, each positive.

    Raises:
        DataError: the new grid is too large for this machine.
    """
    factors = np.asarray(spacing_mm, dtype=np.float64) / grid.spacing_mm
    sizes = [max(1, round(n / f)) for n, f in zip(grid.values.shape, factors, strict=True)]
    check_memory(sizes, f"dataset.spacing_mm={[float(s) for s in spacing_mm]}")
    return resampled(grid, sizes, factors)


def resampled(grid: Grid, sizes: Sequence[int], factors: Sequence[float] | Array) -> Grid:
    """Interpolate linearly, axis by axis, on a grid that begins at the same outer corner.

    Where voxels grow, all old ones below the new one's triangle count (antialiasing, as in PIL).

    Args:
        grid: the volume.
        sizes: new voxels along each axis.
        factors: new spacing over old.
    """
    values = grid.values
    shift, scale = np.eye(4), np.eye(4)
    for axis, (size, factor) in enumerate(zip(sizes, factors, strict=True)):
        if size == values.shape[axis] and factor == 1:
            continue
        weights = interpolation(values.shape[axis], size, float(factor))
        values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
        scale[axis, axis] = factor
        shift[axis, 3] = (factor - 1) / 2
    return Grid(values.astype(np.float32), grid.affine @ shift @ scale, grid.stored)


def interpolation(old: int, new: int, factor: float) -> Array:
    """Return `(new, old)` weights, each row of sum 1: a triangle around the new voxel's centre.

    Args:
        old: voxels there are.
        new: voxels there shall be.
        factor: new spacing over old.
    """
    centres = (np.arange(new) + 0.5) * factor - 0.5
    distances = np.abs(np.arange(old) - centres[:, None])
    weights = np.clip(1 - distances / max(1.0, factor), 0, None)
    result: Array = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def cut_or_pad(grid: Grid, sizes: Sequence[int], first: Sequence[int] | None = None) -> Grid:
    """Cut a box out of a volume; what lies outside the volume is 0.

    Args:
        grid: the volume.
        sizes: voxels of the box along each axis.
        first: the box's first voxel; None for the box in the middle.
    """
    shape = grid.values.shape
    if first is None:
        first = [(n - size) // 2 for n, size in zip(shape, sizes, strict=True)]
    inside = tuple(
        slice(max(0, f), max(0, min(n, f + s))) for f, s, n in zip(first, sizes, shape, strict=True)
    )
    target = tuple(slice(i.start - f, i.stop - f) for i, f in zip(inside, first, strict=True))
    values = np.zeros(tuple(sizes), dtype=np.float32)
    values[target] = grid.values[inside]
    moved = np.eye(4)
    moved[:3, 3] = first
    return Grid(values, grid.affine @ moved, grid.stored)


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(int(side)) for side in shape)
