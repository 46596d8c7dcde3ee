"""Volumes slice by slice: their scores, their animation, and what an unmatched one leaves."""

from __future__ import annotations

import csv
import io
import math
import stat

import numpy as np
import pytest
import torch
from helpers import capture_of, spec_of
from PIL import Image
from test_readouts_judged import drawn, judged, read_out, truth_of

from medpfl.data.volumes.grid import Geometry
from medpfl.errors import ConfigurationError
from medpfl.metrics import Scorer, ssim
from medpfl.metrics.measures.slices import OF_VOLUMES
from medpfl.report.record import RunRecord
from medpfl.report.slices import MOST_SLICES, save_slices
from medpfl.types import Truth, UpdateFacts

SPEC = spec_of(1, 11, 12, 13)


def test_the_worst_slice_is_found():
    volume = drawn(1, shape=SPEC.shape)[0]
    guess = volume.clone()
    guess[:, 4] = drawn(1, seed=1, shape=SPEC.shape)[0][:, 4]
    median, worst = (measure(volume, guess, SPEC) for measure in OF_VOLUMES.values())
    assert median == pytest.approx(1.0)
    assert worst == ssim(volume[:, 4], guess[:, 4])
    assert worst < 0.5
    flat = drawn(1, shape=(1, 30, 10, 30))[0]  # slices smaller than the window
    assert all(math.isnan(measure(flat, flat, SPEC)) for measure in OF_VOLUMES.values())


def test_tables_of_volumes_have_slices_and_those_of_pictures_do_not():
    truth = truth_of(2, SPEC)
    found, missing = judged(truth, read_out(truth.inputs[:1]), SPEC).scores
    assert found.measures["ssim_slices_worst"] == pytest.approx(1.0)
    assert missing.measures["ssim_slices_worst"] == missing.measures["ssim_slices_worst_zeros"]
    assert judged(truth_of(1), read_out(truth_of(1).inputs)).scores[0].measures == {}
    with pytest.raises(ConfigurationError, match="ssim_slices_median"):
        Scorer(measures={"ssim_slices_median": None})


def frames(file: io.BytesIO) -> list[np.ndarray]:
    with Image.open(file) as picture:
        shown = []
        for number in range(picture.n_frames):
            picture.seek(number)
            shown.append(np.asarray(picture.convert("L")))
        return shown


def test_the_animation_shows_slices_upright_side_by_side():
    volume = torch.zeros(1, 3, 64, 32)
    volume[0, 1, -1, 5] = 1.0  # the front of the middle slice
    file = io.BytesIO()
    save_slices(file, volume, 1 - volume)
    shown = frames(file)
    assert [frame.shape for frame in shown] == [(128, 64 + 4 + 64)] * 3
    middle = shown[1]
    assert (middle[0, 10], middle[0, 12], middle[2, 10]) == (255, 0, 0)
    assert (middle[0, 68 + 10], middle[2, 68 + 10]) == (0, 255)
    deep = io.BytesIO()
    save_slices(deep, None, torch.linspace(0, 1, 130)[None, :, None, None].expand(1, 130, 12, 12))
    shown = frames(deep)
    assert len(shown) == MOST_SLICES
    assert all((frame[:, :60] == 255).all() for frame in shown)
    assert (shown[0][0, -1], shown[-1][0, -1]) == (5, 250)


def test_only_a_matched_volume_is_written_as_nifti(tmp_path):
    truth = truth_of(2, SPEC)
    places = (Geometry(torch.eye(4).double(), "RAS"),) * 2
    truth = Truth(truth.inputs, truth.labels, truth.ids, places)
    found, facts = read_out(truth.inputs[[1]]), UpdateFacts(1.0, torch.ones(2))
    record = RunRecord.create(tmp_path / "run", config={}, overrides=[], seed=0)
    record.add(capture_of(truth, facts, SPEC), found, judged(truth, found, SPEC))
    record.finish(record.summarise())
    files = sorted((tmp_path / "run/reconstructions").iterdir())
    first = "round-000__client-0__class__"
    assert [path.name.removeprefix(first) for path in files[1:]] == [
        *("0.gif", "0.png", "1.gif", "1.nii.gz", "1.original.nii.gz", "1.png"),
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert max(path.stat().st_size for path in files) < 400_000
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[1]
    assert float(row["ssim_slices_median"]) == pytest.approx(1.0)
    assert float(row["ssim_slices_worst_zeros"]) < 0.1
