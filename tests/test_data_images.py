"""Reading picture files: every pixel format, full precision, and damaged files."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from medpfl.data.images import MAX_PIXELS, check_header, read_image
from medpfl.data.preprocess import Preprocess
from medpfl.errors import DataError

RED = (200, 40, 10)
RED_AS_GREY = Image.new("RGB", (1, 1), RED).convert("L").getpixel((0, 0))


def save(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


def first_pixel(path: Path, channels: int = 3) -> object:
    return read_image(path, channels).getpixel((0, 0))


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("L", 77, ".png", (77, 77, 77)),
        ("1", 1, ".png", (255, 255, 255)),
        ("RGB", RED, ".png", RED),
        ("RGBA", (*RED, 255), ".png", RED),
        ("RGBA", (*RED, 0), ".png", (0, 0, 0)),
        ("RGBA", (200, 100, 50, 51), ".png", (40, 20, 10)),
        ("LA", (100, 51), ".png", (20, 20, 20)),
        ("CMYK", (0, 255, 255, 0), ".tif", (255, 0, 0)),
        ("YCbCr", (255, 128, 128), ".tif", (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb_with_transparency_on_black(
    tmp_path, mode, colour, suffix, expected
):
    path = save(Image.new(mode, (4, 3), colour), tmp_path / f"x{suffix}")
    assert read_image(path, 3).mode == "RGB"
    assert first_pixel(path) == expected


def test_palette_with_a_transparent_entry_is_laid_on_black(tmp_path):
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, *RED])
    opaque = save(image, tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert first_pixel(opaque) == RED
    assert first_pixel(tmp_path / "clear.png") == (0, 0, 0)


def test_one_channel_is_the_usual_luma(tmp_path):
    path = save(Image.new("RGB", (4, 3), RED), tmp_path / "x.png")
    assert first_pixel(path, channels=1) == RED_AS_GREY


def test_exif_rotation_is_undone(tmp_path):
    image = Image.new("L", (8, 4))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise for viewing
    image.save(tmp_path / "x.png", exif=exif)
    upright = read_image(tmp_path / "x.png", 1)
    assert upright.size == (4, 8)
    assert upright.getpixel((3, 0)) == 255


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_keeps_its_precision_through_the_resize(tmp_path, suffix):
    ramp = (np.arange(64, dtype=np.uint16) + 30_000).reshape(8, 8)
    path = save(Image.fromarray(ramp), tmp_path / f"x{suffix}")
    example = Preprocess(size=8)(read_image(path, 3))
    assert example.shape == (3, 8, 8)
    expected = ramp.astype(np.float64) / 65535
    np.testing.assert_allclose(example[0].numpy(), expected, atol=1e-7)
    assert len(np.unique(example.numpy())) == 64  # 8 bits would leave one


def test_big_endian_and_32_bit_containers_of_16_bit_grey(tmp_path):
    levels = np.array([[0, 65535], [256, 1]], dtype=">u2")
    Image.frombytes("I;16B", (2, 2), levels.tobytes()).save(tmp_path / "big.tif")
    Image.fromarray(levels.astype(np.int32)).save(tmp_path / "wide.tif")
    for name in ("big.tif", "wide.tif"):
        values = np.asarray(read_image(tmp_path / name, 1))
        np.testing.assert_allclose(values, levels.astype(np.float64) / 65535, atol=1e-7)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((2, 2), 70_000, np.int32), "outside 0 to 65535"),
        (np.full((2, 2), 3.5, np.float32), "outside 0 to 1"),
        (np.full((2, 2), np.nan, np.float32), "outside 0 to 1"),
    ],
)
def test_grey_levels_of_unknown_range_are_refused(tmp_path, values, words):
    path = save(Image.fromarray(values), tmp_path / "deep.tif")
    with pytest.raises(DataError, match=rf"deep\.tif.*{words}"):
        read_image(path, 1)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".gif", ".bmp", ".webp"])
def test_files_that_are_cut_short_are_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = save(Image.fromarray(noise), tmp_path / f"whole{suffix}").read_bytes()
    for share in (0.0, 0.3, 0.8):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=f"cut{suffix}"):
            read_image(path, 3)


def test_a_missing_file_and_a_text_file_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "missing.png"):
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name, 3)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that says how large it is, and holds a pixel or two."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((9_500, 9_500), r"9500 x 9500 pixels, more than 89,478,485"),
        ((15_000, 15_000), "more than 89,478,485"),  # where Pillow itself refuses
        ((2**31 - 1, 2**31 - 1), "more than 89,478,485"),
        ((1, 5_000_000), "1 x 5000000 pixels: one side is over 50 times the other"),
        ((5_000_000, 1), "5000000 x 1 pixels: one side is over 50 times the other"),
        ((0, 5), "not a picture of the formats"),
    ],
)
def test_sizes_that_are_no_picture_are_refused_before_decoding(tmp_path, monkeypatch, size, words):
    def decoded(self):
        pytest.fail("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(*size))
    for look in (check_header, lambda path: read_image(path, 1)):
        with pytest.raises(DataError, match=rf"huge\.png.*{words}"):
            look(path)
    assert not Image.MAX_IMAGE_PIXELS or MAX_PIXELS <= Image.MAX_IMAGE_PIXELS


def test_sizes_at_the_limit_are_taken(tmp_path):
    assert read_image(save(Image.new("L", (2, 100), 9), tmp_path / "x.png"), 1).size == (2, 100)
