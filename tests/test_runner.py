"""One whole run on drawn images: its record, and what is left of one that ends early."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median

import pytest
from helpers import config

from medpfl import runner
from medpfl.errors import MedpflError
from medpfl.image_score import ImageScore
from medpfl.metrics import Summary
from medpfl.metrics.rates import is_zero_gradient, wilson
from medpfl.report.record import load_victim
from medpfl.runner import run

# Three images, of which the first alone sends no gradient; enough steps to move, not to solve.
THREE = (
    "attack=cpl",
    "dataset.select=[skin_irregular/0000,head_lesion/0000,chest_clear/0000]",
    "attack.optimizer.max_steps=1",
    "attack.optimizer.max_iter=4",
    "attack.trace_points=4",
)


def record_of(folder: Path) -> tuple[dict, list[dict[str, str]]]:
    """Return ``run.json`` and the rows of ``metrics.csv``."""
    text = (folder / "run.json").read_text(encoding="utf-8")
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return json.loads(text), list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Summary]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, run(config(*THREE), folder, overrides=[*THREE])


def test_the_record_is_complete(finished):
    folder, summary = finished
    facts, rows = record_of(folder)
    assert (facts["status"], facts["error"], facts["seed"]) == ("complete", None, 0)
    assert facts["overrides"] == list(THREE)
    assert facts["config"]["attack"]["name"] == "cpl"
    assert facts["device"].startswith("cpu")
    assert facts["versions"]["torch"]
    assert "commit" in facts
    written = {k: None if v != v else v for k, v in asdict(summary).items()}  # NaN becomes null
    assert facts["summary"] == written
    ids = ["skin_irregular/0000", "head_lesion/0000", "chest_clear/0000"]
    assert [row["image_id"] for row in rows] == ids
    assert list(rows[0]) == list(ImageScore.fixed_columns())
    pictures = sorted(p.suffix for p in (folder / "reconstructions").rglob("*.*"))
    assert pictures == [".npz"] * 3 + [".png"] * 3
    assert {p.name for p in (folder / "figures").iterdir()} == {"gallery.png", "traces.png"}


def test_the_summary_follows_from_the_table(finished):
    folder, _ = finished
    facts, rows = record_of(folder)
    summary = facts["summary"]

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows]

    successes = sum(row["success"] == "True" for row in rows)
    zeros = sum(is_zero_gradient(norm) for norm in column("gradient_norm"))
    assert summary["n"] == len(rows) == 3
    assert summary["asr"] == successes / 3
    assert (summary["asr_low"], summary["asr_high"]) == pytest.approx(wilson(successes, 3))
    assert zeros == 1
    assert summary["zero_gradient_share"] == pytest.approx(zeros / 3)
    assert summary["asr_ceiling"] == pytest.approx(1 - zeros / 3)
    assert summary["ssim_mean"] == pytest.approx(fmean(column("ssim")))
    assert summary["ssim_median"] == pytest.approx(median(column("ssim")))
    assert summary["mse_mean"] == pytest.approx(fmean(column("mse")))
    assert summary["psnr_db_mean"] == pytest.approx(fmean(column("psnr_db")))
    assert summary["seconds_per_image"] == pytest.approx(fmean(column("seconds")))
    right = sum(row["label"] == row["label_inferred"] for row in rows)
    assert summary["label_accuracy"] == pytest.approx(right / 3)
    for row in rows:
        assert float(row["psnr_db"]) == pytest.approx(-10 * math.log10(float(row["mse"])))
        assert (row["success"] == "True") == (float(row["ssim"]) >= 0.9)
        assert (row["noise_scale"], row["snr_db"]) == ("", "")


def test_a_victim_without_a_gradient_is_a_row_like_any_other(finished):
    folder, _ = finished
    _, rows = record_of(folder)
    assert [row["status"] for row in rows] == ["no_gradient", "out_of_steps", "out_of_steps"]
    silent, *loud = rows
    assert (silent["steps"], silent["evaluations"], silent["objective"]) == ("0", "0", "nan")
    assert float(silent["gradient_norm"]) == 0
    assert float(silent["true_probability"]) == 1
    assert all(row["evaluations"] == "4" for row in loud)
    assert all(float(row["gradient_norm"]) > 1 for row in loud)


def test_the_arrays_are_those_of_the_table(finished):
    folder, _ = finished
    _, rows = record_of(folder)
    by_id = {row["image_id"]: row for row in rows}
    for path in (folder / "reconstructions").rglob("*.npz"):
        victim = load_victim(path)
        (score,) = victim.scores
        row = by_id.pop(score.image_id)
        error = float((victim.original - victim.reconstruction).square().mean())
        assert float(row["mse"]) == pytest.approx(error, rel=1e-5)
        assert (victim.trace is None) == (row["status"] == "no_gradient")
    assert not by_id


def test_the_terminal_says_what_runs_and_where_it_is(tmp_path, capsys):
    run(config(*THREE, "n_images=2"), tmp_path / "run")
    shown = capsys.readouterr().out
    assert "SYNTHETIC" in shown
    assert "honest-but-curious server" in shown
    assert re.search(r"ceiling +50", shown)
    assert "gallery.png" in shown
    assert str(tmp_path / "run") in shown


def test_the_same_run_twice_gives_the_same_numbers(finished, tmp_path):
    run(config(*THREE, "attack.rows=1"), tmp_path / "again")
    (_, first), (_, second) = record_of(finished[0]), record_of(tmp_path / "again")
    for a, b in zip(first, second, strict=True):
        assert a["image_id"] == b["image_id"]
        assert float(a["gradient_norm"]) == float(b["gradient_norm"])
        assert float(a["ssim"]) == pytest.approx(float(b["ssim"]), abs=1e-3)


def test_noise_is_on_record_for_every_image(tmp_path):
    composed = config(*THREE, "defense=perturbation", "noise=medpfl_level", "noise.level=200")
    run(composed, tmp_path / "run")
    facts, rows = record_of(tmp_path / "run")
    assert facts["config"]["noise"]["level"] == 200
    assert [float(row["noise_scale"]) for row in rows] == [1 / 200] * 3
    silent, *loud = [float(row["snr_db"]) for row in rows]
    assert silent == -math.inf  # an image without a gradient sends noise alone
    # 20 log10 |g| - 10 log10 (P 2 b^2), for P parameters of which P is large
    parameters = 208 + 5 * 1040 + 6 * 40_001
    for row, snr_db in zip(rows[1:], loud, strict=True):
        noise = parameters * 2 * float(row["noise_scale"]) ** 2
        expected = 20 * math.log10(float(row["gradient_norm"])) - 10 * math.log10(noise)
        assert snr_db == pytest.approx(expected, abs=0.2)
    assert facts["summary"]["zero_gradient_share"] == pytest.approx(1 / 3)
    assert rows[0]["status"] != "no_gradient"


def test_several_images_behind_one_update(tmp_path):
    composed = config(
        "attack=dlg",
        "n_images=5",
        "federation.batch_size=2",
        "attack.optimizer.max_steps=1",
        "attack.optimizer.max_iter=2",
    )
    summary = run(composed, tmp_path / "run")
    _, rows = record_of(tmp_path / "run")
    assert summary.n == len(rows) == 4  # the fifth image fills no batch
    assert len({row["image_id"] for row in rows}) == 4
    assert len({row["objective"] for row in rows}) == 2


# Runs that end early -----------------------------------------------------------------------------


def progress_that_raises(error: BaseException, *, after: int):
    """Return a stand-in for `progress` that raises once so many images are done."""

    class Shown:
        def update(self, done: int, successes: int, left: float | None = None) -> None:
            if done >= after:
                raise error

        def pulse(self, text: str, left: float | None = None) -> None:
            pass

    @contextmanager
    def progress(total: int) -> Iterator[Shown]:
        yield Shown()

    return progress


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_run_keeps_every_finished_image(tmp_path, monkeypatch, capsys, after):
    stop = progress_that_raises(KeyboardInterrupt(), after=after)
    monkeypatch.setattr(runner, "progress", stop)
    with pytest.raises(KeyboardInterrupt):
        run(config(*THREE), tmp_path / "run")
    facts, rows = record_of(tmp_path / "run")
    assert facts["status"] == "interrupted"
    assert facts["summary"]["n"] == len(rows) == after
    assert len(list((tmp_path / "run" / "reconstructions").rglob("*.npz"))) == after
    assert f"{after} finished images are kept" in capsys.readouterr().out


def test_a_failed_run_says_why_and_keeps_what_it_has(tmp_path, monkeypatch):
    stop = progress_that_raises(RuntimeError("the sky fell"), after=2)
    monkeypatch.setattr(runner, "progress", stop)
    with pytest.raises(RuntimeError, match="the sky fell"):
        run(config(*THREE), tmp_path / "run")
    facts, rows = record_of(tmp_path / "run")
    assert facts["status"] == "failed"
    assert facts["error"]["type"] == "RuntimeError"
    assert facts["error"]["message"] == "the sky fell"
    assert "raise error\nRuntimeError: the sky fell" in facts["error"]["traceback"]
    assert facts["summary"] is None
    assert len(rows) == 2


def test_a_mistake_in_the_configuration_is_on_record(tmp_path):
    with pytest.raises(MedpflError, match="n_images is 1000"):
        run(config("n_images=1000"), tmp_path / "run")
    facts, rows = record_of(tmp_path / "run")
    assert facts["status"] == "failed"
    assert "n_images is 1000" in facts["error"]["message"]
    assert rows == []


def test_a_folder_that_holds_a_run_is_left_alone(finished):
    folder, _ = finished
    before = (folder / "run.json").read_bytes()
    with pytest.raises(MedpflError, match=re.escape(str(folder))):
        run(config(*THREE), folder)
    assert (folder / "run.json").read_bytes() == before
