"""The writers of the papers' tables and figures, on sweeps made by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from medpfl.image_score import ImageScore
from medpfl.paper import ComparisonTable, NoiseFigure, NoiseTable, ProgressFigure
from medpfl.paper.noise_table import nearest_place
from medpfl.paper.results import Estimate, JobResult, failures, mean_of, read_results
from medpfl.paper.snr import binned, noisy_images
from medpfl.report.record import COLUMNS
from medpfl.report.sweep import write_report
from medpfl.report.victim_file import VictimRecord, save_victim
from medpfl.types import Trace

SCORE = ImageScore(
    image_id="a/0",
    label=1,
    label_inferred=1,
    ssim=0.99,
    mse=0.001,
    psnr_db=30.0,
    success=True,
    gradient_norm=2.0,
    true_probability=0.0,
    objective=1e-8,
    steps=10,
    evaluations=12,
    seconds=2.0,
    status="converged",
    noise_scale=0.01,
    snr_db=24.0,
    ssim_paper=0.95,
    ssim_zeros=0.1,
    mse_zeros=0.09,
    ssim_mean_image=0.3,
    mse_mean_image=0.02,
    ssim_paper_cpl=0.95,
    ssim_paper_dlg=0.96,
    ssim_paper_gradinv=0.97,
    ssim_oracle=0.995,
    mse_oracle=0.0005,
)
LOST = replace(
    SCORE,
    label=0,
    label_inferred=1,
    ssim=0.01,
    mse=0.1,
    success=False,
    gradient_norm=0.0,
    true_probability=1.0,
    status="no_gradient",
    ssim_paper_cpl=float("nan"),
    snr_db=float("-inf"),
)


def write_scores(folder: Path, scores: list[ImageScore]) -> None:
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(score.row().values() for score in scores)


def add_job(
    sweep: Path,
    number: int,
    told: list[str],
    *,
    status: str = "complete",
    error: tuple[str, str] | None = None,
    scores: list[ImageScore] | None = None,
) -> Path:
    folder = sweep / str(number)
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(told))
    described = None if error is None else {"type": error[0], "message": error[1]}
    summary = {"n": len(scores or [])} if status == "complete" else None
    record = {"status": status, "error": described, "device": "cpu", "summary": summary}
    (folder / "run.json").write_text(json.dumps(record))
    if scores is not None:
        write_scores(folder, scores)
    return folder


def plan(sweep: Path, *axes: str) -> None:
    target = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    planned = {"sweeper": {"_target_": target}, "overrides": {"task": list(axes)}}
    (sweep / "multirun.yaml").write_text(json.dumps({"hydra": planned}))


@pytest.fixture
def results(tmp_path: Path) -> list[JobResult]:
    """Measured, without data, without a GPU, failed, interrupted, never started."""
    rows = "cpl,dlg,gradinv_untrained,idlg,scale_free_dlg,gradinv_trained_small"
    plan(tmp_path, "dataset=melanoma", f"paper/row={rows}")
    told = [["dataset=melanoma", f"paper/row={row}"] for row in rows.split(",")]
    add_job(tmp_path, 0, told[0], scores=[SCORE, LOST, SCORE, LOST])
    missing = ("DataError", "the dataset melanoma (Melanoma) was not found\nlooked at: ...")
    add_job(tmp_path, 1, told[1], status="failed", error=missing)
    no_gpu = ("ConfigurationError", "device=cuda: this machine has no CUDA device that torch can")
    add_job(tmp_path, 2, told[2], status="failed", error=no_gpu)
    add_job(tmp_path, 3, told[3], status="failed", error=("ValueError", "a bug | here"))
    add_job(tmp_path, 4, told[4], status="interrupted", scores=[SCORE])
    return read_results(write_report(tmp_path))


def table_of(text: str) -> dict[tuple[str, str], list[str]]:
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    return {(line[0], line[1]): line[2:] for line in cells}


def test_every_job_says_what_became_of_it(results: list[JobResult]) -> None:
    assert [result.problem for result in results] == [
        None,
        "no data: set MEDPFL_DATA_ROOT",
        "not run: needs a GPU",
        "failed: job 3",
        "interrupted after 1 images",
        "not started: the sweep was interrupted",
    ]
    assert [result.failed for result in results] == [False, False, False, True, True, True]
    assert failures(results) == ["job 3 failed: ValueError: a bug | here"]
    assert results[5].row == "gradinv_trained_small"


def test_the_table_shows_reported_measured_and_predicted(
    results: list[JobResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    product = ComparisonTable(name="table1", title="Table I")
    files = product.make(results, tmp_path, note="shortened: a test")
    text = files["table"].read_text()
    assert text.startswith("# Table I\n\nshortened: a test\n")
    lines = table_of(text)
    half = "50.0 [15.0, 85.0] n 4"
    assert lines["CPL, melanoma", "ASR %"] == ["49 [39, 59] n 100", half, half, "50.0"]
    reported, paper, rigorous, predicted = lines["CPL, melanoma", "SSIM"]
    # The published SSIM is undefined for two of the four images: they count as failures in the
    # rate, and their number is missing from the mean.
    assert (reported, paper) == ("0.5 n 100", "0.950 n 2")
    assert rigorous == "0.500 n 4"
    assert predicted == "0.500"
    assert lines["DLG, melanoma", "ASR %"] == [
        "47 [38, 57] n 100",
        *["no data: set MEDPFL_DATA_ROOT"] * 2,
        "-",
    ]
    assert lines["GradInv, untrained, melanoma", "ASR %"][1] == "not run: needs a GPU"
    assert lines["GradInv, untrained, melanoma", "SSIM"] == ["0.9029 n 100", "-", "-", "-"]
    assert lines["iDLG, melanoma", "ASR %"][:2] == ["not reported", "failed: job 3"]
    assert lines["scale_free (DLG net), melanoma", "ASR %"][1] == "interrupted after 1 images"
    assert lines["CPL, melanoma", "4"] == ["50.0 %", "50.0 %", "2.00", "cpu"]
    assert "- job 3 failed: ValueError: a bug | here" in text
    printed = capsys.readouterr().out
    assert "Table I" in printed
    assert "shortened: a test" in printed
    with Image.open(files["png"]) as picture:
        assert min(picture.size) > 400
    assert files["pdf"].read_bytes().startswith(b"%PDF")


def test_an_estimate_says_what_it_was_counted_over() -> None:
    assert Estimate(0.747, 0.654, 0.823, 99).text(1, percent=True) == "74.7 [65.4, 82.3] n 99"
    assert mean_of([0.5]).text(2) == "0.50 n 1"
    assert mean_of([float("nan")]).text(2) == "n/a"
    assert mean_of([0.2, float("nan"), 0.4]).n == 2


def noise_jobs(sweep: Path) -> list[JobResult]:
    plan(sweep, "dataset=covid", "paper/row=noise_cpl", "paper/noise=none,inverse_100,inverse_200")
    told = ["dataset=covid", "paper/row=noise_cpl"]
    first = replace(SCORE, image_id="b/1", ssim_oracle=0.5, mse_oracle=0.25)
    add_job(sweep, 0, [*told, "paper/noise=none"], scores=[first, SCORE, SCORE])
    add_job(sweep, 1, [*told, "paper/noise=inverse_100"], scores=[first, SCORE, LOST])
    return read_results(write_report(sweep))


def test_the_noise_table_keeps_readings_oracle_and_gaps_apart(tmp_path: Path) -> None:
    results = noise_jobs(tmp_path)
    files = NoiseTable(title="Table III").make(results, tmp_path, note="")
    text = files["table"].read_text()
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    headings = [line[0] for line in lines if line[0].startswith("CPL")]
    assert headings == ["CPL, as reported", "CPL, inverse", "CPL, proportional"]
    reported = next(line for line in lines if line[0] == "CPL, as reported")
    assert reported[1:3] == ["0.550 ; 0.0641", "0.982 ; 0.0013"]
    single = [line for line in lines if line[0] == "one image, oracle"]
    # The published image stands at 30 of 251: of three attacked images the first is nearest.
    assert single[0][1:4] == [
        "0.500 ; 0.2500",
        "0.500 ; 0.2500",
        "not started: the sweep was interrupted",
    ]
    assert single[1][1:3] == ["0.500 ; 0.2500", "not in this sweep"]
    rates = next(line for line in lines if line[0] == "ASR %, rigorous")
    assert rates[1:3] == ["100 [44, 100] n 3", "67 [21, 94] n 3"]
    assert files["png"].is_file()


def test_the_nearest_place_scales_with_the_split(tmp_path: Path) -> None:
    (result, *_) = noise_jobs(tmp_path)
    assert nearest_place(result.scores, "covid") == 0
    assert nearest_place(result.scores, "brain_mri") == 0


def test_signal_to_noise_bins_count_every_noisy_image_once(tmp_path: Path) -> None:
    clouds = noisy_images(noise_jobs(tmp_path))
    # Without noise there is no ratio, and an update of zero has none that is finite.
    assert {row: len(cloud) for row, cloud in clouds.items()} == {"noise_cpl": 2}
    (only,) = binned(clouds["noise_cpl"])
    assert (only.centre_db, only.n, only.asr) == (22.5, 2, 1.0)
    assert 0 < only.low < 1


def add_victim(folder: Path, score: ImageScore) -> None:
    (folder / "reconstructions").mkdir(exist_ok=True)
    picture = torch.full((1, 3, 12, 12), 0.5)
    steps = torch.tensor([0, 5, 10])
    trace = Trace(steps, torch.tensor([1.0, 0.1, 0.01]).double(), picture.expand(3, 1, 3, 12, 12))
    record = VictimRecord(picture, picture, (score,), trace, None)
    save_victim(folder / "reconstructions" / f"{score.image_id.replace('/', '__')}.npz", record)


def test_progress_is_drawn_best_first_and_without_data_nothing_is(
    results: list[JobResult], tmp_path: Path
) -> None:
    product = ProgressFigure(name="figure3", title="Figure 3", curves=True)
    assert product.make(results, tmp_path, note="") == {}
    for name, score in (("a/0", SCORE), ("b/0", LOST)):
        add_victim(results[0].folder, replace(score, image_id=name))
    files = product.make(results, tmp_path, note="")
    assert sorted(path.name for path in files.values()) == ["figure3.pdf", "figure3.png"]


def test_the_noise_figure_shows_images_that_all_jobs_attacked(tmp_path: Path) -> None:
    results = noise_jobs(tmp_path)
    product = NoiseFigure(name="figure6", title="Figure 6")
    assert product.make(results, tmp_path, note="") == {}
    for result in results[:2]:
        add_victim(result.folder, SCORE)
    assert product.make(results, tmp_path, note="")["png"].is_file()
