"""What a manifest says of where the voxels of its images lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medpfl.captures.fields import Fields, is_number
from medpfl.errors import DataError
from medpfl.geometry import Geometry

Geometries = tuple[Geometry | None, ...]

_NAMES = ("affine", "stored")
_SIDES = ("RL", "AP", "SI")


def geometry_of(geometry: Sequence[Geometry | None]) -> list[dict[str, object] | None] | None:
    """Return what stands in the file: null where no image has a place."""
    if not any(geometry):
        return None
    return [
        None if g is None else {"affine": g.affine.double().tolist(), "stored": g.stored}
        for g in geometry
    ]


def geometry_in(top: Fields, name: str) -> Geometries:
    """Return where the voxels of each image lie, as a list of a file says it.

    Raises:
        DataError: an affine is none, or axes are no axes.
    """
    listed = top.items(name, lambda v: v is None or isinstance(v, dict), "affines, one an image")
    at = Fields({str(n): entry for n, entry in enumerate(listed)}, top.place, f"{name}.")
    return tuple(at.maybe(key, lambda key: _geometry(at, key)) for key in at.values)


def check_geometry(
    geometry: Geometries, count: int | None, shape: Sequence[int], place: str
) -> None:
    """Refuse places that are not one an image, or are of pictures.

    Raises:
        DataError: says which.
    """
    if not geometry:
        return
    if len(geometry) != count:
        raise DataError(
            f"{place}: geometry tells of {len(geometry)} images, and num_examples of {count}"
        )
    if len(shape) != 4:
        raise DataError(
            f"{place}: geometry is of volumes, and data.shape says {list(shape)}: null for pictures"
        )


def _geometry(at: Fields, key: str) -> Geometry:
    given = at.inner(key, _NAMES)

    def is_row(value: object) -> bool:
        return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))

    wanted = "4 rows of 4 finite numbers that can be inverted, the last one 0, 0, 0, 1"
    rows = given.items("affine", is_row, "rows of 4 finite numbers")
    if len(rows) != 4 or rows[3] != [0, 0, 0, 1]:
        raise given.wrong("affine", wanted)
    affine = torch.tensor(rows, dtype=torch.float64)
    if float(torch.linalg.det(affine)) == 0:
        raise given.wrong("affine", wanted)
    stored = given.text("stored")
    if sorted(next((n for n, s in enumerate(_SIDES) if c in s), 3) for c in stored) != [0, 1, 2]:
        raise given.wrong("stored", "three letters, one of each pair R and L, A and P, S and I")
    return Geometry(affine, stored)
