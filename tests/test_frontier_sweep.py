"""A frontier from the command line: two jobs end to end, interrupted and resumed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from conftest import Command

TINY = (
    *("--config-name=paper/frontier", "budget=quick", "hydra.sweep.dir=sweep", "seed=0"),
    *("paper/defense=sign", "dataset=phantom", "dataset.per_class=3", "preprocess.size=16"),
    *("dataset.kinds=[head]", "federation.clients=2", "federation.rounds=1", "n_images=4"),
    *("capture.clients=null", "attack.optimizer.max_steps=2", "device=cpu"),
)


def test_a_tiny_frontier_ends_in_its_product_and_resumes(command: Command, tmp_path: Path) -> None:
    done = command(*TINY, "paper/attacker=naive,adaptive")
    assert done.code == 0, done.stderr
    sweep = tmp_path / "sweep"
    with (sweep / "frontier.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["point"], row["naive_asr_n"], row["adaptive_asr_n"]) == ("sign", "4", "4")
    assert row["naive_top1_n"] == "4"
    assert float(row["balanced_accuracy"]) >= 0
    assert row["bytes_sent"]
    assert (sweep / "frontier.png").stat().st_size > 20_000
    known = [
        json.loads((sweep / job / "run.json").read_text())["config"]["threat"]["knows"]
        for job in ("0", "1")
    ]
    assert ["defense" in knows for knows in known] == [False, True]

    (sweep / "1" / "run.json").unlink()
    for path in (sweep / "1" / "reconstructions").iterdir():
        path.unlink()
    before = (sweep / "0" / "run.json").read_bytes()
    again = command("resume=sweep")
    assert again.code == 0, again.stderr
    assert (sweep / "0" / "run.json").read_bytes() == before
    with (sweep / "frontier.csv").open() as file:
        (resumed,) = csv.DictReader(file)
    assert resumed["adaptive_asr_n"] == "4"
    assert "n/a" not in (sweep / "frontier.md").read_text().split("| sign |")[1].split("\n")[0]
