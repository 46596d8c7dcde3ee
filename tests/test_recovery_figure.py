"""The curve of what read-outs recover: its numbers, its picture, and which runs have one."""

from __future__ import annotations

import csv
import stat

import pytest
import torch
from helpers import config, seeded
from PIL import Image
from test_readouts_judged import SPEC, drawn, judged, read_out, truth_of

from medpfl import runner
from medpfl.image_score import READOUT_COLUMNS
from medpfl.metrics.readout import expected_share
from medpfl.metrics.recovery import ATTACK, curves_of
from medpfl.report.recovery_figure import FILE, recovery_figure, write_recovery


@pytest.fixture(scope="module")
def scores():
    """Return four images: exact, 34 dB, unlike anything, and without a read-out."""
    x = truth_of(4).inputs
    noisy = (x[1] + 0.02 * torch.randn(SPEC.shape, generator=seeded())).clamp(0, 1)
    return judged(truth_of(4), read_out(torch.stack([x[0], noisy, drawn(1, seed=7)[0]]))).scores


def test_curves_count_the_images_beyond_each_threshold(scores):
    mse, psnr, ssim = curves_of(scores)
    at = {c.measure: dict(zip(c.thresholds, c.shares[ATTACK], strict=True)) for c in (mse, psnr)}
    assert [at["psnr_db"][t] for t in (0.0, 33.0, 35.0, 80.0)] == [0.75, 0.5, 0.25, 0.25]
    assert at["mse"][1.0] == 0.75  # an image without a read-out is not recovered by anything
    assert list(mse.shares[ATTACK]) == sorted(mse.shares[ATTACK])
    assert list(ssim.shares[ATTACK]) == sorted(ssim.shares[ATTACK], reverse=True)
    first = psnr.shares
    assert [first[guess][0] for guess in ("zeros", "batch_mean", "dataset_mean")] == [1.0] * 3
    assert [first[guess][20] for guess in ("zeros", "batch_mean", "dataset_mean")] == [0.0] * 3
    assert (psnr.low[33], psnr.high[33]) == pytest.approx((0.150, 0.850), abs=1e-3)


def test_the_numbers_and_the_picture_are_private_files(scores, tmp_path):
    write_recovery(tmp_path, scores)
    recovery_figure(tmp_path / "recovery.png", scores, title="imprint", synthetic=False)
    with (tmp_path / FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 81 + 81 + 102
    (row,) = (r for r in rows if r["measure"] == "psnr_db" and r["threshold"] == "30")
    assert (row["n"], row["attack"], row["zeros"]) == ("4", "0.5", "0.0")
    with Image.open(tmp_path / "recovery.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o600}
    with pytest.raises(ValueError, match="nothing to draw"):
        recovery_figure(tmp_path / "x.png", [], title="", synthetic=False)


def test_a_run_of_an_imprint_has_the_curve_and_columns_of_read_outs(tmp_path):
    """Two bins for three images: somebody is not alone, and no search is run to tell them apart."""
    settings = ("attack=imprint", "dataset=phantom", "model=lenet", "server.bins=2", "n_images=3")
    told = (*settings, "federation.batch_size=3", "dataset.per_class=5")
    summary = runner.run(config(*told), tmp_path / "run", overrides=told)
    assert summary.readout.expected_share == expected_share(2, 3)
    assert summary.readout.readouts == summary.readout.matched < 3
    assert (tmp_path / "run/figures/recovery.png").exists()
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [name for name in rows[0] if name in READOUT_COLUMNS] == list(READOUT_COLUMNS)
    unmatched = [row for row in rows if row["status"] == "unmatched"]
    assert len(rows) == 3
    assert len(unmatched) == 3 - summary.readout.matched
    assert {row["success"] for row in unmatched} == {"False"}
    assert (tmp_path / "run" / FILE).read_text().startswith("measure,threshold,n,attack,")
