"""The report of a sweep: from folders made by hand, and from Hydra itself."""

from __future__ import annotations

import csv
import io
import json
import stat
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from PIL import Image
from rich.console import Console

from medpfl.report.sweep import SweepOutcome, collect, show, write_report
from medpfl.report.sweep_figure import sweep_figure

SUMMARY = {
    "n": 99,
    "n_ok": 99,
    "asr": 74 / 99,
    "asr_low": 0.6536,
    "asr_high": 0.8230,
    "asr_ceiling": 74 / 99,
    "ssim_mean": 0.747,
    "ssim_median": 0.9998,
    "mse_mean": 0.0213,
    "psnr_db_mean": None,
    "label_accuracy": 1.0,
    "seconds_per_image": 3.81,
    "statuses": {"converged": 74, "no_gradient": 25},
    "leaked": 91 / 99,
    "leaked_low": 0.8483,
    "leaked_high": 0.9583,
    "ssim_zeros_mean": 0.012,
    "ssim_mean_image_mean": 0.31,
    "noise_scale_mean": 0.0025,
    "snr_db_mean": 17.25,
    "cautions": ["3 of 99 images ran out of steps"],
}


def add_job(sweep: Path, number: int, overrides: list[str], record: object) -> None:
    notes = sweep / str(number) / ".hydra"
    notes.mkdir(parents=True)
    (notes / "overrides.yaml").write_text(json.dumps(overrides))
    choices = {"attack": "cpl", "dataset": "brain_mri", "hydra/launcher": "basic"}
    (notes / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": {"choices": choices}}}))
    text = record if isinstance(record, str) else json.dumps(record)
    (sweep / str(number) / "run.json").write_text(text)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Five jobs were planned: complete, failed, unreadable, without a record, never started."""
    told = ["dataset=brain_mri", "noise.scale=0.1,0.01,0.001", "++seed=0,1"]
    planned = {
        "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"},
        "overrides": {"task": told},
        "runtime": {"choices": {"attack": "cpl", "noise": "none"}},
    }
    (tmp_path / "multirun.yaml").write_text(json.dumps({"hydra": planned}))
    overrides = ["dataset=brain_mri", "noise.scale=0.1"]
    add_job(tmp_path, 0, [*overrides, "++seed=0"], {"status": "complete", "summary": SUMMARY})
    error = {"type": "DataError", "message": "no images |\nin here", "traceback": "..."}
    record = {"status": "failed", "error": error, "summary": None}
    add_job(tmp_path, 1, [*overrides, "++seed=1"], record)
    add_job(tmp_path, 2, ["dataset=brain_mri", "noise.scale=0.01", "++seed=0"], '{"status": "comp')
    (tmp_path / "3").mkdir()
    return tmp_path


def test_every_job_is_a_row(sweep: Path) -> None:
    rows = collect(sweep)
    assert [row["job"] for row in rows] == [0, 1, 2, 3, 4, 5]
    statuses = ["complete", "failed", "unreadable", "missing", "missing", "missing"]
    assert [row["status"] for row in rows] == statuses
    assert [row["noise.scale"] for row in rows] == ["0.1", "0.1", "0.01", "0.01", "0.001", "0.001"]
    assert [row["seed"] for row in rows] == ["0", "1", "0", "1", "0", "1"]
    assert [row["attack"] for row in rows] == ["cpl"] * 6
    assert [row["dataset"] for row in rows] == ["brain_mri"] * 6
    assert rows[0]["asr"] == SUMMARY["asr"]
    assert rows[0]["psnr_db_mean"] is None
    assert rows[1]["error"] == "DataError: no images | in here"
    assert rows[2]["error"].startswith("run.json: ")
    assert rows[3]["error"] == "it left no run.json"
    assert rows[4]["error"] == "it never started"
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert tuple(rows[0])[-1] == "path"


def test_the_report_holds_the_failed_jobs_too(sweep: Path) -> None:
    outcome = write_report(sweep)
    assert (outcome.jobs, outcome.failed) == (6, 5)
    with outcome.results_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert float(rows[0]["asr"]) == SUMMARY["asr"]
    assert rows[1]["asr"] == ""
    markdown = outcome.results_md.read_text()
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert markdown.startswith("# Sweep of 6 jobs, 5 not complete\n")
    assert table[2].startswith("| 0 | 0.1 | 0 | 99 | 74.7 % | [65.4, 82.3] | 91.9 % |")
    assert table[3].endswith("| failed: DataError: no images \\| in here |")
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    told = dict(zip(table[0].split(" | "), table[2].split(" | "), strict=True))
    for heading, value in {
        "all zeros": "0.012",
        "mean image": "0.310",
        "noise scale": "0.0025",
        "SNR (dB)": "17.2",
    }.items():
        assert told[heading] == value
    assert "- job 0: 3 of 99 images ran out of steps." in markdown
    assert float(rows[0]["snr_db_mean"]) == 17.25
    assert stat.S_IMODE((sweep / "results.png").stat().st_mode) == 0o600
    for table_file in (outcome.results_csv, outcome.results_md):
        assert stat.S_IMODE(table_file.stat().st_mode) == 0o600


def test_the_printed_table_fits_and_keeps_paths_whole(sweep: Path) -> None:
    stream = io.StringIO()
    outcome = write_report(sweep)
    show(outcome, console=Console(file=stream, width=80, markup=False, highlight=False))
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "…" not in text
    line = next(line for line in text.splitlines() if line.startswith("   0  0.1"))
    assert " ".join(line.split()) == "0 0.1 0 74.7 [65.4, 82.3] 91.9 99 0.747 0.0025 17.2"
    told = text.split("  job 1")[0]  # errors after it are whole, to be copied
    assert max(map(len, told.splitlines())) <= 80
    assert "all zeros 0.012, mean image 0.310" in text
    assert "job 0: 3 of 99 images ran out of steps" in text
    assert "  job 1 failed: DataError: no images | in here\n" in text
    named = {"table  ": outcome.results_md, "numbers": outcome.results_csv}
    named["figure "] = sweep / "results.png"
    assert text.endswith("".join(f"  {name}  {path}\n" for name, path in named.items()))


@pytest.mark.parametrize("count", [1, 5, 30, 70])
def test_a_sweep_of_any_size_is_drawn_without_words_over_words(tmp_path: Path, count: int) -> None:
    rows = [{"job": k, "status": "complete", "n": 9, **SUMMARY} for k in range(count)]
    rows[0] = {"job": 0, "status": "failed"} if count > 1 else rows[0]
    labels = [f"a setting of many letters, number $_{k}" for k in range(count)]
    assert sweep_figure(tmp_path / "a.png", rows, labels, title="Sweep over $x")
    with Image.open(tmp_path / "a.png") as picture:
        width, height = picture.size
    assert width == 1440
    assert height > 50 * min(count, 60)


def test_a_sweep_that_measured_nothing_has_no_figure(tmp_path: Path) -> None:
    rows = [{"job": 0, "status": "failed", "n": None}]
    assert not sweep_figure(tmp_path / "a.png", rows, ["x"], title="")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_without_noise_needs_no_columns_for_it(tmp_path: Path) -> None:
    summary = {**SUMMARY, "noise_scale_mean": None, "snr_db_mean": None}
    add_job(tmp_path, 0, [], {"status": "complete", "summary": summary})
    stream = io.StringIO()
    outcome = write_report(tmp_path)
    show(outcome, console=Console(file=stream, width=80, markup=False, highlight=False))
    assert "SNR" not in stream.getvalue()
    assert "s/image" in stream.getvalue()
    assert " 3.81 " in stream.getvalue()
    assert "| none | none | complete |" in outcome.results_md.read_text()


def test_a_sweep_of_unknown_plan_is_read_from_its_folders(tmp_path: Path) -> None:
    assert write_report(tmp_path) == SweepOutcome(
        0, 0, tmp_path / "results.csv", tmp_path / "results.md", ()
    )
    (tmp_path / "multirun.yaml").write_text("hydra: {sweeper: [")
    add_job(tmp_path, 10, [], {"status": "complete", "summary": SUMMARY})
    add_job(tmp_path, 9, [], {"status": "running", "summary": None})
    assert [row["job"] for row in collect(tmp_path)] == [9, 10]
    assert write_report(tmp_path).failed == 1


APP = """
    import json, sys
    from pathlib import Path
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from medpfl.report.sweep import SweepReport

    @hydra.main(version_base="1.3", config_path="conf", config_name="config")
    def task(config):
        folder = Path(HydraConfig.get().runtime.output_dir)
        if config.x == "stop":
            (folder / "run.json").write_text(json.dumps({"status": "interrupted"}))
            raise KeyboardInterrupt
        if (folder / "run.json").exists():
            raise FileExistsError("there is a run in here")
        if config.x == "early":
            raise ValueError("x is early")
        if config.x == "late":
            (folder / "run.json").write_text(json.dumps({"status": "running", "seed": 7}))
            raise ValueError("x is late")
        summary = {"n": 1, "asr": 1.0}
        (folder / "run.json").write_text(json.dumps({"status": "complete", "summary": summary}))

    try:
        task()
    except KeyboardInterrupt:
        SweepReport.finish()
    outcome = SweepReport.last_outcome
    sys.exit(0 if outcome is None else outcome.failed)
"""
CONFIG = """
    x: a
    hydra:
      sweep: {dir: out, subdir: "${hydra.job.num}"}
      run: {dir: single}
      callbacks: {sweep_report: {_target_: medpfl.report.sweep.SweepReport}}
"""


def run_app(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "conf").mkdir()
    (folder / "conf" / "config.yaml").write_text(dedent(CONFIG))
    (folder / "app.py").write_text(dedent(APP))
    package = str(Path(__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, "-W", "error", "app.py", *arguments],
        cwd=folder,
        env={"PYTHONPATH": package, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_hydra_goes_on_past_failed_jobs_and_batches(tmp_path: Path) -> None:
    done = run_app(tmp_path, "-m", "x=early,a,late,b", "hydra.sweeper.max_batch_size=2")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "job 0 failed: x is early" in done.stderr
    assert "Sweep of 4 jobs, 2 not complete" in done.stdout
    rows = collect(tmp_path / "out")
    assert [row["x"] for row in rows] == ["early", "a", "late", "b"]
    assert [row["status"] for row in rows] == ["failed", "complete", "failed", "complete"]
    assert [row["error"] for row in rows[::2]] == [
        "ValueError: x is early",
        "ValueError: x is late",
    ]
    assert json.loads((tmp_path / "out" / "2" / "run.json").read_text())["seed"] == 7
    assert (tmp_path / "out" / "results.csv").is_file()


def test_a_job_in_anothers_folder_fails_and_leaves_that_record_alone(tmp_path: Path) -> None:
    old = {"status": "complete", "summary": SUMMARY}
    add_job(tmp_path / "out", 0, ["x=old"], old)
    done = run_app(tmp_path, "-m", "x=a,b")
    assert done.returncode == 1, done.stderr
    assert json.loads((tmp_path / "out" / "0" / "run.json").read_text()) == old
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["failed", "complete"]
    assert rows[0]["error"] == "FileExistsError: there is a run in here"
    assert rows[0]["asr"] == ""


def test_an_interrupted_sweep_still_leaves_its_report(tmp_path: Path) -> None:
    done = run_app(tmp_path, "-m", "x=a,stop,b")
    assert done.returncode == 2, done.stderr
    rows = collect(tmp_path / "out")
    assert [row["status"] for row in rows] == ["complete", "interrupted", "missing"]
    assert "Sweep of 3 jobs, 2 not complete" in done.stdout


def test_tables_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "out" / "results.csv").mkdir(parents=True)
    done = run_app(tmp_path, "-m", "x=a,b")
    assert done.returncode == 1
    assert "medpfl: error: cannot write the sweep's tables to out" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_single_run_is_left_alone(tmp_path: Path) -> None:
    done = run_app(tmp_path, "x=early")
    assert done.returncode == 1
    assert "ValueError: x is early" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()
