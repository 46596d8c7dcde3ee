"""Reading one picture file, whatever its pixel format."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from medpfl._paths import printable, why
from medpfl.errors import DataError

# Pillow tells the format by a file's content, whatever its name says, and among its formats are
# some that start another program: an EPS file named .jpg would run Ghostscript.
_FORMATS: Mapping[str, str] = MappingProxyType(
    {
        ".bmp": "BMP",
        ".gif": "GIF",
        ".jpeg": "JPEG",
        ".jpg": "JPEG",
        ".pgm": "PPM",
        ".png": "PNG",
        ".ppm": "PPM",
        ".tif": "TIFF",
        ".tiff": "TIFF",
        ".webp": "WEBP",
    }
)

IMAGE_SUFFIXES = frozenset(_FORMATS)
RASTER_FORMATS = tuple(sorted(set(_FORMATS.values())))

MAX_PIXELS = 89_478_485  # from where on Pillow itself speaks of decompression bombs
MAX_ASPECT = 50
SIXTEEN_BIT_WHITE = 65535

# At debug level Pillow logs what is written inside files: names of patients, among other things.
logging.getLogger("PIL").setLevel(logging.INFO)


def read_image(path: Path, channels: int, *, name: str | None = None) -> Image.Image:
    """Read a picture file upright, without transparency, at its full precision.

    Args:
        path: a file in one of `RASTER_FORMATS`; of a file with several frames, the first.
        channels: 1 for grey levels, 3 for colour.
        name: what messages call the file; its path where None.

    Returns:
        A PIL image of mode ``L`` or ``RGB``; of mode ``F`` with values in [0, 1] for 16-bit grey
        levels, which 8 bits could not hold.

    Raises:
        DataError: if the file is missing, of another format, damaged, cut short, too large, or if
            its pixels have an unknown range.
    """
    with _opened(path, name) as file:
        return with_channels(ImageOps.exif_transpose(file), channels)


def check_header(path: Path, *, name: str | None = None) -> None:
    """Raise DataError if the file does not begin like a picture that `read_image` takes.

    Its pixels are not decoded.
    """
    with _opened(path, name):
        pass


@contextmanager
def _opened(path: Path, name: str | None) -> Iterator[Image.Image]:
    """Open a picture whose size is fit for decoding; every fault inside becomes a DataError.

    Messages and their causes hold nothing of the path: what a file is called may be private.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata beside pixels that can be read
            with _nameless(path) as raw, Image.open(raw, formats=RASTER_FORMATS) as picture:
                _check_size(picture)
                yield picture
    # Pillow has no error class for damaged content. Each decoder raises what it met: besides
    # OSError and SyntaxError, on files that differ from good ones by a byte, ZeroDivisionError,
    # TypeError, AttributeError, KeyError, struct.error, OverflowError, MemoryError and others.
    # Only Pillow's work and the conversion of its pixels are done inside.
    except Exception as error:
        called = printable(path) if name is None else name
        raise DataError(f"cannot read the image {called}: {_reason(error)}") from None


def _nameless(path: Path) -> BinaryIO:
    """Open a file by its number: it has no name then that Pillow could put into a message."""
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), "rb")


def _check_size(picture: Image.Image) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise DataError(f"it has {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise DataError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(
            f"it has {width} x {height} pixels: one side is over {MAX_ASPECT} times the other"
        )


def _reason(error: Exception) -> str:
    match error:
        case UnidentifiedImageError():
            return f"not a picture of the formats {', '.join(RASTER_FORMATS)}, or damaged"
        case Image.DecompressionBombError():
            return f"it has more than {MAX_PIXELS:,} pixels"
        case DataError():
            return str(error)
        case OSError() if error.errno is not None:
            return why(error)
    text = " ".join(str(error).split())
    return f"damaged ({type(error).__name__}{f': {text}' if text else ''})"


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert a picture of any mode to ``L`` or ``RGB``, or to ``F`` where 8 bits are too few.

    Transparent pixels are laid on black, the background of medical images.

    Args:
        image: any PIL image. Modes ``I`` and ``I;16`` are grey levels from 0 to 65535, mode ``F``
            grey levels from 0 to 1.
        channels: 1 or 3.

    Returns:
        A PIL image of mode ``L``, ``RGB`` or ``F``.

    Raises:
        DataError: if the values of a deep picture leave the range above.
    """
    if image.mode.startswith(("I", "F")):
        return _deep_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image.convert("L" if channels == 1 else "RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    white = 1 if image.mode == "F" else SIXTEEN_BIT_WHITE
    values = np.asarray(image).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):
        raise DataError(
            f"grey levels run from {low:g} to {high:g}, outside 0 to {white} of mode {image.mode}; "
            "convert the file to 8 or 16 bit"
        )
    return Image.fromarray(values / np.float32(white))
