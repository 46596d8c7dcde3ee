"""Files that are not what their name says, or are damaged: one message each, and nothing is run."""

from __future__ import annotations

import io
import os
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from hostile import damaged, pictures
from PIL import Image

from medpfl.data import Preprocess
from medpfl.data.images import IMAGE_SUFFIXES, RASTER_FORMATS, check_header, read_image
from medpfl.errors import DataError

PICTURES = pictures(np.random.default_rng(0))
READ = Preprocess(size=8, resize="crop")


def read(path: Path) -> None:
    READ(read_image(path, 3))


@pytest.fixture
def alarm(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note, and refuse, every start of a program and every use of a format outside the list."""
    heard: list[str] = []

    def ring(name: str):
        def rung(*arguments: object, **options: object) -> None:
            heard.append(name)
            raise RuntimeError(name)

        return rung

    for owner, names in ((subprocess, ["Popen", "run"]), (os, ["system", "posix_spawn", "fork"])):
        for name in names:
            monkeypatch.setattr(owner, name, ring(name))
    Image.init()
    for name in set(Image.OPEN) - set(RASTER_FORMATS):
        monkeypatch.setitem(Image.OPEN, name, (ring(name), lambda prefix: True))
    return heard


def foreign() -> dict[str, bytes]:
    """Return files of formats that are not in the list, as Pillow writes them, and some by hand."""
    Image.init()
    picture = Image.new("RGB", (16, 16), (200, 40, 10))
    files = {
        "PSD": b"8BPS\0\x01" + bytes(6) + b"\0\x03\0\0\0\x10\0\0\0\x10\0\x08\0\x03" + bytes(800),
        "PDF by hand": b"%PDF-1.4\n%%EOF\n",
        "EPS by hand": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nquit\n",
        "DOS EPS": b"\xc5\xd0\xd3\xc6" + bytes(28) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "WMF": b"\xd7\xcd\xc6\x9a" + bytes(40),
        "FITS": b"SIMPLE  =                    T" + bytes(2850),
    }
    for name in ("EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "DDS", "ICNS", "JPEG2000", "AVIF"):
        file = io.BytesIO()
        try:
            picture.save(file, name)
        except (KeyError, OSError):  # this Pillow cannot write it
            continue
        files[name] = file.getvalue()
    return files


FOREIGN = foreign()


def test_the_alarm_would_ring(alarm):
    with pytest.raises(RuntimeError):
        Image.open(io.BytesIO(FOREIGN["EPS by hand"])).load()
    with pytest.raises(RuntimeError):
        subprocess.run(["true"])
    assert len(alarm) == 2


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_a_file_of_another_format_is_refused_whatever_its_name(tmp_path, alarm, suffix):
    assert {"EPS", "EPS by hand", "PSD", "PDF"} <= set(FOREIGN)
    for name, content in FOREIGN.items():
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        for look in (check_header, read):
            with pytest.raises(DataError, match="cannot read the image"):
                look(path)
    assert alarm == []


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_the_pictures_are_sound_and_a_wrong_suffix_does_not_matter(tmp_path, alarm, name):
    path = tmp_path / "picture.png"
    path.write_bytes(PICTURES[name])
    read(path)
    assert alarm == []


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_a_damaged_picture_is_read_or_refused_in_one_line(tmp_path, name):
    rng = np.random.default_rng(sorted(PICTURES).index(name))
    path = tmp_path / name
    refusals = []
    for content in damaged(PICTURES[name], 25, rng):
        path.write_bytes(content)
        try:
            read(path)
        except DataError as refusal:
            refusals.append(str(refusal))
    assert refusals
    for refusal in refusals:
        assert refusal.startswith(f"cannot read the image {path}: ")
        assert "\n" not in refusal


@pytest.mark.parametrize(
    "fault",
    [
        ZeroDivisionError("division by zero"),  # ratios in the tags of TIFF and EXIF
        TypeError("'NoneType' object is not subscriptable"),
        AttributeError("'int' object has no attribute 'numerator'"),
        KeyError(256),
        IndexError(),
        OverflowError("too large"),
        MemoryError(),
        RecursionError("maximum recursion depth exceeded"),
        NotImplementedError(),
        UserWarning("strange"),
        AssertionError(),
        OSError("broken data stream"),
        OSError(5, "Input/output error", "a_name.png"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_whatever_a_decoder_raises_is_one_message_without_the_name(tmp_path, monkeypatch, fault):
    def failing(self, *arguments, **options):
        raise fault

    path = tmp_path / "a_name.png"
    path.write_bytes(PICTURES["png"])
    monkeypatch.setattr(Image.Image, "convert", failing)
    with pytest.raises(DataError, match=r"cannot read the image this one: .") as refused:
        read_image(path, 1, name="this one")
    assert "a_name" not in str(refused.value)
    assert refused.value.__suppress_context__
    assert refused.value.__cause__ is None


def test_an_odd_tag_beside_sound_pixels_is_no_error(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(PICTURES["png"])
    transpose = Image.Image.getexif

    def warning(self):
        warnings.warn("Corrupt EXIF data", stacklevel=1)
        return transpose(self)

    monkeypatch.setattr(Image.Image, "getexif", warning)
    read(path)
