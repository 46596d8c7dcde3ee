"""The batched L-BFGS against ``torch.optim.LBFGS``, row by row, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medpfl.optim import LBFGS
from medpfl.optim.base import CONVERGED, NON_FINITE, OUT_OF_STEPS, STALLED
from medpfl.optim.memory import PairMemory

Objective = Callable[[Tensor], Tensor]


def rosenbrock(z: Tensor) -> Tensor:
    """(B, D) -> (B,)."""
    return (100 * (z[:, 1:] - z[:, :-1] ** 2) ** 2 + (1 - z[:, :-1]) ** 2).sum(1)


def quartic(z: Tensor) -> Tensor:
    weights = torch.linspace(0.1, 3.0, z.shape[1], dtype=z.dtype)
    return (weights * z**4 + 0.5 * z**2 - 0.3 * z).sum(1)


def two_layer_gradient_matching(z: Tensor) -> Tensor:
    """The attack's own kind of objective: match the gradient of a small sigmoid network."""
    g = torch.Generator().manual_seed(3)
    w1 = torch.randn(12, z.shape[1], generator=g, dtype=z.dtype)
    w2 = torch.randn(4, 12, generator=g, dtype=z.dtype)
    truth = torch.rand(1, z.shape[1], generator=g, dtype=z.dtype)

    def gradients(x: Tensor) -> Tensor:
        h = torch.sigmoid(x @ w1.T)
        p = torch.softmax(h @ w2.T, 1)
        p = p - torch.tensor([0.0, 1, 0, 0], dtype=z.dtype)
        back = (p @ w2) * h * (1 - h)
        return torch.cat(
            [
                (p.unsqueeze(2) * h.unsqueeze(1)).flatten(1),
                (back.unsqueeze(2) * x.unsqueeze(1)).flatten(1),
            ],
            1,
        )

    return (gradients(z) - gradients(truth)).square().sum(1)


OBJECTIVES = [rosenbrock, quartic, two_layer_gradient_matching]


def evaluate(objective: Objective, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    value = objective(z)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


def evaluated_points(optimizer: LBFGS, objective: Objective, z: Tensor) -> list[list[Tensor]]:
    """Return for each row the points at which it asked for its objective, in order."""
    state = optimizer.init(z)
    points: list[list[Tensor]] = [[] for _ in z]
    while state.running.any():
        for row in state.running.nonzero().flatten().tolist():
            points[row].append(state.z[row].clone())
        optimizer.tell(state, *evaluate(objective, state.z))
    return points


def torch_evaluated_points(
    objective: Objective, z: Tensor, steps: int, **options: object
) -> list[Tensor]:
    """Return torch's points, without its second look at a point that it knows already."""
    x = z.clone().requires_grad_()
    reference = torch.optim.LBFGS([x], **options)  # type: ignore[arg-type]
    points: list[Tensor] = []
    searching = options.get("line_search_fn") is not None

    for step in range(steps):
        first = True

        def closure() -> Tensor:
            nonlocal first
            known = any(torch.equal(x.detach(), p) for p in points)
            if not (first and step > 0 and (known or searching)):  # noqa: B023
                points.append(x.detach().clone())
            first = False
            reference.zero_grad()
            value = objective(x.unsqueeze(0)).sum()
            value.backward()
            return value

        reference.step(closure)
    return points


def starts(rows: int, unknowns: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, unknowns, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_iter": 7, "history_size": 4},
        {"lr": 0.5, "max_iter": 5, "max_eval": 3},
        {"line_search_fn": "strong_wolfe"},
        {"line_search_fn": "strong_wolfe", "max_iter": 6, "history_size": 3},
        {"line_search_fn": "strong_wolfe", "max_iter": 50, "max_eval": 9},
        {"tolerance_grad": 1e-3, "tolerance_change": 1e-4},
        {"lr": 3.0, "line_search_fn": "strong_wolfe", "tolerance_change": 1e-12},
    ],
    ids=str,
)
def test_each_row_follows_torch(objective: Objective, options: dict[str, object]) -> None:
    steps = 8
    z = starts(5, 6) * torch.tensor([0.1, 0.5, 1, 2, 3], dtype=torch.float64).unsqueeze(1)
    names = {"history_size": "history", "line_search_fn": "line_search"}
    ours = LBFGS(max_steps=steps, **{names.get(k, k): v for k, v in options.items()})  # type: ignore[arg-type]
    compared = 0
    for row, mine in enumerate(evaluated_points(ours, objective, z)):
        reference = torch_evaluated_points(objective, z[row], steps, **options)
        for i, (a, b) in enumerate(zip(mine, reference, strict=False)):
            _, gradient = evaluate(objective, b.unsqueeze(0))
            if not b.abs().max() < 20 or gradient.abs().max() < 1e-5:
                break  # from here on the rounding decides: a diverged or a finished row
            torch.testing.assert_close(
                a, b, rtol=1e-6, atol=1e-8, msg=f"row {row}, point {i} of {len(reference)}"
            )
            compared += 1
        else:
            assert len(mine) == len(reference)
    assert compared > 40


def test_direction_equals_the_dense_bfgs_matrix() -> None:
    g = torch.Generator().manual_seed(1)
    rows, unknowns, slots, pairs = 3, 5, 4, 7
    memory = PairMemory.empty(torch.zeros(rows, unknowns, dtype=torch.float64), slots=slots)
    kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(rows)]
    for i in range(pairs):
        s = torch.randn(rows, unknowns, generator=g, dtype=torch.float64)
        y = s + 0.3 * torch.randn(rows, unknowns, generator=g, dtype=torch.float64)
        curvature = (s * y).sum(1)
        # rows hold different numbers of pairs: row 0 skips every second one
        mask = (curvature > 0) & torch.tensor([i % 2 == 0, True, i > 3])
        memory.append(mask, s, y, curvature)
        for row in mask.nonzero().flatten().tolist():
            kept[row] = [*kept[row], (s[row], y[row])][-slots:]
    gradient = torch.randn(rows, unknowns, generator=g, dtype=torch.float64)
    direction = memory.direction(gradient)
    eye = torch.eye(unknowns, dtype=torch.float64)
    for row in range(rows):
        s, y = kept[row][-1]
        inverse = (s @ y) / (y @ y) * eye
        for s, y in kept[row]:
            rho = 1 / (s @ y)
            left = eye - rho * torch.outer(s, y)
            inverse = left @ inverse @ left.T + rho * torch.outer(s, s)
        torch.testing.assert_close(direction[row], -inverse @ gradient[row])


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_rows_do_not_know_each_other(line_search: str | None) -> None:
    z = starts(6, 5, seed=4)
    optimizer = LBFGS(max_steps=2, lr=0.5, line_search=line_search)  # type: ignore[arg-type]
    together = evaluated_points(optimizer, two_layer_gradient_matching, z)
    for row in range(len(z)):
        (alone,) = evaluated_points(optimizer, two_layer_gradient_matching, z[row : row + 1])
        for a, b in zip(alone[:25], together[row][:25], strict=True):
            if not b.abs().max() < 20:
                break  # a diverged row magnifies rounding without bound
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_every_way_to_end_is_named() -> None:
    def objective(z: Tensor) -> Tensor:
        """Row 0 at its minimum, row 1 a log that leaves its domain, row 2 needs many steps."""
        return torch.stack(
            [z[0].square().sum(), torch.log(z[1] - 0.9).sum(), rosenbrock(z[2:3])[0]]
        )

    z = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.2, 1.0]], dtype=torch.float64)
    optimizer = LBFGS(max_steps=2, max_iter=2)
    state = optimizer.init(z)
    while state.running.any():
        optimizer.tell(state, *evaluate(objective, state.z))
    assert state.code.tolist() == [CONVERGED, NON_FINITE, OUT_OF_STEPS]
    assert state.best_z.isfinite().all()
    assert state.best_value[2] < rosenbrock(z[2:3])[0]


def test_a_row_that_cannot_descend_is_stalled() -> None:
    z = torch.tensor([[1.0]], dtype=torch.float64)
    optimizer = LBFGS(tolerance_grad=0.0)
    state = optimizer.init(z)
    optimizer.tell(state, torch.tensor([1.0]).double(), torch.tensor([[1e-6]]).double())
    assert state.code.item() == STALLED
    assert state.z.item() == 1.0


def test_a_finished_row_is_frozen_bit_for_bit() -> None:
    z = starts(2, 3)
    z[0] = 0.0
    optimizer = LBFGS(max_steps=3, max_iter=4)

    def objective(points: Tensor) -> Tensor:
        return torch.stack([points[0].square().sum(), rosenbrock(points[1:])[0]])

    state = optimizer.init(z)
    optimizer.tell(state, *evaluate(objective, state.z))
    assert state.code[0] == CONVERGED
    frozen = state.select(torch.tensor([0]))
    while state.running.any():
        optimizer.tell(state, *evaluate(objective, state.z))
    for name in ("z", "x", "steps", "evaluations", "best_z", "best_value", "d", "g"):
        assert torch.equal(getattr(state, name)[:1], getattr(frozen, name)), name


def test_objective_below_is_checked_every_so_many_steps() -> None:
    optimizer = LBFGS(max_steps=50, max_iter=1, objective_below=1e9, check_every=10)
    state = optimizer.init(torch.tensor([[-1.2, 1.0]], dtype=torch.float64))
    while state.running.any():
        optimizer.tell(state, *evaluate(rosenbrock, state.z))
    assert state.code.item() == CONVERGED
    assert state.steps.item() == 10


def faint(z: Tensor) -> Tensor:
    """An objective whose unit is tiny; a power of two, so that scaling it rounds nothing."""
    return rosenbrock(z) * 2.0**-60


@pytest.mark.parametrize("scale_free", [True, False])
def test_only_scale_free_rows_do_not_mind_the_unit_of_the_objective(scale_free: bool) -> None:
    optimizer = LBFGS(
        max_steps=60,
        max_iter=1,
        max_eval=25,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search="strong_wolfe",
        scale_free=scale_free,
    )
    ends = []
    for objective in (rosenbrock, faint):
        state = optimizer.init(starts(3, 6))
        while state.running.any():
            optimizer.tell(state, *evaluate(objective, state.z))
        ends.append(state.best_z)
    assert torch.equal(*ends) == scale_free
    assert bool((rosenbrock(ends[1]) < 1e-9).all()) == scale_free
