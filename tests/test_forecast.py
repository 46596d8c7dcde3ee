"""What is left, as the rows under way tell it; and what a run may take at most."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import context, experiment
from test_console import Clock

from medpfl.attacks.base import Work
from medpfl.attacks.duration import Longest
from medpfl.federated import Simulation
from medpfl.optim.scheduler import Tick
from medpfl.report import duration
from medpfl.report.forecast import Forecast


def follow(forecast: Forecast, clock: Clock, lengths: list[int], *, side_by_side: int) -> list:
    """Run rows of known lengths, a second a step of one row; return what was said and was true."""
    said = []
    waiting, active, ended = list(lengths), [], 0
    total = sum(lengths)
    done = 0
    while waiting or active:
        while waiting and len(active) < side_by_side:
            active.append([0, waiting.pop(0)])
        clock.now += len(active)
        for row in active:
            row[0] += 1
        done += len(active)
        gone = [row for row in active if row[0] == row[1]]
        active = [row for row in active if row[0] < row[1]]
        tick = Tick(tuple(r[0] for r in active), tuple(r[1] for r in gone), 300)
        forecast.follow(Work(tick))
        ended += len(gone)
        said.append((forecast.seconds_left(), total - done, ended))
    return said


def test_nothing_is_said_before_a_row_has_ended():
    clock = Clock()
    for left, _, ended in follow(Forecast(8, clock), clock, [10] * 8, side_by_side=4):
        assert (left is None) == (ended == 0)


def test_rows_of_like_length_are_foretold():
    clock = Clock()
    said = follow(Forecast(40, clock), clock, [10, 12, 11, 9] * 10, side_by_side=8)
    for left, truth, ended in said:
        if ended >= 8:
            assert left == pytest.approx(truth, rel=0.25, abs=12)
    assert said[-1][0] == 0


def test_images_without_a_gradient_do_not_enter_the_pace():
    clock = Clock()
    forecast = Forecast(48, clock)
    for _ in range(8):
        forecast.leave_out()
    assert forecast.seconds_left() is None
    said = follow(forecast, clock, [10] * 40, side_by_side=8)
    assert said[20][0] == pytest.approx(said[20][1], rel=0.1)


def test_a_row_that_outlasts_all_others_is_not_foretold_to_end_at_once():
    clock = Clock()
    forecast = Forecast(2, clock)
    forecast.follow(Work(Tick((5, 5), (), 300)))
    clock.now += 10
    forecast.follow(Work(Tick((100,), (5,), 300)))
    left = forecast.seconds_left()
    assert left == pytest.approx(100 * 10 / 105)
    clock.now += 1
    forecast.follow(Work(Tick((299,), (), 300)))
    assert forecast.seconds_left() < 0.1


def test_of_several_passes_nothing_is_said_before_the_last_is_known():
    clock = Clock()
    forecast = Forecast(2, clock)
    forecast.follow(Work(Tick((1, 1), (), 10), 1, 2))
    clock.now += 5
    forecast.follow(Work(Tick((), (10, 10), 10), 1, 2))
    assert forecast.seconds_left() is None
    forecast.follow(Work(Tick((3, 3), (), 10), 2, 2))
    assert forecast.where() == "2 rows at step 3 of at most 10, pass 2 of 2"
    clock.now += 6
    forecast.follow(Work(Tick((5,), (6,), 10), 2, 2))
    assert forecast.seconds_left() == pytest.approx(6 / 11)


def test_an_attack_reports_its_steps_and_their_maximum():

    e = experiment(
        "n_images=2",
        "attack=dlg",
        "preprocess.size=16",
        "attack.precision=mixed",
        "attack.optimizer.max_steps=2",
        "attack.restarts=2",
    )
    seen: list[Work] = []
    told = replace(context(), progress=seen.append)
    list(e.attack.reconstruct((c.observation for c in e.source.captures()), told))
    assert {(w.stage, w.stages, w.rows_a_victim, w.tick.max_steps) for w in seen} == {
        (1, 2, 2, 2),
        (2, 2, 2, 2),
    }
    assert sum(len(w.tick.ended) for w in seen if w.stage == 2) == 4


# Before the attack --------------------------------------------------------------------------------

SMALL = ("preprocess=crop32", "preprocess.size=16", "model=lenet", "n_images=2")


@pytest.fixture
def slow(monkeypatch):
    """Let an evaluation take a second."""
    monkeypatch.setattr("medpfl.attacks.gradient_matching.seconds_of", lambda evaluate: evaluate())
    real = Longest

    def second(**facts: object) -> Longest:
        return real(**{**facts, "seconds": 1.0})

    monkeypatch.setattr("medpfl.attacks.gradient_matching.Longest", second)


def test_a_run_of_hours_says_so(slow):
    e = experiment("attack=gradinv", *SMALL, "attack.restarts=3", "attack.optimizer.max_steps=6000")
    said = duration.longest_time(e)
    assert "at most about 10 h 00 min for 2 images on this device" in said
    assert "(6,000 steps x 3 restarts an update at most, 1 s a step)" in said
    assert "attack.optimizer.max_steps" in said
    assert "use a GPU" in said


def test_steps_that_mostly_are_not_needed_alarm_later(slow):
    settings = ("attack=dlg", "preprocess.size=16", "n_images=2")
    e = experiment(*settings, "attack.optimizer.max_steps=600")
    assert duration.longest_time(e) is None
    e = experiment(*settings, "attack.optimizer.max_steps=60000")
    assert "rows mostly end far earlier" in duration.longest_time(e)


def test_a_short_run_is_not_timed_at_all(monkeypatch):
    e = experiment("attack=gradinv", *SMALL, "attack.restarts=1", "attack.optimizer.max_steps=9")
    monkeypatch.setattr(Simulation, "sample", lambda self: pytest.fail("an update was made"))
    assert duration.longest_time(e) is None
