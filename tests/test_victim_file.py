"""Victims' records of any damage, as a resume may meet them: a message, never a traceback."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import damaged

from medpfl.errors import MedpflError
from medpfl.image_score import ImageScore
from medpfl.report.victim_file import VictimRecord, load_victim, save_victim
from medpfl.types import Trace

TEXTS = {
    "capture_id": "round-000/client-0",
    "image_id": "a/1",
    "status": "stalled",
    "grade": "exact",
    "grade_mean_image": "",
}
NUMBERS = {name: 1.0 for name in ImageScore.fixed_columns() if name not in TEXTS}
SCORE = ImageScore(**TEXTS, **NUMBERS, measures={"mine": 0.5, "mine_zeros": float("nan")})
OLDER = replace(SCORE, measures={})


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    images = torch.rand((1, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    trace = Trace(
        torch.arange(2), torch.ones(2, dtype=torch.float64), images[None].repeat(2, 1, 1, 1, 1)
    )
    save_victim(tmp_path / "v.npz", VictimRecord(images, images, (SCORE,), trace, torch.ones(2)))
    return tmp_path / "v.npz"


def test_any_damage_is_read_or_refused(whole):
    load_victim(whole)
    refusals = []
    for content in damaged(whole.read_bytes(), 400, np.random.default_rng(3)):
        whole.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, at headers of old Pythons
            try:
                victim = load_victim(whole)
            except MedpflError as refused:
                refusals.append(str(refused))
                continue
        assert victim.original.shape == victim.reconstruction.shape
    assert refusals
    assert all("is not a readable record of a victim" in refusal for refusal in refusals)


@pytest.mark.parametrize(
    ("place", "value"),
    [(4, 64), (4, 255), (6, 1), (6, 0x41), (8, 12), (8, 14), (8, 93), (8, 99)],
    ids=["version 6.4", "version 25.5", "encrypted", "flags", "bz2", "lzma", "zstd", "unknown"],
)
def test_zip_files_of_another_kind(whole, place, value):
    content = bytearray(whole.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        start = content.find(mark)
        while start >= 0:
            struct.pack_into("<H", content, start + offset + place, value)
            start = content.find(mark, start + 4)
    whole.write_bytes(content)
    with pytest.raises(MedpflError, match="is not a readable record of a victim"):
        load_victim(whole)


def rewritten(whole: Path, **changes: np.ndarray) -> None:
    with np.load(whole) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    np.savez(whole, **{**kept, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"original": np.zeros((1, 3, 5, 5), np.float32)},
        {"original": np.zeros((2, 3, 4, 4), np.float32)},
        {"original": np.zeros(1, np.float32), "reconstruction": np.zeros(1, np.float32)},
        {"reconstruction": np.full((1, 3, 4, 4), np.nan, np.float32)},
        {"reconstruction": np.zeros((1, 3, 4, 4))},
        {"reconstruction": np.array(["text"])},
    ],
)
def test_arrays_that_do_not_go_together(whole, changes):
    rewritten(whole, **changes)
    with pytest.raises(MedpflError, match="is not a readable record"):
        load_victim(whole)


@pytest.mark.parametrize(
    "rows",
    [
        "text",
        "{}",
        "[[]]",
        "[1]",
        '["x"]',
        "[" * 50_000,
        *(
            json.dumps([{**OLDER.row(), **change}])
            for change in (
                {"image_id": 5},
                {"image_id": None},
                {"ssim": []},
                {"ssim": {}},
                {"ssim": "high"},
                {"steps": [1]},
                {"unknown": None},
                {"unknown": "1"},
                {"unknown": {}},
                {"no name": 1},
                {"measures": {"mine": 1.0}},
            )
        ),
    ],
    ids=lambda rows: rows[:12],
)
def test_scores_of_another_shape(whole, rows):
    rewritten(whole, scores=np.array(rows))
    with pytest.raises(MedpflError, match="is not a readable record"):
        load_victim(whole)


def test_measures_come_back_and_older_rows_have_none(whole):
    assert repr(load_victim(whole).scores) == repr((SCORE,))
    rewritten(whole, scores=np.array(json.dumps([OLDER.row()])))
    assert load_victim(whole).scores == (OLDER,)


def test_a_zip_without_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "v.npz", "w") as file:
        file.writestr("original.npy", io.BytesIO(b"no array").getvalue())
    with pytest.raises(MedpflError, match="is not a readable record"):
        load_victim(tmp_path / "v.npz")
