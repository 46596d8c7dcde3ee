"""How much of an image an update determines, and what is said of rows that leave it open."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import context, observe, seeded, sent, spec_of, victim_of
from torch import nn

from medpfl.attacks import GradientMatching
from medpfl.attacks.closed_form import ClosedForm
from medpfl.attacks.determination import determined_share, hessian_at, in_pixels, rounding
from medpfl.attacks.distances import Cosine, SquaredError
from medpfl.attacks.labels import SmallestRow
from medpfl.attacks.matching import MatchingObjective, Targets, flatten
from medpfl.attacks.starts import Normal, PatchTiled
from medpfl.attacks.unknowns import Unknowns
from medpfl.optim import LBFGS, LevenbergMarquardt
from medpfl.optim.shared_rows import SharedRows
from medpfl.outcomes import Status
from medpfl.types import DataSpec

SPEC = spec_of(1, 4, 4)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Sigmoid(), nn.Linear(6, 3))


def pooled() -> nn.Module:
    """Sees four means of four pixels each: twelve patterns leave no trace."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)
    )


def attack(start=None, **settings) -> GradientMatching:
    search = LBFGS(
        max_steps=300,
        max_iter=1,
        max_eval=25,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search="strong_wolfe",
        objective_below=1e-10,
        on_stall="reset",
        scale_free=True,
    )
    return GradientMatching(
        name="test",
        start=start or PatchTiled(),
        labels=SmallestRow(),
        distance=Cosine(),
        optimizer=settings.pop("optimizer", search),
        precision="float64",
        **settings,
    )


def ended(model: nn.Module, one: GradientMatching):
    seen = observe(sent(model), SPEC, victim_of(SPEC, [1]), knows=("num_examples",))
    (found,) = one.reconstruct([seen], context())
    return found


@pytest.mark.parametrize(("left", "share"), [(0.0, 0.75), (1e-7, 0.5), (1.0, 0.25), (1e6, 0.0)])
def test_patterns_whose_curvature_is_below_what_is_left_are_open(left: float, share: float) -> None:
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=seeded(), dtype=torch.float64))
    curved = torch.tensor([0.0, 1e-9, 1e-3, 1e3], dtype=torch.float64)
    hessian = turn @ curved.diag() @ turn.T
    assert determined_share(hessian, left) == share


def test_the_hessian_is_that_of_the_objective() -> None:
    model, spec = network(), SPEC
    seen = observe(sent(model), spec, victim_of(spec, [1]))
    unknowns = Unknowns(spec, 1, 3, joint_labels=False)
    distance = SquaredError()
    objective = MatchingObjective(
        payload=seen.payload, unknowns=unknowns, distance=distance, dtype=torch.float64, chunk=1
    )
    target = Targets(
        gradient=SharedRows(flatten(seen.tensors).double()),
        labels=nn.functional.one_hot(torch.tensor([[1]]), 3).double(),
        parameters=torch.zeros(1, 0, dtype=torch.float64),
        buffers=torch.zeros(1, 0, dtype=torch.float64),
        order=torch.zeros(1, 0, dtype=torch.int64),
    )
    double = model.double()

    def residual(z: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(double(z.reshape(1, 1, 4, 4)), torch.tensor([1]))
        parts = torch.autograd.grad(loss, list(double.parameters()), create_graph=True)
        return torch.cat([p.flatten() for p in parts])

    z = torch.rand(16, generator=seeded(), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(residual, z)
    expected = 2 * jacobian.T @ jacobian
    torch.testing.assert_close(hessian_at(objective, z, target), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("boxed", [False, True])
def test_slopes_are_derivatives_by_pixels(tied: bool, boxed: bool) -> None:
    spec = DataSpec((3, 2, 2), 3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    unknowns = Unknowns(spec, 1, 3, joint_labels=True, tied=tied, boxed=boxed)
    grey = torch.rand((1, 1, 2, 2), generator=seeded(), dtype=torch.float64) * 0.8 + 0.1
    pixels = grey.expand(1, 3, 2, 2)
    scores = torch.zeros(1, 3, dtype=torch.float64)

    def packed(pixels: torch.Tensor) -> torch.Tensor:
        return unknowns.pack(spec.normalise(pixels), scores)

    step = 1e-6
    slope = unknowns.slope(packed(pixels))
    expected = (packed(pixels + step) - packed(pixels - step))[: len(slope)] / (2 * step)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-8)
    hessian = torch.eye(unknowns.count, dtype=torch.float64)
    by_pixels = in_pixels(hessian, unknowns, packed(pixels))
    torch.testing.assert_close(by_pixels, slope.square().diag())


def test_rounding_is_that_of_float32_at_any_scale() -> None:
    seen = observe(sent(network()), SPEC, victim_of(SPEC, [1]))
    own = rounding(Cosine(), seen)
    assert 2.0**-51 < own < 2.0**-46
    tiny = {n: t.double() * 1e-60 for n, t in seen.tensors.items()}
    scaled = observe(sent(network()), SPEC, victim_of(SPEC, [1]), tensors=tiny)
    assert rounding(Cosine(), scaled) == pytest.approx(own, rel=1e-6)


def test_a_row_whose_update_leaves_the_image_open_is_not_converged() -> None:
    found = ended(pooled(), attack())
    assert found.objective < 1e-10
    assert found.status is Status.UNDETERMINED
    assert found.unknowns == 16
    assert found.determined == pytest.approx(4 / 16)
    assert not found.closed_form


def test_a_row_whose_update_determines_the_image_is_converged() -> None:
    found = ended(network(), attack())
    assert (found.status, found.determined) == (Status.CONVERGED, 1.0)


def test_nothing_is_asked_where_that_is_switched_off_or_no_sum_of_squares() -> None:
    for settings in ({"determination": False}, {"group_consistency": 0.0, "restarts": 2}):
        found = ended(pooled(), attack(**settings))
        assert found.status is Status.CONVERGED
        assert math.isnan(found.determined)


def test_an_open_closed_form_is_undetermined_too() -> None:
    found = ended(pooled(), attack(start=ClosedForm(fallback=Normal())))
    assert found.closed_form
    assert found.status is Status.UNDETERMINED


@pytest.mark.parametrize("optimizer", [None, LevenbergMarquardt(max_steps=5)])
def test_a_network_of_zeros_ends_without_a_fault(optimizer) -> None:
    model = network()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    settings = {} if optimizer is None else {"optimizer": optimizer}
    found = ended(model, attack(start=ClosedForm(fallback=Normal()), **settings))
    assert not found.closed_form
    assert found.status is not Status.CONVERGED


def test_restarts_begin_where_the_closed_form_did_not() -> None:
    once = ended(network(), attack(start=ClosedForm(fallback=Normal())))
    again = ended(network(), attack(start=ClosedForm(fallback=Normal()), restarts=3))
    assert once.closed_form
    assert again.objective <= once.objective
    assert again.evaluations > once.evaluations + 2
