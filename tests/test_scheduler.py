"""The scheduler: every row ends once, with the same outcome whoever ran beside it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medpfl.optim import LBFGS
from medpfl.optim.rows import RowTable
from medpfl.optim.scheduler import Outcome, Row, Scheduler, Tick
from medpfl.outcomes import Status


@dataclass
class Goal(RowTable):
    """`(B, 2)`: where each row's valley ends; `(B,)` how narrow it is."""

    end: Tensor
    narrow: Tensor


def valley(z: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """Rosenbrock's valley, moved, and of every width; minimum 0 at the goal's end."""
    z = z.detach().requires_grad_()
    x, y = (z - goal.end + 1).unbind(1)
    value = goal.narrow * (y - x**2) ** 2 + (1 - x) ** 2
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


def row(key: int, *, start: tuple[float, float] | None = None) -> Row[int, Goal]:
    """Row `key`; the narrower its valley, the longer it takes."""
    g = torch.Generator().manual_seed(key)
    end = torch.rand(1, 2, generator=g, dtype=torch.float64)
    narrow = torch.tensor([10.0 ** (key % 3)], dtype=torch.float64)
    point = torch.randn(2, generator=g, dtype=torch.float64) if start is None else start
    return Row(key, torch.as_tensor(point, dtype=torch.float64), Goal(end, narrow))


def scheduler(
    capacity: int, *, growth: float | None = None, objective=valley, max_steps: int = 6
) -> Scheduler[int, Goal]:
    return Scheduler(
        optimizer=LBFGS(max_steps=max_steps, max_iter=8, line_search="strong_wolfe"),
        objective=objective,
        capacity=capacity,
        snapshot_growth=growth,
    )


def outcomes(rows: list[Row[int, Goal]], capacity: int, **options) -> dict[int, Outcome[int]]:
    ended = list(scheduler(capacity, **options).run(iter(rows)))
    assert len(ended) == len(rows)
    return {outcome.key: outcome for outcome in ended}


def assert_same(a: Outcome[int], b: Outcome[int]) -> None:
    assert (a.key, a.status, a.steps, a.evaluations) == (b.key, b.status, b.steps, b.evaluations)
    torch.testing.assert_close(a.z, b.z, rtol=1e-9, atol=1e-12)
    assert a.objective == pytest.approx(b.objective, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("capacity", [2, 5, 64])
def test_capacity_does_not_change_any_outcome(capacity):
    rows = [row(key) for key in range(12)]
    alone = outcomes(rows, 1)
    beside = outcomes(rows, capacity)
    assert len({o.evaluations for o in alone.values()}) > 4  # rows of different lengths
    assert beside.keys() == alone.keys()
    for key, outcome in alone.items():
        assert_same(outcome, beside[key])


@settings(max_examples=25, deadline=None)
@given(
    keys=st.lists(st.integers(0, 9), unique=True, max_size=7),
    capacity=st.integers(1, 9),
)
def test_every_row_ends_once_whatever_the_order(keys, capacity):
    found = outcomes([row(key) for key in keys], capacity, max_steps=2)
    assert sorted(found) == sorted(keys)
    for key in keys[:1]:
        assert_same(found[key], outcomes([row(key)], 1, max_steps=2)[key])


@pytest.mark.parametrize("capacity", [1, 3, 8])
def test_an_endless_queue_is_read_only_as_places_come_free(capacity):
    read = 0

    def endless() -> Iterator[Row[int, Goal]]:
        nonlocal read
        for key in itertools.count():
            read += 1
            yield row(key)

    running = scheduler(capacity).run(endless())
    assert read == 0
    for ended in range(20):
        next(running)
        assert read <= capacity + ended
    assert read > capacity


def test_an_empty_queue_has_no_outcome():
    assert outcomes([], 4) == {}


def test_the_reason_a_row_ended_is_its_own():
    rows = [
        row(0),
        row(1, start=(0.0, 0.0)),
        Row(2, *_at_the_goal()),
        row(3),
    ]
    found = outcomes(rows, 4, max_steps=1)
    assert found[2].status is Status.CONVERGED
    assert found[2].evaluations == 1
    assert {found[key].status for key in (0, 1, 3)} == {Status.OUT_OF_STEPS}
    assert outcomes([row(0)], 1, max_steps=60)[0].status in (Status.CONVERGED, Status.STALLED)


def _at_the_goal() -> tuple[Tensor, Goal]:
    goal = row(2).target
    return goal.end[0].clone(), goal


def test_outcomes_hold_the_best_point_and_its_value():
    for key, outcome in outcomes([row(key) for key in range(4)], 2).items():
        value, _ = valley(outcome.z.unsqueeze(0), row(key).target)
        assert outcome.objective == value.item()
        at_start, _ = valley(row(key).start.unsqueeze(0), row(key).target)
        assert outcome.objective < at_start.item()


def test_a_row_without_a_finite_objective_ends_and_others_go_on():
    def poisoned(z: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        value, gradient = valley(z, goal)
        bad = goal.narrow < 0
        return torch.where(bad, torch.nan, value), gradient

    bad = Row(7, row(7).start, Goal(row(7).target.end, torch.tensor([-1.0], dtype=torch.float64)))
    rows = [row(0), bad, row(1), row(2)]
    found = outcomes(rows, 2, objective=poisoned)
    assert found[7].status is Status.NON_FINITE
    assert found[7].evaluations == 1
    assert math.isnan(found[7].objective)
    assert torch.equal(found[7].z, bad.start)
    assert found[7].snapshots == ()
    healthy = outcomes([row(key) for key in range(3)], 2)
    for key in range(3):
        assert_same(found[key], healthy[key])


def test_a_row_that_leaves_its_domain_hands_in_its_best_point():
    def walled(z: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        value, gradient = valley(z, goal)
        return torch.where(value < 0.5, torch.inf, value), gradient

    outcome = outcomes([row(1)], 1, objective=walled, max_steps=50)[1]
    assert outcome.status is Status.NON_FINITE
    assert 0.5 <= outcome.objective < math.inf


def test_snapshots_increase_in_step_and_thin_out():
    for outcome in outcomes([row(key) for key in range(5)], 2, growth=1.5, max_steps=40).values():
        steps = [s.step for s in outcome.snapshots]
        assert steps[0] == 0
        assert all(a < b for a, b in itertools.pairwise(steps))
        assert steps[-1] <= outcome.steps
        # a step is looked at once it is 1.5 times the last one
        assert all(b >= max(a + 1, 1.5 * a) for a, b in itertools.pairwise(steps))
        assert outcome.snapshots[0].z.dtype == torch.float32
        values = [s.objective for s in outcome.snapshots]
        assert outcome.objective <= min(values)


def test_no_snapshots_where_none_are_asked_for():
    assert outcomes([row(0)], 1)[0].snapshots == ()


def test_seconds_are_shares_of_the_wall_time(monkeypatch):
    ticks = 0
    monkeypatch.setattr("medpfl.optim.scheduler.time.perf_counter", lambda: 2.0 * ticks)

    def slow(z: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        nonlocal ticks
        ticks += 1
        return valley(z, goal)

    found = outcomes([row(key) for key in range(6)], 3, objective=slow)
    assert sum(outcome.seconds for outcome in found.values()) == pytest.approx(2.0 * ticks)
    assert all(outcome.seconds > 0 for outcome in found.values())


def test_ticks_are_reported_with_the_rows_at_work():
    seen: list[Tick] = []
    running = Scheduler(
        optimizer=LBFGS(max_steps=3, max_iter=4),
        objective=valley,
        capacity=2,
        ticked=seen.append,
    )
    evaluations = sum(o.evaluations for o in running.run(row(key) for key in range(5)))
    assert sum(len(t.steps) + len(t.ended) for t in seen) == evaluations
    assert {len(t.steps) + len(t.ended) for t in seen} <= {1, 2}
    assert all(step <= t.max_steps == 3 for t in seen for step in (*t.steps, *t.ended))
    assert sum(len(t.ended) for t in seen) == 5
