"""The command line as its users meet it: what it leaves, what it repeats, how it ends."""

from __future__ import annotations

import csv
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import sessions
from conftest import Command

SHORT = ("n_images=2", "dataset.per_class=2", "attack.optimizer.max_steps=2")
MAIN = "from medpfl.cli import main; main()"

COLUMNS = (
    "image_id label label_inferred ssim mse psnr_db success gradient_norm true_probability "
    "objective steps evaluations seconds status noise_scale snr_db ssim_paper ssim_zeros "
    "ssim_mean_image"
)
FACTS = "status error config overrides seed device versions commit summary"
SUMMARY = (
    "n n_ok asr asr_low asr_high asr_ceiling zero_gradient_share ssim_mean ssim_median mse_mean "
    "psnr_db_mean label_accuracy seconds_per_image"
)


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own, which sees no checkout but ours."""
    package = str(Path(__file__).resolve().parents[1])
    inherited = {k: v for k, v in os.environ.items() if k != "MEDPFL_DATA_ROOT"}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments],
        cwd=folder,
        env={**inherited, "PYTHONPATH": package, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def untimed(path: Path) -> list[dict[str, str]]:
    """Read a table without what differs from one run to the next."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_table(path)]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Run the same seed twice at the same moment, from a foreign folder with a telling name.

    The folder's name is not ASCII, and the output is: runs end in places like a cluster's log.
    """
    home = tmp_path_factory.mktemp("Müller")
    arguments = (*SHORT, "seed=0")
    one = start(home, *arguments, PYTHONIOENCODING="ascii")
    other = sessions.start(sessions.command, arguments, home, home / "said", home / "log", None)
    told, wrong = one.communicate()
    other.join()
    assert (one.returncode, other.exitcode) == (0, 0), wrong
    folders = {path.parent for path in home.glob("outputs/*/*/run.json")}
    assert len(folders) == 2, "two runs shared a folder"
    (first,) = (folder for folder in folders if folder.name in told)
    (second,) = folders - {first}
    return [(first, told), (second, (home / "said").read_text())]


def test_a_run_leaves_the_documented_folder(twins: list[tuple[Path, str]]) -> None:
    folder, _ = twins[0]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith(".hydra/")} == {
        "run.json",
        "metrics.csv",
        "medpfl.log",
        "reconstructions/round-000__client-0__head_healthy__0000.png",
        "reconstructions/round-000__client-0.npz",
        "reconstructions/round-000__client-1__chest_opacity__0000.png",
        "reconstructions/round-000__client-1.npz",
        "figures/gallery.png",
        "figures/traces.png",
    }


def test_nobody_else_can_read_a_run(twins: list[tuple[Path, str]]) -> None:
    folder, _ = twins[0]
    for path in [folder, *folder.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_the_record_holds_what_others_script_against(twins: list[tuple[Path, str]]) -> None:
    folder, _ = twins[0]
    record = json.loads((folder / "run.json").read_text())
    assert set(FACTS.split()) <= set(record)
    assert (record["status"], record["error"], record["seed"]) == ("complete", None, 0)
    assert record["overrides"] == [*SHORT, "seed=0"]
    assert record["config"]["attack"]["optimizer"]["max_steps"] == 2
    assert set(SUMMARY.split()) <= set(record["summary"])
    rows = read_table(folder / "metrics.csv")
    assert set(COLUMNS.split()) <= set(rows[0])
    assert [row["image_id"] for row in rows] == ["head_healthy/0000", "chest_opacity/0000"]
    assert record["summary"]["n"] == len(rows)


def test_a_run_says_what_it_does_and_where_it_is(twins: list[tuple[Path, str]]) -> None:
    folder, told = twins[0]
    # What the locale cannot write is escaped, not fatal.
    place = str(folder).encode("ascii", "backslashreplace").decode()
    for words in ("SYNTHETIC", "honest-but-curious", "2/2 images", "ASR", "ceiling", place):
        assert words in told
    assert f"{place}/figures/gallery.png" in told


def test_the_same_seed_gives_the_same_numbers(twins: list[tuple[Path, str]]) -> None:
    one, other = (untimed(folder / "metrics.csv") for folder, _ in twins)
    assert one == other


def test_another_seed_and_a_folder_of_ones_own_configurations(
    command: Command, tmp_path: Path, twins: list[tuple[Path, str]]
) -> None:
    (tmp_path / "mine" / "dataset").mkdir(parents=True)
    (tmp_path / "mine" / "dataset" / "heads.yaml").write_text(
        "_target_: medpfl.data.Phantom\nname: heads\nkinds: [head]\nper_class: 1\n"
    )
    arguments = ("--config-dir", "mine", "dataset=heads", SHORT[0], SHORT[2], "hydra.run.dir=out")
    done = command(*arguments, "seed=1")
    assert done.code == 0, done.stderr
    rows = untimed(tmp_path / "out" / "metrics.csv")
    assert [row["image_id"] for row in rows] == ["head_healthy/0000", "head_lesion/0000"]
    of_seed_0 = untimed(twins[0][0] / "metrics.csv")[0]
    assert rows[0]["image_id"] == of_seed_0["image_id"]
    assert rows[0]["ssim_zeros"] != of_seed_0["ssim_zeros"]


def test_a_sweep_goes_on_past_a_failing_job(command: Command, tmp_path: Path) -> None:
    done = command("-m", "attack.restarts=1,0,2", *SHORT, "hydra.sweep.dir=sweep")
    assert done.code == 1
    assert "Traceback" not in done.stderr
    assert "job 1 failed: attack.restarts=0: must be at least 1" in done.stderr
    assert "Sweep of 3 jobs, 1 not complete" in done.stdout
    sweep = tmp_path / "sweep"
    records = [json.loads((sweep / str(n) / "run.json").read_text()) for n in range(3)]
    assert [record["status"] for record in records] == ["complete", "failed", "complete"]
    assert "must be at least 1" in records[1]["error"]["message"]
    rows = read_table(sweep / "results.csv")
    assert [row["status"] for row in rows] == ["complete", "failed", "complete"]
    assert [row["attack.restarts"] for row in rows] == ["1", "0", "2"]
    lines = (sweep / "results.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 2 + 3
    for path in sweep.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_sweep_of_good_jobs_ends_well(command: Command, tmp_path: Path) -> None:
    noisy = ("defense=perturbation", "noise=medpfl_level", "noise.level=100,400", "n_images=1")
    done = command("-m", *noisy, *SHORT[1:])
    assert done.code == 0, done.stderr
    (results,) = tmp_path.glob("outputs/multirun/*/*/results.csv")
    assert [row["noise.level"] for row in read_table(results)] == ["100", "400"]
    scales = [read_table(results.parent / n / "metrics.csv")[0]["noise_scale"] for n in "01"]
    assert scales == ["0.01", "0.0025"]


def test_an_interrupt_keeps_every_finished_image(tmp_path: Path) -> None:
    stop = sessions.Stop("update", 3, signal=signal.SIGINT)
    told = ([*sessions.TINY, "hydra.run.dir=out"], tmp_path, tmp_path / "said", tmp_path / "log")
    run = sessions.start(sessions.command, *told, stop)
    run.join()
    said = (tmp_path / "said").read_text()
    assert run.exitcode == 130, said
    assert "Traceback" not in said
    assert "finished images are kept" in said
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    kept = len(list(tmp_path.glob("out/reconstructions/*.npz")))
    assert record["status"] == "interrupted"
    assert kept == 2
    assert record["summary"]["n"] == kept == len(read_table(tmp_path / "out" / "metrics.csv"))
