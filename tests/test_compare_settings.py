"""What differs between two runs, and what tells them apart where their names are the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from medpfl.compare import main


def run(folder: Path, network: str, grades: list[str] | None, **settings: object) -> str:
    folder.mkdir()
    config = {
        "attack": {"name": "dlg", **settings},
        "dataset": {"name": "covid"},
        "model": {"_target_": f"medpfl.models.{network}"},
    }
    (folder / "run.json").write_text(json.dumps({"status": "complete", "config": config}))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "ssim", "success", *(["grade"] if grades else [])])
        for k in range(4):
            writer.writerow([f"i{k}", 0.5, False, *([grades[k]] if grades else [])])
    return str(folder)


def told(capsys: pytest.CaptureFixture[str], a: str, b: str) -> list[str]:
    main([a, b])
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_runs_of_one_name_are_told_apart_by_their_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = run(tmp_path / "a", "DLGCNN", None, optimizer={"max_steps": 300, "lr": 1.0})
    b = run(tmp_path / "b", "LeNet", None, optimizer={"max_steps": 15, "lr": 1.0}, polish=None)
    lines = told(capsys, a, b)
    assert "run dlg on covid, DLGCNN dlg on covid, LeNet" in lines
    assert "attack.optimizer.max_steps: 300 -> 15" in lines
    assert "model._target_: medpfl.models.DLGCNN -> medpfl.models.LeNet" in lines
    assert "attack.polish: not set -> None" in lines
    assert not any("optimizer.lr" in line for line in lines)
    assert "settings: the same" in told(capsys, a, a)


def test_differences_are_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run(tmp_path / "a", "LeNet", None, **{f"s{k}": 1 for k in range(40)})
    b = run(tmp_path / "b", "LeNet", None, **{f"s{k}": 2 for k in range(40)})
    lines = told(capsys, a, b)
    assert sum("->" in line for line in lines) <= 14
    assert "and 28 more" in lines


def test_grades_are_compared_where_both_runs_have_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = run(tmp_path / "a", "LeNet", ["exact", "recognisable", "nothing", "nothing"])
    b = run(tmp_path / "b", "LeNet", ["diagnostic", "nothing", "nothing", "nothing"])
    old = run(tmp_path / "old", "LeNet", None)
    found = next(line for line in told(capsys, a, b) if "recognisable" in line)
    assert found == "at least recognisable 50.0 % [15.0, 85.0] 25.0 % [4.6, 69.9]"
    assert not any("recognisable" in line for line in told(capsys, a, old))
