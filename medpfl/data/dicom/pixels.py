"""DICOM pixels as grey levels: modality rescale, window, MONOCHROME1, colours, several frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medpfl.data.dicom.header import check_syntax, opened
from medpfl.data.volumes.grid import check_finite, check_memory
from medpfl.data.volumes.intensity import Function, Window, grey_levels
from medpfl.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

Array = NDArray[np.floating[Any]]

_FUNCTIONS: tuple[Function, ...] = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a file, in the unit that the header gives it.

    Args:
        values: `(rows, columns)` float32; `(rows, columns, 3)` in [0, 1] of colours.
        window: the file's own window, or None.
        shown: grey levels in [0, 1] by the file's own table (VOI LUT), or None.
        inverted: whether low values are bright (MONOCHROME1).
        spacing_mm: of columns and rows, `(x, y)`, or None where the header does not say.
    """

    values: Array = field(repr=False)
    window: Window | None
    shown: Array | None = field(repr=False)
    inverted: bool
    spacing_mm: tuple[float, float] | None

    @property
    def grey(self) -> bool:
        """Whether a pixel is one number."""
        return self.values.ndim == 2

    def picture(self, window: Window | None, spacing_mm: Sequence[float] | None) -> Image.Image:
        """Return the picture: mode ``F`` in [0, 1], or ``RGB``.

        Args:
            window: what becomes black and white; None for the file's own table or window, or
                else its robust percentiles.
            spacing_mm: what to resample pixels to, `[x, y]`, or None.

        Raises:
            DataError: it shows nothing, or its spacing is asked for and not known.
        """
        if self.grey:
            own = self.shown if window is None else None
            grey = grey_levels(self.values, window or self.window) if own is None else own
            picture = Image.fromarray(1 - grey if self.inverted else grey)
        else:
            picture = Image.fromarray(np.round(self.values * 255).astype(np.uint8))
        return picture if spacing_mm is None else self._resampled(picture, spacing_mm)

    def _resampled(self, picture: Image.Image, spacing_mm: Sequence[float]) -> Image.Image:
        if self.spacing_mm is None:
            raise DataError(
                "its header does not say the spacing of its pixels: leave out dataset.spacing_mm"
            )
        sides = zip(picture.size, self.spacing_mm, spacing_mm, strict=True)
        width, height = (max(1, round(n * old / new)) for n, old, new in sides)
        check_memory((width, height), f"dataset.spacing_mm={[float(s) for s in spacing_mm]}")
        return picture.resize((width, height), Image.Resampling.BILINEAR)


def read_frame(path: Path, number: int) -> Frame:
    """Read one picture of a file.

    Args:
        path: the file.
        number: of the picture, from 0.

    Raises:
        DataError: what is wrong, without the file's name. What pydicom raises on damaged files
            comes through as it is.
    """
    data = opened(path, pixels=True)
    check_syntax(data)
    return frame_of(data, number)


def frame_of(data: Dataset, number: int) -> Frame:
    """Return one picture of an opened file; see `read_frame`."""
    photometric = str(data.get("PhotometricInterpretation", ""))
    stored = _stored(data, number)
    if stored.ndim == 3:
        bits = int(data.BitsStored) if photometric != "PALETTE COLOR" else 8 * stored.itemsize
        colours = np.clip(stored / (2**bits - 1), 0, 1)
        return Frame(colours, None, None, False, spacing_of(data, number))
    values = stored.astype(np.float32)
    shared = functional(data, number, "PixelValueTransformationSequence")
    slope, intercept = shared.get("RescaleSlope"), shared.get("RescaleIntercept")
    padding = data.get("PixelPaddingValue")
    beside = None if padding is None else stored == padding
    values = values * float(1 if slope in (None, "") else slope)
    values = values + float(0 if intercept in (None, "") else intercept)
    if beside is not None and beside.any() and not beside.all():
        values[beside] = values[~beside].min()
    check_finite(values)
    return Frame(
        values,
        _own_window(functional(data, number, "FrameVOILUTSequence")),
        _by_table(values, data),
        photometric == "MONOCHROME1",
        spacing_of(data, number),
    )


def _stored(data: Dataset, number: int) -> NDArray[Any]:
    """Return the numbers of a picture as they are stored, colours as RGB."""
    from pydicom.pixels import apply_color_lut

    frames = data.pixel_array
    several = int(data.get("NumberOfFrames") or 1) > 1
    stored: NDArray[Any] = frames[number] if several else frames
    if str(data.get("PhotometricInterpretation", "")) == "PALETTE COLOR":
        # A table may hold 8 bits in words of 16.
        stored = apply_color_lut(stored, data)
        if stored.dtype == np.uint16 and int(stored.max()) < 256:
            stored = stored.astype(np.uint8)
    return stored


def functional(data: Dataset, number: int, sequence: str) -> Dataset:
    """Return where a picture's own attributes stand: in its functional group, or in the file.

    Enhanced files keep what older ones have at the top level in groups, of each picture or shared
    (DICOM PS3.3, C.7.6.16).
    """
    groups = [
        *list(data.get("PerFrameFunctionalGroupsSequence") or ())[number : number + 1],
        *list(data.get("SharedFunctionalGroupsSequence") or ())[:1],
    ]
    for group in groups:
        items = group.get(sequence)
        if items:
            found: Dataset = items[0]
            return found
    return data


def spacing_of(data: Dataset, number: int) -> tuple[float, float] | None:
    """Return the spacing of columns and rows in millimetres, or None where nothing says it."""
    measures = functional(data, number, "PixelMeasuresSequence")
    spacing = measures.get("PixelSpacing") or data.get("ImagerPixelSpacing")
    if not spacing or len(spacing) != 2:
        return None
    between_rows, between_columns = float(spacing[0]), float(spacing[1])
    if not (np.isfinite([between_rows, between_columns]).all() and between_rows > 0):
        return None
    return (between_columns, between_rows) if between_columns > 0 else None


def _own_window(data: Dataset) -> Window | None:
    """Return a file's first window, or None."""
    center, width = (_first(data.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or width < 1:
        return None
    told = str(data.get("VOILUTFunction") or "LINEAR")
    return Window(center, width, next((f for f in _FUNCTIONS if f == told), "LINEAR"))


def _by_table(values: Array, data: Dataset) -> Array | None:
    """Return grey levels in [0, 1] by a file's first table of them, or None where it has none.

    Source: DICOM PS3.3, C.11.2.1.1: values below the first and above the last of the table are
    shown as these, and the third number of its descriptor is how many bits its entries have.
    """
    tables = data.get("VOILUTSequence")
    if not tables:
        return None
    entries, first, bits = (int(number) for number in tables[0].LUTDescriptor)
    told = tables[0].LUTData
    table = np.frombuffer(told, dtype="<u2") if isinstance(told, bytes) else np.asarray(told)
    table = table[: entries or 2**16]  # of 65536 entries, 0 is said
    place = np.clip(np.round(values).astype(np.int64) - first, 0, len(table) - 1)
    shown: Array = np.clip(table[place] / (2**bits - 1), 0, 1).astype(np.float32)
    if float(shown.min()) == float(shown.max()):
        raise DataError("its own table of grey levels shows nothing of it: set dataset.window")
    return shown


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    several = not isinstance(value, str) and hasattr(value, "__len__")
    return float(value[0] if several else value)
