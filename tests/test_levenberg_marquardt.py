"""Levenberg-Marquardt: its steps, its ends, and the curvature it is told of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers import payload_of, seeded, spec_of
from scipy.optimize import least_squares
from torch import Tensor
from torch.func import grad_and_value, vmap

from medpfl.attacks.curvature import gauss_newton
from medpfl.attacks.distances import Cosine, LeastSquares, NormalisedError, SquaredError
from medpfl.attacks.matching import MatchingObjective, Targets, flatten
from medpfl.attacks.unknowns import Unknowns
from medpfl.errors import ConfigurationError
from medpfl.optim import LBFGS, LevenbergMarquardt
from medpfl.optim.base import Product
from medpfl.optim.damped import conjugate_gradients, factorised
from medpfl.optim.rows import RowTable
from medpfl.optim.scheduler import Outcome, Row, Scheduler
from medpfl.outcomes import Status

FAULT = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
SOLVERS = ["dense", "cg"]
Residual = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Seen(RowTable):
    """`(B, R)`: what each row's model must reproduce."""

    values: Tensor


class SumOfSquares:
    """The objective |residual(z, seen)|^2 of many rows."""

    def __init__(self, residual: Residual) -> None:
        self.residual = residual
        self.value = vmap(grad_and_value(lambda z, seen: residual(z, seen).square().sum()))

    def __call__(self, z: Tensor, targets: Seen) -> tuple[Tensor, Tensor]:
        gradient, value = self.value(z, targets.values)
        return value, gradient

    def curvature(self, z: Tensor, targets: Seen) -> Product:
        return gauss_newton(self.residual, rowwise=(True,))(z, targets.values)


def solve(
    residual: Residual, starts: Tensor, seen: Tensor, capacity: int = 64, **settings: object
) -> list[Outcome[int]]:
    """Return how each row ended, in the order of the starts."""
    rows = (
        Row(key, start, Seen(values.unsqueeze(0)))
        for key, (start, values) in enumerate(zip(starts, seen, strict=True))
    )
    optimizer = LevenbergMarquardt(**settings)
    objective = SumOfSquares(residual)
    ended = Scheduler(optimizer=optimizer, objective=objective, capacity=capacity).run(rows)
    return sorted(ended, key=lambda outcome: outcome.key)


# ---- its steps


MATRIX = torch.randn(9, 5, generator=seeded(3), dtype=torch.float64)


def straight(z: Tensor, seen: Tensor) -> Tensor:
    return MATRIX @ z - seen


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_solves_a_linear_problem(solver: str) -> None:
    truths = torch.randn(4, 5, generator=seeded(), dtype=torch.float64)
    ended = solve(
        straight,
        torch.zeros_like(truths),
        truths @ MATRIX.T,
        solver=solver,
        damping=1e-12,
        cg_tolerance=1e-12,
        objective_below=1e-18,
    )
    for outcome, truth in zip(ended, truths, strict=True):
        assert (outcome.status, outcome.steps, outcome.evaluations) == (Status.CONVERGED, 1, 2)
        torch.testing.assert_close(outcome.z, truth)


TIMES = torch.linspace(0, 1, 12, dtype=torch.float64)


def decay(z: Tensor, seen: Tensor) -> Tensor:
    """Two exponentials, whose sum fits badly: the least sum of squares is not 0."""
    return z[0] * (-z[1] * TIMES).exp() + z[2] * (-z[3] * TIMES).exp() - seen


def decays(count: int) -> tuple[Tensor, Tensor]:
    g = seeded(7)
    truths = torch.tensor([2.0, 1.0, 1.0, 6.0]) + torch.rand(count, 4, generator=g).double()
    clean = torch.stack([decay(z, torch.zeros_like(TIMES)) for z in truths])
    noise = 0.01 * torch.randn(clean.shape, generator=g, dtype=torch.float64)
    return truths * 1.5, clean + noise


@pytest.mark.parametrize("solver", SOLVERS)
def test_minima_are_scipys(solver: str) -> None:
    starts, seen = decays(5)
    ended = solve(
        decay,
        starts,
        seen,
        solver=solver,
        cg_tolerance=1e-9,
        tolerance_change=1e-14,
        max_steps=500,
    )
    for outcome, start, values in zip(ended, starts, seen, strict=True):
        found = least_squares(
            lambda z, v=values: decay(torch.from_numpy(z), v).numpy(),
            start.numpy(),
            method="lm",
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-14,
        )
        assert outcome.status is Status.STALLED  # at a minimum that is not 0
        assert outcome.objective == pytest.approx(2 * found.cost, rel=1e-9)
        np.testing.assert_allclose(outcome.z.numpy(), found.x, rtol=1e-4)


def test_conjugate_gradients_take_the_factorised_step() -> None:
    roots = torch.randn(3, 8, 6, generator=seeded(), dtype=torch.float64)
    hessians = roots.mT @ roots
    gradient = torch.randn(3, 6, generator=seeded(1), dtype=torch.float64)
    gradient[2] = 0
    damping = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    exact, taken = factorised(hessians, torch.arange(3), gradient, damping)
    assert torch.equal(taken, damping)
    wanted = [
        torch.linalg.solve(h + mu * torch.eye(6, dtype=h.dtype), -g)
        for h, mu, g in zip(hessians, damping, gradient, strict=True)
    ]
    torch.testing.assert_close(exact, torch.stack(wanted))
    found = conjugate_gradients(
        lambda v: (hessians @ v.unsqueeze(2)).squeeze(2),
        gradient,
        damping,
        tolerance=1e-12,
        max_steps=50,
    )
    torch.testing.assert_close(found, exact)
    assert not found[2].any()


def test_damping_is_raised_until_rounding_leaves_a_matrix_definite() -> None:
    hessian = torch.diag(torch.tensor([1.0, -1e-3], dtype=torch.float64)).unsqueeze(0)
    gradient = torch.ones(1, 2, dtype=torch.float64)
    damping = torch.tensor([1e-5], dtype=torch.float64)
    step, taken = factorised(hessian, torch.tensor([0]), gradient, damping)
    assert taken.item() == pytest.approx(1e-2)
    torch.testing.assert_close(step, -1 / (hessian[0].diagonal() + taken).unsqueeze(0))


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_do_not_depend_on_each_other(solver: str) -> None:
    starts, seen = decays(7)
    starts *= torch.linspace(1, 3, 7, dtype=torch.float64).unsqueeze(1)
    starts[3] = torch.nan  # a row that ends at once
    settings = {"solver": solver, "max_steps": 30, "cg_tolerance": 1e-6}
    alone = solve(decay, starts, seen, capacity=1, **settings)
    assert len({outcome.steps for outcome in alone}) > 2, [o.steps for o in alone]
    assert alone[3].status is Status.NON_FINITE
    for capacity in (2, 64):
        for a, b in zip(alone, solve(decay, starts, seen, capacity, **settings), strict=True):
            assert (a.status, a.steps) == (b.status, b.steps)
            torch.testing.assert_close(a.z, b.z, rtol=1e-6, atol=1e-9, equal_nan=True)


# ---- its ends


def test_a_row_ends_out_of_steps_or_where_nothing_moves() -> None:
    starts, seen = decays(1)
    (outcome,) = solve(decay, starts, seen, max_steps=2)
    assert (outcome.status, outcome.steps, outcome.evaluations) == (Status.OUT_OF_STEPS, 2, 3)
    (outcome,) = solve(lambda z, s: z.detach() - s, starts[:, :4], 0 * seen[:, :4])
    assert outcome.status is Status.CONVERGED  # no slope at all


def test_refused_steps_raise_the_damping_and_leave_the_iterate() -> None:
    """atan(z) from afar: undamped Gauss-Newton would leap ever further to the other side."""
    start = torch.tensor([[3.0]], dtype=torch.float64)
    (outcome,) = solve(
        lambda z, seen: z.atan() - seen,
        start,
        torch.zeros(1, 1, dtype=torch.float64),
        damping=1e-9,
        objective_below=1e-20,
    )
    assert outcome.status is Status.CONVERGED
    assert abs(outcome.z.item()) < 1e-10
    assert outcome.steps > 5


class Torn(SumOfSquares):
    """An objective whose curvature is not a number where a row's first value is negative."""

    def curvature(self, z: Tensor, targets: Seen) -> Product:
        whole = super().curvature(z, targets)
        torn = torch.where(targets.values[:, :1] < 0, torch.nan, 1.0).unsqueeze(2)
        return lambda vectors: whole(vectors) * torn


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_row_whose_linear_algebra_fails_ends_alone(monkeypatch, solver: str) -> None:
    seen = torch.randn(3, 9, generator=seeded(4), dtype=torch.float64).abs()
    starts = torch.zeros(3, 5, dtype=torch.float64)
    alone = solve(straight, starts, seen, solver=solver)
    monkeypatch.setattr(f"{__name__}.SumOfSquares", Torn)
    torn = solve(straight, starts, seen * torch.tensor([[1.0], [-1.0], [1.0]]), solver=solver)
    assert torn[1].status is Status.NON_FINITE
    for row in (0, 2):
        torch.testing.assert_close(torn[row].z, alone[row].z)
        assert torn[row].status is alone[row].status


def test_trial_points_that_overflow_are_refused() -> None:
    (outcome,) = solve(
        lambda z, seen: z.exp() - seen,
        torch.tensor([[-20.0]], dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.float64),
        damping=1e-9,
        objective_below=1e-20,
    )
    assert outcome.status is Status.CONVERGED
    assert abs(outcome.z.item()) < 1e-10


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_steps": 0}, "max_steps=0: must be at least 1"),
        ({"damping": 0.0}, "damping=0.0: must be positive"),
        ({"solver": "lu"}, "solver=lu: choose auto, dense or cg"),
        ({"cg_steps": 0}, "cg_steps=0: must be at least 1"),
        ({"cg_tolerance": 1.0}, "cg_tolerance=1.0: must be positive and below 1"),
        ({"tolerance_change": -1.0}, "tolerance_change=-1.0: must be at least 0"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"attack.optimizer.{words}"):
        LevenbergMarquardt(**settings)


@pytest.mark.parametrize(
    ("solver", "unknowns", "device", "memory", "settled"),
    [
        ("auto", 2048, "cpu", 10**9, "dense"),
        ("auto", 2048, "cpu", 10**7, "cg"),
        ("auto", 3072, "cpu", 10**9, "cg"),
        ("auto", 3072, "cuda", 10**9, "dense"),
        ("auto", 150_528, "cuda", 10**12, "cg"),
        ("cg", 10, "cpu", 10**9, "cg"),
        ("dense", 10**6, "cpu", 0, "dense"),
    ],
)
def test_the_solver_follows_from_unknowns_memory_and_device(
    solver: Literal["auto", "dense", "cg"], unknowns: int, device: str, memory: int, settled: str
) -> None:
    optimizer = LevenbergMarquardt(solver=solver, max_steps=7)
    fitted = optimizer.fitted(unknowns, torch.device(device), memory=memory)
    assert (fitted.solver, fitted.max_steps, optimizer.solver) == (settled, 7, solver)


def test_a_hessian_is_kept_only_where_it_is_formed() -> None:
    auto = LevenbergMarquardt()
    assert auto.init(torch.zeros(2, 7)).hessian.shape == (2, 7, 7)
    assert LevenbergMarquardt(solver="cg").init(torch.zeros(2, 7)).hessian.shape == (2, 0, 0)


def test_an_objective_without_curvature_is_refused() -> None:
    class Plain:
        def __call__(self, z: Tensor, targets: Seen) -> tuple[Tensor, Tensor]:
            raise NotImplementedError

    Scheduler(optimizer=LBFGS(), objective=Plain(), capacity=1)
    with pytest.raises(ValueError, match="LevenbergMarquardt needs an objective"):
        Scheduler(optimizer=LevenbergMarquardt(), objective=Plain(), capacity=1)


# ---- the curvature of gradient matching


DISTANCES = [SquaredError(), Cosine(), NormalisedError(), Cosine(top=3), NormalisedError(top=3)]


def gradients(seed: int) -> list[Tensor]:
    g = seeded(seed)
    shapes = [(3, 4), (4,), (2, 2, 2), (1,), (5,)]
    return [
        torch.randn(s, generator=g, dtype=torch.float64) * 10.0**-i for i, s in enumerate(shapes)
    ]


@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
def test_residuals_square_to_the_distance(distance: LeastSquares) -> None:
    dummy, observed = gradients(0), gradients(1)
    residual = distance.residual(dummy, observed)
    assert residual.shape == (sum(t.numel() for t in observed),)
    torch.testing.assert_close(residual.square().sum(), distance(dummy, observed))
    assert not distance.residual(observed, observed).any()


def test_small_angles_keep_their_digits_in_float32() -> None:
    observed, noise = gradients(0), gradients(1)
    dummy = [b + 1e-4 * n for b, n in zip(observed, noise, strict=True)]
    exact = float(Cosine()(dummy, observed))
    assert 1e-10 < exact < 1e-7  # below what 1 - cosine can tell from 0 in float32
    single = Cosine()([t.float() for t in dummy], [t.float() for t in observed])
    assert float(single) == pytest.approx(exact, rel=1e-2)


def problem(network: str, chunk: int, *, own: bool) -> tuple[MatchingObjective, Tensor, Targets]:
    """Return an objective, points of three rows and their targets, with a network each if `own`."""
    spec = spec_of(1, 8, 8)
    payload = payload_of(network, spec)
    unknowns = Unknowns(spec, 1, 3, joint_labels=True)
    objective = MatchingObjective(
        payload=payload,
        unknowns=unknowns,
        distance=NormalisedError(),
        dtype=torch.float64,
        chunk=chunk,
    )
    parameters = flatten(payload.parameters).double()
    z = torch.rand(3, 64 + 3, generator=seeded(1), dtype=torch.float64)
    targets = Targets(
        gradient=torch.randn(3, len(parameters), generator=seeded(2), dtype=torch.float64),
        labels=torch.zeros(3, 1, 3, dtype=torch.float64),
        parameters=parameters * torch.tensor([[1.0], [0.9], [0.8]]) if own else z[:, :0],
        buffers=z[:, :0],
        order=z[:, :0].long(),
    )
    return objective, z, targets


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("chunk", [2, 100])
def test_products_are_those_of_the_jacobian_by_differences(chunk: int, own: bool) -> None:
    objective, z, targets = problem("dlg_cnn", chunk, own=own)
    vectors = torch.randn(3, 5, 67, generator=seeded(4), dtype=torch.float64)
    found = objective.curvature(z, targets)(vectors)
    for row in range(3):
        network = targets.parameters[row] if own else objective._shared
        rest = (
            targets.gradient[row],
            targets.labels[row],
            network,
            targets.buffers[row],
            targets.order[row],
        )
        residuals = vmap(lambda point, rest=rest: objective._residual(point, *rest))
        shifts = 1e-4 * torch.eye(67, dtype=torch.float64)
        jacobian = (residuals(z[row] + shifts) - residuals(z[row] - shifts)).T / 2e-4
        wanted = 2 * vectors[row] @ jacobian.T @ jacobian
        torch.testing.assert_close(found[row], wanted, rtol=0, atol=1e-6 * wanted.abs().max())


def test_products_go_on_with_fewer_at_once_where_memory_runs_out(monkeypatch) -> None:
    objective, z, targets = problem("dlg_cnn", 8, own=False)
    vectors = torch.randn(3, 4, 67, generator=seeded(4), dtype=torch.float64)
    wanted = objective.curvature(z, targets)(vectors)
    evaluator, refused = objective._evaluator(targets), iter([True, True, False])
    products = evaluator._products

    def scarce(*arguments: Any) -> Tensor:
        if next(refused):
            raise RuntimeError(FAULT)
        return products(*arguments)

    monkeypatch.setattr(evaluator, "_products", scarce)
    torch.testing.assert_close(objective.curvature(z, targets)(vectors), wanted)
    assert evaluator.chunk == 2
