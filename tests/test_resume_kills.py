"""A run that is killed again and again."""

from __future__ import annotations

import csv
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from records import assert_same_end, finished, logged, run_json
from sessions import TINY, Stop, session, start

from medpfl.report.record import COLUMNS

KILLS = 8


def draw_stop(draws: random.Random) -> Stop | float:
    """Draw a moment: a share of a session's time, or a place around one of its writes."""
    if draws.random() < 1 / 3:
        return draws.uniform(0.1, 1.0)
    counts = {"link": 1, "fsync": 9, "replace": 9, "open": 20}
    call = draws.choice([*counts])
    return Stop(call, draws.randint(1, counts[call]), after=draws.random() < 0.5)


@pytest.mark.parametrize(
    "times", [KILLS, pytest.param(3 * KILLS, marks=pytest.mark.trial)], ids=["some", "many"]
)
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(
    times, tmp_path, whole
):
    draws = random.Random(0)
    kills = runs = 0
    span = 2.0
    while kills < times:
        runs += 1
        folder, resumed, done = tmp_path / f"{runs}", 0, False
        while not done:
            before = finished(folder)
            resumed += (folder / "run.json").exists()
            log = tmp_path / f"log-{runs}-{kills}"
            moment = draw_stop(draws) if kills < times else None
            began = time.monotonic()
            stop = moment if isinstance(moment, Stop) else None
            process = start(session, folder, TINY, log, stop)
            if isinstance(moment, float):
                process.join(moment * span)
                process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL), moment
            if process.exitcode == 0:
                span = time.monotonic() - began
                done = True
            kills += not done
            check_what_a_kill_leaves(folder)
            computed = Counter(logged(log))
            assert finished(folder) >= before, moment
            assert not before & computed.keys(), moment
            assert set(computed.values()) <= {1}, moment
        assert_same_end(folder, whole)
        assert len(run_json(folder).get("resumed", ())) <= resumed
    assert kills >= times


def check_what_a_kill_leaves(folder: Path) -> None:
    """Every file is there whole or not at all, but for the hidden ones."""
    for path in folder.rglob("[!.]*.png"):
        Image.open(path).load()
    if (folder / "run.json").exists():
        assert run_json(folder)["status"] in ("running", "complete")
    if (folder / "metrics.csv").exists():
        assert all(tuple(row) == (*COLUMNS,) for row in whole_rows(folder / "metrics.csv"))


def whole_rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
