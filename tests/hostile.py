"""Damaged files: real encoders' output with bytes changed, cut or repeated, from a fixed seed."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image


def damaged(content: bytes, count: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Yield `count` damaged copies of a file; headers, which hold sizes and kinds, more often."""
    for number in range(count):
        copy = bytearray(content)
        reach = len(copy) if number % 2 else min(len(copy), 400)
        for place in rng.integers(0, reach, int(rng.integers(1, 6))):
            copy[place] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(0, 256))]))
        if number % 5 == 0:
            del copy[int(rng.integers(0, len(copy))) :]
        if number % 7 == 0:
            start, end = sorted(rng.integers(0, len(copy) + 1, 2))
            copy[start:start] = copy[start:end]
        yield bytes(copy)


def pictures(rng: np.random.Generator) -> dict[str, bytes]:
    """Return small pictures of every format and many kinds of pixels, as encoders write them."""
    colour = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    grey = colour.convert("L")
    deep = Image.fromarray(rng.integers(0, 65536, (24, 20), dtype=np.uint16))
    palette = colour.quantize(16)
    clear = colour.convert("RGBA")
    clear.putalpha(grey)
    turned = Image.Exif()
    turned[0x0112] = 6
    turned[0x010E] = "a description"
    turned[0x011A] = 72.5  # a resolution is a ratio of integers
    tags = {270: "text", 282: 72.5, 305: "software"}
    frames = [palette, palette.transpose(Image.Transpose.ROTATE_180)]
    kinds = {
        "bmp": (colour, "BMP", {}),
        "palette.bmp": (palette, "BMP", {}),
        "gif": (palette, "GIF", {}),
        "animated.gif": (frames[0], "GIF", {"save_all": True, "append_images": frames[1:]}),
        "jpg": (colour, "JPEG", {}),
        "turned.jpg": (colour, "JPEG", {"exif": turned}),
        "progressive.jpg": (grey, "JPEG", {"progressive": True, "optimize": True}),
        "cmyk.jpg": (colour.convert("CMYK"), "JPEG", {}),
        "pgm": (grey, "PPM", {}),
        "deep.pgm": (deep, "PPM", {}),
        "ppm": (colour, "PPM", {}),
        "png": (colour, "PNG", {"exif": turned}),
        "deep.png": (deep, "PNG", {}),
        "clear.png": (clear, "PNG", {}),
        "palette.png": (palette, "PNG", {"transparency": 1}),
        "animated.png": (colour, "PNG", {"save_all": True, "append_images": [colour, grey]}),
        "tif": (colour, "TIFF", {"tiffinfo": tags}),
        "deep.tif": (deep, "TIFF", {"tiffinfo": tags}),
        "float.tif": (grey.convert("F").point(lambda v: v / 256), "TIFF", {}),
        "lzw.tif": (colour, "TIFF", {"compression": "tiff_lzw", "tiffinfo": tags}),
        "deflate.tif": (grey, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (colour, "TIFF", {"compression": "jpeg"}),
        "fax.tif": (grey.convert("1"), "TIFF", {"compression": "group4"}),
        "webp": (colour, "WEBP", {"exif": turned}),
        "lossless.webp": (clear, "WEBP", {"lossless": True}),
    }
    return {name: _encoded(*kind) for name, kind in kinds.items()}


def _encoded(image: Image.Image, kind: str, options: dict[str, object]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
