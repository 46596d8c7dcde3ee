"""A measure of one's own: one class and one line of YAML, through every command."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command
from helpers import config
from omegaconf import OmegaConf
from records import rewrite, run_json, table
from test_cli_mistakes import refused

from medpfl import compare, runner
from medpfl.errors import ConfigurationError
from medpfl.report.console import summary_table
from medpfl.report.jobs import read_record
from medpfl.report.record import COLUMNS, load_victim

MODULE = '''
import math


class Darker:
    """How much darker the reconstruction is."""

    def __init__(self, times: float = 1.0):
        self.times = times

    def __call__(self, original, reconstruction, spec):
        return self.times * (original.mean() - reconstruction.mean())


class Never:
    """Is not defined for any pair."""

    def __call__(self, original, reconstruction, spec):
        return math.nan
'''
YAML = """
defaults: [paper_dlg]
measures:
  darker: {_target_: my_measures.Darker}
  never: {_target_: my_measures.Never}
  gmsd: {_target_: medpfl.metrics.measures.GMSD}
"""
SHORT = (
    "device=cpu",
    "attack=dlg",
    "dataset.per_class=1",
    "preprocess.size=16",
    "attack.optimizer.max_steps=1",
    "attack.rows=1",
    "attack.trace_points=0",
)
MINE = ("--config-dir=mine", "metrics=mine", *SHORT)
OWN = [f"{n}{g}" for n in ("darker", "never", "gmsd") for g in ("", "_zeros", "_mean_image")]


@pytest.fixture(autouse=True)
def _mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "mine" / "metrics").mkdir(parents=True)
    (tmp_path / "mine" / "metrics" / "mine.yaml").write_text(YAML)
    (tmp_path / "my_measures.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_measures", None)


def header(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open(newline="") as file:
        return next(csv.reader(file))


def test_a_run_has_the_columns_the_means_and_the_rows(command: Command, tmp_path: Path) -> None:
    done = command(*MINE, "n_images=3", "hydra.run.dir=out")
    assert done.code == 0, done.stderr
    folder = tmp_path / "out"
    assert header(folder) == [*COLUMNS, *OWN]
    rows = table(folder / "metrics.csv")
    for row in rows:
        victim = load_victim(
            folder / "reconstructions" / f"{row['capture_id']}.npz".replace("/", "__")
        )
        original, guess = victim.original[0], victim.reconstruction[0]
        assert float(row["darker"]) == float(original.mean() - guess.mean())
        assert float(row["darker_zeros"]) == float(original.mean())
        assert row["never"] == row["never_mean_image"] == "nan"
        assert victim.scores[0].measures["darker"] == float(row["darker"])
    own = run_json(folder)["summary"]["measures"]
    assert list(own) == ["darker", "never", "gmsd"]
    assert own["darker"]["n"] == 3
    for guess, key in (("", "mean"), ("_zeros", "zeros_mean"), ("_mean_image", "mean_image_mean")):
        values = [float(row[f"gmsd{guess}"]) for row in rows]
        assert own["gmsd"][key] == pytest.approx(sum(values) / 3)
    assert own["never"] == {"n": 0, "mean": None, "zeros_mean": None, "mean_image_mean": None}
    told = done.stdout.splitlines()
    (line,) = (line for line in told if line.lstrip().startswith("gmsd"))
    assert line.split() == [
        "gmsd",
        *(f"{own['gmsd'][key]:.4g}" for key in own["gmsd"] if key != "n"),
    ]
    (line,) = (line for line in told if "never" in line)
    assert line.split() == ["never,", "over", "0", "of", "3", "n/a", "n/a", "n/a"]


def test_the_other_columns_are_those_of_a_run_without(tmp_path: Path) -> None:
    composed = config(*SHORT, "n_images=2")
    without = runner.run(composed, tmp_path / "without")
    OmegaConf.update(
        composed,
        "metrics.measures.gmsd",
        {"_target_": "medpfl.metrics.measures.GMSD"},
        force_add=True,
    )
    having = runner.run(composed, tmp_path / "with")
    pairs = zip(
        table(tmp_path / "without/metrics.csv"), table(tmp_path / "with/metrics.csv"), strict=True
    )
    for plain, more in pairs:
        assert {name: more[name] for name in plain} == plain
    assert without.measures == {}
    assert having.measures["gmsd"].n == 2
    assert having.ssim_mean == without.ssim_mean


def test_the_command_line_adds_one_and_takes_one_away(command: Command, tmp_path: Path) -> None:
    added = "metrics.measures.twice={_target_:my_measures.Darker,times:2.0}"
    told = refused(command(*SHORT, added))
    assert "metrics.measures.twice: metrics.measures is empty. To add to it, put a + in" in told
    done = command(
        *MINE, f"+{added}", "metrics.measures.never=null", "n_images=1", "hydra.run.dir=out"
    )
    assert done.code == 0, done.stderr
    (row,) = table(tmp_path / "out" / "metrics.csv")
    assert not any(name.startswith("never") for name in row)
    assert float(row["twice"]) == pytest.approx(2 * float(row["darker"]), rel=1e-6)


def test_a_sweep_has_a_column_of_it(command: Command, tmp_path: Path) -> None:
    done = command("-m", *MINE, "seed=0,1", "n_images=1", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.stderr
    with (tmp_path / "sweep" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        own = read_record(tmp_path / "sweep" / str(number))["summary"]["measures"]
        for key, value in own["gmsd"].items():
            assert float(row[f"gmsd_{key}"]) == value
        assert (row["never_n"], row["never_mean"]) == ("0", "")
    text = (tmp_path / "sweep" / "results.md").read_text()
    assert "| darker, mean | never, mean | gmsd, mean | status |" in text
    assert f"| {float(rows[1]['gmsd_mean']):.4g} | complete |" in text
    heading = next(line for line in done.stdout.splitlines() if "recog. %" in line)
    assert heading.split()[-4:] == ["darker", "never", "gmsd", "s/image"]


def test_what_a_resumed_run_adds_has_the_same_columns(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert command(*MINE, "n_images=2", "hydra.run.dir=out").code == 0
    whole = table(folder / "metrics.csv")
    (folder / "reconstructions" / "round-000__client-1.npz").unlink()
    rewrite(folder, status="interrupted", summary=None)
    assert "give the folder of the configuration" in refused(command("resume=out"))
    done = command("resume=out", "--config-dir=mine")
    assert done.code == 0, done.stderr
    assert table(folder / "metrics.csv") == whole
    assert run_json(folder)["summary"]["measures"]["gmsd"]["n"] == 2


def test_compare_pairs_the_images_where_both_have_it(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, steps in (("a", 1), ("b", 3)):
        settings = (f"attack.optimizer.max_steps={steps}", "n_images=5", f"hydra.run.dir={name}")
        assert command(*MINE, *(o for o in SHORT if "max_steps" not in o), *settings).code == 0
    rows = table(tmp_path / "a" / "metrics.csv")
    rows[0]["gmsd"] = "nan"
    with (tmp_path / "a" / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    capfd.readouterr()
    compare.main([str(tmp_path / "a"), str(tmp_path / "b")])
    told = capfd.readouterr().out
    a, b = (table(tmp_path / name / "metrics.csv")[1:] for name in "ab")
    means = [sum(float(row["gmsd"]) for row in rows) / 4 for rows in (a, b)]
    (line,) = (line for line in told.splitlines() if "mean gmsd, over 4" in line)
    assert line.split()[-2:] == [f"{mean:.4g}" for mean in means]
    assert f"gmsd, A minus B:         {means[0] - means[1]:+.4g} (bootstrap)" in told
    assert "darker, A minus B:" in told
    (line,) = (line for line in told.splitlines() if "mean never" in line)
    assert line.split()[-2:] == ["n/a", "n/a"]
    assert "never, A minus B" not in told


def test_compare_refuses_a_column_that_holds_something_else(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(*MINE, "n_images=1", "hydra.run.dir=a").code == 0
    path = tmp_path / "a" / "metrics.csv"
    (row,) = table(path)
    path.write_text(",".join(row) + "\n" + ",".join({**row, "gmsd": "high"}.values()) + "\n")
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "a"), str(tmp_path / "a")])
    assert "gmsd=high is not a number" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("measures", "words"),
    [
        ({"mse": {"_target_": "my_measures.Darker"}}, "measures.mse: metrics.csv has a column mse"),
        ({"x": {"_target_": "my_measures.Darkest"}}, "my_measures.Darkest: cannot be found"),
        ({"x": {"_target_": "my_measures.Darker", "time": 2}}, "x.time: no such setting; choose"),
        ({"x": {"_target_": "my_measures.Darker", "times": "2"}}, "x.times=2: must be a number"),
        ({"x": {"_target_": "torch.nn.Identity"}}, "measures.x=Identity: must be a Measure (Puts"),
        ({"x": 5}, "metrics.measures.x=5: must be a group with a _target_ or null"),
        (5, "metrics.measures=5: must be"),
    ],
)
def test_mistakes_are_found_before_any_compute(
    measures: object, words: str, tmp_path: Path
) -> None:
    composed = config(*SHORT, "n_images=1")
    OmegaConf.update(composed, "metrics.measures", measures, force_add=True)
    with pytest.raises(ConfigurationError) as raised:
        runner.run(composed, tmp_path / "run")
    assert words in str(raised.value)
    assert not list((tmp_path / "run" / "reconstructions").iterdir())


def test_a_long_name_keeps_the_table_in_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    composed = config(*SHORT, "n_images=1")
    name = "m" * 40
    part = {"_target_": "my_measures.Never"}
    OmegaConf.update(composed, f"metrics.measures.{name}", part, force_add=True)
    summary = runner.run(composed, tmp_path / "run")
    capsys.readouterr()
    summary_table(summary, synthetic=True, threshold=0.9)
    told = capsys.readouterr().out
    assert "".join(told.split()).count("m" * 20) >= 1
    assert max(map(len, told.splitlines())) <= 80
    assert math.isnan(summary.measures[name].mean)


def test_an_older_summary_without_measures_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": "complete", "summary": {"n": 3}}))
    assert read_record(tmp_path)["summary"] == {"n": 3}
    for odd in ([], {"a": 3}, {"a": {"n": "x"}}):
        text = json.dumps({"status": "complete", "summary": {"n": 3, "measures": odd}})
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"summary\.measures must be names with numbers each"):
            read_record(tmp_path)
