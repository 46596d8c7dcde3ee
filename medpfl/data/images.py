"""Reading one picture file, whatever its pixel format."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from medpfl.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

SIXTEEN_BIT_WHITE = 65535

# Pillow has no error class of its own for damaged content: each decoder raises what it met.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def read_image(path: Path, channels: int) -> Image.Image:
    """Read a picture file upright, without transparency, at its full precision.

    Args:
        path: a file in one of Pillow's formats; of a file with several frames, the first.
        channels: 1 for grey levels, 3 for colour.

    Returns:
        A PIL image of mode ``L`` or ``RGB``; of mode ``F`` with values in [0, 1] for 16-bit grey
        levels, which 8 bits could not hold.

    Raises:
        DataError: if the file is missing, damaged, cut short, too large, or if its pixels have an
            unknown range.
    """
    with _errors_naming(path), Image.open(path) as file:
        return with_channels(ImageOps.exif_transpose(file), channels)


def check_header(path: Path) -> None:
    """Raise DataError if the file does not begin like a picture; its pixels are not decoded."""
    with _errors_naming(path):
        Image.open(path).close()


@contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises, and its alarm at huge pictures, into a DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (DataError, *_DAMAGED) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"cannot read the image {path}: {reason}") from error


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
