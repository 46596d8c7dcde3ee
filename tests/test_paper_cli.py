"""A paper's recipe from the command line, in an empty folder without data."""

from __future__ import annotations

from pathlib import Path

from conftest import Command

RECIPE = ("--config-name=paper/table1", "paper/row=cpl", "dataset.download=false")


def test_without_data_every_row_says_so_and_the_numbers_stay_blank(
    command: Command, tmp_path: Path
) -> None:
    done = command(*RECIPE, "hydra.sweep.dir=sweep", "budget=quick")
    assert "Table I: CPL on three datasets" in done.stdout
    assert "3 jobs of up to 12 images; about" in done.stdout
    assert "PREVIEW (budget=quick): at most 12 images a row" in done.stdout
    text = (tmp_path / "sweep" / "table.md").read_text()
    for dataset, reported in (("melanoma", 49), ("covid", 55), ("brain_mri", 76)):
        line = next(line for line in text.splitlines() if f"CPL, {dataset} | ASR" in line)
        assert f"| {reported} [" in line
        assert "| no data: set MEDPFL_DATA_ROOT | no data: set MEDPFL_DATA_ROOT | - |" in line
    for name in ("results.csv", "table.md", "table1.png", "table1.pdf"):
        assert (tmp_path / "sweep" / name).is_file()
    # Nothing at all could be measured: a script should notice.
    assert done.code == 1


def test_an_unknown_budget_is_refused_before_any_job(command: Command, tmp_path: Path) -> None:
    done = command(*RECIPE, "hydra.sweep.dir=sweep", "budget=fast")
    assert done.code != 0
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "sweep" / "0").exists()
