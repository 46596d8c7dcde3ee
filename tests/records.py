"""What a run has left in its folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from medpfl.report.victim_file import load_victim

SECONDS = {"seconds", "seconds_per_image"}


def run_json(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text("utf-8"))


def rewrite(folder: Path, **changes: object) -> None:
    (folder / "run.json").write_text(json.dumps({**run_json(folder), **changes}))


def table(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return [{k: v for k, v in r.items() if k not in SECONDS} for r in csv.DictReader(file)]


def summary(folder: Path) -> dict:
    return {k: v for k, v in run_json(folder)["summary"].items() if k not in SECONDS}


def finished(folder: Path) -> set[str]:
    """Return the first images of the victims on disk, all of which can be read."""
    arrays = (folder / "reconstructions").glob("*.npz")
    return {load_victim(path).scores[0].image_id for path in arrays}


def logged(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def assert_same_end(folder: Path, whole: Path) -> None:
    assert run_json(folder)["status"] == "complete"
    assert table(folder / "metrics.csv") == table(whole / "metrics.csv")
    assert summary(folder) == summary(whole)
    names = {p.relative_to(folder) for p in folder.rglob("*")}
    assert names == {p.relative_to(whole) for p in whole.rglob("*")}
