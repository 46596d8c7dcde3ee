"""The batched Adam against ``torch.optim.Adam``, row by row, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from medpfl.errors import ConfigurationError
from medpfl.optim import Adam, status_of
from medpfl.optim.base import NON_FINITE, OUT_OF_STEPS, RUNNING
from medpfl.optim.projected import Projected
from medpfl.optim.rows import RowTable
from medpfl.optim.scheduler import Row, Scheduler
from medpfl.outcomes import Status

Objective = Callable[[Tensor], Tensor]


def rosenbrock(z: Tensor) -> Tensor:
    """(B, D) -> (B,)."""
    return (100 * (z[:, 1:] - z[:, :-1] ** 2) ** 2 + (1 - z[:, :-1]) ** 2).sum(1)


def unequal(z: Tensor) -> Tensor:
    """A bowl whose axes differ by eight orders of magnitude, and that never ends in zeros."""
    weights = 10.0 ** torch.linspace(-6, 2, z.shape[1], dtype=z.dtype)
    return (weights * (z - 0.7) ** 2).sum(1) + z.sin().sum(1)


def evaluate(objective: Objective, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    value = objective(z)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


def starts(rows: int, unknowns: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, unknowns, generator=g, dtype=torch.float64)


def path_of_torch(
    objective: Objective, z: Tensor, steps: int, *, signed: bool, milestones: list[int], **options
) -> list[Tensor]:
    """Return the points `(D,)` of torch's Adam under its own MultiStepLR, the start first."""
    x = z.clone().requires_grad_()
    gamma = options.pop("gamma", 0.1)
    reference = torch.optim.Adam([x], **options)
    schedule = torch.optim.lr_scheduler.MultiStepLR(reference, milestones, gamma=gamma)
    points = [x.detach().clone()]
    for _ in range(steps):
        reference.zero_grad()
        objective(x.unsqueeze(0)).sum().backward()
        if signed:
            x.grad.sign_()
        reference.step()
        schedule.step()
        points.append(x.detach().clone())
    return points


@pytest.mark.parametrize("objective", [rosenbrock, unequal])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.1},
        {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3},
        {"lr": 0.5, "betas": (0.0, 0.5)},
        {"lr": 0.1, "milestones": [12, 20, 28], "gamma": 0.1},
        {"lr": 0.1, "milestones": [1, 5, 5], "gamma": 0.5},
    ],
    ids=str,
)
def test_each_row_follows_torch(objective: Objective, signed: bool, options: dict) -> None:
    steps = 32
    z = starts(4, 6)
    optimizer = Adam(max_steps=steps, signed=signed, **options)
    state = optimizer.init(z)
    mine = [state.z.clone()]
    while state.running.any():
        optimizer.tell(state, *evaluate(objective, state.z))
        mine.append(state.z.clone())
    asked = {"milestones": [], **options}
    for row in range(len(z)):
        theirs = path_of_torch(objective, z[row], steps, signed=signed, **asked)
        torch.testing.assert_close(
            torch.stack([point[row] for point in mine]),
            torch.stack(theirs),
            rtol=1e-9,
            atol=1e-10,
        )


def test_fractions_are_of_the_steps_taken() -> None:
    optimizer = Adam(lr=0.1, max_steps=24_000, milestones=[0.375, 0.625, 0.875])
    steps = torch.tensor([0, 8_999, 9_000, 14_999, 15_000, 20_999, 21_000, 23_999])
    rates = torch.tensor([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4], dtype=torch.float64)
    torch.testing.assert_close(optimizer.learning_rate(steps), rates)


def test_rows_of_other_ages_do_not_know_each_other() -> None:
    optimizer = Adam(lr=0.1, max_steps=12, milestones=[0.5])
    z = starts(2, 4)
    old, young = optimizer.init(z[:1]), optimizer.init(z[1:])
    for _ in range(5):
        optimizer.tell(old, *evaluate(rosenbrock, old.z))
    both = old.join(young)
    while both.running.any():
        optimizer.tell(both, *evaluate(rosenbrock, both.z))
    assert both.steps.tolist() == [12, 12]
    for row in range(2):
        alone = optimizer.init(z[row : row + 1])
        while alone.running.any():
            optimizer.tell(alone, *evaluate(rosenbrock, alone.z))
        assert torch.equal(both.z[row], alone.z[0])
        assert torch.equal(both.best_z[row], alone.best_z[0])


def test_a_row_that_is_not_finite_ends_and_is_frozen() -> None:
    optimizer = Adam(lr=0.1, max_steps=3)
    state = optimizer.init(torch.ones(2, 2, dtype=torch.float64))
    gradient = torch.tensor([[1.0, 1.0], [1.0, torch.nan]], dtype=torch.float64)
    optimizer.tell(state, torch.ones(2, dtype=torch.float64), gradient)
    assert state.code.tolist() == [RUNNING, NON_FINITE]
    frozen = state.select(torch.tensor([1]))
    assert frozen.z.isfinite().all()
    assert frozen.m.isfinite().all()
    while state.running.any():
        optimizer.tell(state, torch.zeros(2, dtype=torch.float64), gradient)
    assert state.code.tolist() == [OUT_OF_STEPS, NON_FINITE]
    assert state.steps.tolist() == [3, 0]
    for name in ("z", "m", "v", "best_z", "best_value", "evaluations"):
        assert torch.equal(getattr(state, name)[1:], getattr(frozen, name)), name


@pytest.mark.parametrize(
    "fault",
    [
        {"lr": 0.0},
        {"max_steps": 0},
        {"betas": (0.9,)},
        {"betas": (0.9, 1.0)},
        {"eps": -1.0},
        {"milestones": [0]},
        {"gamma": 0.0},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_named(fault: dict) -> None:
    (name,) = fault
    with pytest.raises(ConfigurationError, match=rf"attack\.optimizer\.{name}="):
        Adam(**{"lr": 0.1, "max_steps": 5, **fault})


# Projected ---------------------------------------------------------------------------------------


@dataclass
class Goal(RowTable):
    """`(B, D)`: where a row's bowl has its minimum."""

    centre: Tensor


def bowl(z: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    return (z - goal.centre).square().sum(1), 2 * (z - goal.centre)


def below_one(z: Tensor, steps: Tensor) -> Tensor:
    """Clamp rows at every third of their steps."""
    return torch.where((steps % 3 == 0).unsqueeze(1), z.clamp(max=1.0), z)


def test_projection_follows_each_rows_own_steps() -> None:
    """A loop over torch's Adam with a clamp now and then; rows that queue for a place."""
    steps, lr = 40, 0.2
    z = starts(5, 3, seed=1)
    centre = 2 + starts(5, 3, seed=2)
    scheduler: Scheduler[int, Goal] = Scheduler(
        optimizer=Projected(Adam(lr=lr, max_steps=steps), below_one),  # type: ignore[arg-type]
        objective=bowl,
        capacity=2,
    )
    queue = iter(Row(row, z[row], Goal(centre[row : row + 1])) for row in range(5))
    ended = {outcome.key: outcome for outcome in scheduler.run(queue)}
    for row, outcome in ended.items():
        assert outcome.status is Status.OUT_OF_STEPS
        x = z[row].clone().requires_grad_()
        reference = torch.optim.Adam([x], lr=lr)
        values, points = [], []
        for step in range(1, steps + 1):
            reference.zero_grad()
            value = (x - centre[row]).square().sum()
            values.append(value.item())
            points.append(x.detach().clone())
            value.backward()
            reference.step()
            if step % 3 == 0:
                x.data.clamp_(max=1.0)
        best = min(range(steps), key=values.__getitem__)
        assert outcome.objective == pytest.approx(values[best], rel=1e-10)
        torch.testing.assert_close(outcome.z, points[best], rtol=1e-10, atol=1e-12)


def test_a_finished_row_is_not_projected() -> None:
    optimizer = Projected(Adam(lr=0.1, max_steps=1), lambda z, steps: torch.zeros_like(z))
    state = optimizer.init(torch.ones(1, 2))
    optimizer.tell(state, torch.ones(1), torch.ones(1, 2))
    assert status_of(int(state.code)) is Status.OUT_OF_STEPS
    torch.testing.assert_close(state.z, torch.full((1, 2), 0.9))
