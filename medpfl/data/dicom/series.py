"""A DICOM series as a volume: its pictures in order, with every one where it belongs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medpfl.data.dicom.header import Header, check_syntax, opened
from medpfl.data.dicom.pixels import frame_of, functional, spacing_of
from medpfl.data.volumes.grid import Grid, canonical, check_memory
from medpfl.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

Array = NDArray[np.floating[Any]]

# By how much of the distance between slices one may be off its place: headers round.
_TOLERANCE = 0.05
_SAME_DIRECTION = 1e-3


@dataclass(frozen=True, eq=False)
class _Slice:
    """One picture and its place: `corner` and the directions of its rows and columns, in LPS."""

    values: Array = field(repr=False)
    corner: Array
    along: Array
    spacing_mm: tuple[float, float]
    inverted: bool

    @property
    def normal(self) -> Array:
        """The direction of the slices, `(3,)`."""
        across: Array = np.cross(self.along[0], self.along[1])
        return across


def lacks_slices(headers: Sequence[Header]) -> str:
    """Return why a series may have lost its first or last slices; empty where nothing says so.

    Places tell of a gap between slices and not of an end that is missing. Two things hint at one:
    pictures that count from another number than 0 or 1 without a gap, and an acquisition that says
    to have more pictures than there are.

    Args:
        headers: of the files of one series, a picture each.
    """
    known = [header.number for header in headers if header.number is not None]
    told = {header.of for header in headers}
    if len(told) == 1 and (most := told.pop()) is not None and most > len(headers):
        return f"its headers tell of {most} pictures, and there are {len(headers)}"
    first = min(known, default=0)
    unbroken = sorted(known) == list(range(first, first + len(headers)))
    return f"its pictures are numbered from {first}" if unbroken and first > 1 else ""


def read_series(paths: Sequence[Path]) -> tuple[Grid, bool]:
    """Read the pictures of one series, whatever order its files are in.

    Args:
        paths: its files; one file of many frames, or one a picture.

    Returns:
        The volume, in the unit that the headers give it, and whether low values are bright.

    Raises:
        DataError: what is wrong, without a file's name: a slice is missing, there are two at one
            place, or they do not lie side by side. What pydicom raises on damaged files comes
            through as it is.
    """
    slices = [piece for path in paths for piece in _slices_of(path, len(paths))]
    if len(slices) < 2:
        raise DataError("it is a single slice: a volume needs two or more")
    first = slices[0]
    _check_alike(slices)
    slices.sort(key=lambda piece: float(piece.corner @ first.normal))
    step = _step(slices)
    # DICOM's patient axes run left and posterior, NIfTI's right and anterior.
    affine = np.eye(4)
    affine[:3, 0] = first.along[0] * first.spacing_mm[0]
    affine[:3, 1] = first.along[1] * first.spacing_mm[1]
    affine[:3, 2] = step
    affine[:3, 3] = slices[0].corner
    affine[:2] *= -1
    values = np.stack([piece.values.T for piece in slices], axis=2)
    return canonical(values, affine), first.inverted


def _slices_of(path: Path, files: int) -> list[_Slice]:
    data = opened(path, pixels=True)
    check_syntax(data)
    frames = int(data.get("NumberOfFrames") or 1)
    check_memory((int(data.Rows), int(data.Columns), frames * files), "its headers")
    return [_slice(data, number) for number in range(frames)]


def _slice(data: Dataset, number: int) -> _Slice:
    frame = frame_of(data, number)
    if not frame.grey:
        raise DataError("its pictures are in colour: a volume has grey levels")
    corner = functional(data, number, "PlanePositionSequence").get("ImagePositionPatient")
    along = functional(data, number, "PlaneOrientationSequence").get("ImageOrientationPatient")
    if not corner or not along or frame.spacing_mm is None:
        raise DataError(
            "a header does not say where its picture lies (Image Position, Image Orientation, "
            "Pixel Spacing), so that no volume can be built; read pictures one by one with "
            "dataset=dicom"
        )
    return _Slice(
        values=frame.values,
        corner=np.asarray([float(v) for v in corner]),
        along=np.asarray([float(v) for v in along]).reshape(2, 3),
        spacing_mm=spacing_of(data, number) or frame.spacing_mm,
        inverted=frame.inverted,
    )


def _check_alike(slices: Sequence[_Slice]) -> None:
    first = slices[0]
    for piece in slices[1:]:
        if piece.values.shape != first.values.shape:
            raise DataError(
                "its slices differ in size: leave out scouts and other pictures beside the series"
            )
        if np.abs(piece.along - first.along).max() > _SAME_DIRECTION:
            raise DataError(
                "its slices lie in different directions, as with a scout among them: leave it out"
            )
        if piece.spacing_mm != first.spacing_mm:
            raise DataError("its slices differ in the spacing of their pixels")


def _step(slices: Sequence[_Slice]) -> Array:
    """Return the way from one slice to the next, `(3,)`, or raise where there is not one way."""
    places = np.asarray([float(piece.corner @ slices[0].normal) for piece in slices])
    gaps = np.diff(places)
    apart = gaps[gaps > _TOLERANCE * gaps.max()] if gaps.max() > 0 else gaps[:0]
    if len(apart) < len(gaps):
        raise DataError(
            f"{len(gaps) - len(apart)} of its {len(slices)} slices lie where another does: several "
            "echoes, times or copies in one folder. Put each into a folder of its own"
        )
    usual = float(np.percentile(gaps, 50, method="lower"))
    wide = np.flatnonzero(gaps > 2 * (1 - _TOLERANCE) * usual)
    if len(wide):
        place = int(wide[0])
        raise DataError(
            f"slices are missing: slices {place + 1} and {place + 2} of {len(slices)} lie "
            f"{gaps[place]:g} mm apart, the others {usual:g} mm. Add what is missing, or leave the "
            "series out"
        )
    if float(np.abs(gaps - usual).max()) > _TOLERANCE * usual:
        raise DataError(
            f"its slices lie {gaps.min():g} to {gaps.max():g} mm apart: a volume needs one distance"
        )
    step: Array = (slices[-1].corner - slices[0].corner) / (len(slices) - 1)
    return step
