"""NRRD files, as 3D Slicer and pyradiomics write them: read with pynrrd, which is an extra."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from medpfl.data.volumes.grid import Array, Grid, canonical, check_affine, check_memory
from medpfl.errors import DataError

SUFFIXES = (".nrrd",)
# Of the axes of a named space: 1 where they run as RAS+ does, -1 where they run the other way.
_SIGNS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "left-posterior-superior": (-1, -1, 1),
        "lps": (-1, -1, 1),
        "right-anterior-superior": (1, 1, 1),
        "ras": (1, 1, 1),
        "left-anterior-superior": (-1, 1, 1),
        "las": (-1, 1, 1),
    }
)


def check_nrrd(path: Path) -> None:
    """Look at a NRRD file's header alone, and refuse what `read_nrrd` could not read.

    Raises:
        DataError: what is wrong, without the file's name.
    """
    _checked(path)


def read_nrrd(path: Path) -> Grid:
    """Read a volume.

    Raises:
        DataError: what is wrong, without the file's name. What pynrrd raises on damaged files
            comes through as it is.
    """
    import nrrd

    header, affine = _checked(path)
    with path.open("rb") as file:
        nrrd.read_header(file)  # leaves the file where its voxels begin
        values = nrrd.read_data(header, file)
    return canonical(np.asarray(values, dtype=np.float32), affine)


def _checked(path: Path) -> tuple[dict[str, Any], Array]:
    if find_spec("nrrd") is None:
        raise DataError("NRRD is read with pynrrd: pip install 'medpfl[nrrd]'")
    import nrrd

    with path.open("rb") as file:
        header = dict(nrrd.read_header(file))
    if "data file" in header or "datafile" in header:
        raise DataError("its voxels lie in another file: save it as one .nrrd")
    shape = [int(side) for side in header["sizes"]]
    if len(shape) != 3:
        raise DataError(
            f"it has {len(shape)} dimensions ({' x '.join(map(str, shape))}): a volume has 3"
        )
    check_memory(shape, "its header")
    return header, _affine(header)


def _affine(header: Mapping[str, Any]) -> Array:
    signs = _SIGNS.get(str(header.get("space", "")).lower())
    directions, origin = header.get("space directions"), header.get("space origin")
    if signs is None or directions is None or origin is None:
        raise DataError(
            "it has no affine: which side is the patient's left is not known. Its header needs "
            "space (left-posterior-superior, or another), space directions and space origin"
        )
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, dtype=np.float64).T
    affine[:3, 3] = np.asarray(origin, dtype=np.float64)
    affine[:3] *= np.asarray(signs)[:, None]
    check_affine(affine)
    return affine
