"""What a known law of noise says of a dummy, against densities, autograd and draws."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded
from torch import Tensor
from torch.distributions import Laplace, Normal
from torch.func import grad_and_value, vmap

from medpfl.attacks.distances import Differentiated, LeastSquares
from medpfl.attacks.likelihood import Law, NoiseLikelihood, Relative, ThroughClip
from medpfl.defenses import Clipping, Gaussian, Perturbation
from medpfl.defenses import Laplace as LaplaceNoise
from medpfl.types import ClientUpdate

LAWS: tuple[Law, ...] = ("gaussian", "laplace")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def sides(rows: int = 4) -> tuple[list[Tensor], list[Tensor]]:
    shapes = [(3, 2), (5,), (1,)]
    dummy = [normal(rows, *s, seed=i) for i, s in enumerate(shapes)]
    return dummy, [normal(rows, *s, seed=9 + i) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("law", LAWS)
def test_it_is_minus_the_logarithm_of_the_density(law: Law) -> None:
    dummy, observed = sides()
    kind = Normal if law == "gaussian" else Laplace
    density = kind(torch.zeros((), dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64))
    value = NoiseLikelihood(law=law, scale=0.3)(dummy, observed)
    pairs = list(zip(dummy, observed, strict=True))
    terms = [density.log_prob(torch.zeros(())) - density.log_prob(a - b) for a, b in pairs]
    exact, entries = sum(float(t.sum()) for t in terms), sum(t.numel() for t in dummy)
    # The corner takes at most its width of an entry.
    assert exact - 0.1 * entries * (law == "laplace") <= float(value) + 1e-9
    assert float(value) <= exact + 1e-9


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("relative_to", [None, "norm", "percentile"])
def test_slope_and_residual_are_those_of_the_value(law: Law, relative_to: Relative | None) -> None:
    distance = NoiseLikelihood(law=law, scale=0.2, relative_to=relative_to, percentile=80)
    assert isinstance(distance, Differentiated)
    assert isinstance(distance, LeastSquares)
    dummy, observed = sides()
    slope, value = vmap(distance.slope)(dummy, observed)
    wanted, expected = vmap(grad_and_value(distance))(dummy, observed)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for own, other in zip(slope, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)
    squares = vmap(distance.residual)(dummy, observed).square().sum(1)
    torch.testing.assert_close(squares, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("scale", [0.02, 0.5, 2.0])
def test_a_scale_relative_to_the_norm_is_estimated_from_what_was_sent(
    law: Law, scale: float
) -> None:
    """From many entries to a hundredth, however much of what was sent is noise."""
    update = {"w": normal(200_000, seed=1) * 7}
    noise = Gaussian(std=scale) if law == "gaussian" else LaplaceNoise(scale=scale)
    defense = Perturbation(noise=noise, relative_to="norm")
    sent, report = defense.on_update(ClientUpdate("gradient", update, 1), seeded(3))
    likelihood = NoiseLikelihood(law=law, scale=scale, relative_to="norm")
    found = float(likelihood.unit(list(sent.tensors.values())))
    assert found == pytest.approx(report.noise_scale, rel=0.01)


@pytest.mark.parametrize("per", ["update", "layer"])
@pytest.mark.parametrize("max_norm", [0.5, 3.0, 100.0])
def test_a_dummy_is_clipped_as_the_client_clips(per: str, max_norm: float) -> None:
    dummy, observed = ([t[0] for t in side] for side in sides(1))
    clipping = Clipping(max_norm=max_norm, per=per)
    names = dict(zip("abc", dummy, strict=True))
    sent, _ = clipping.on_update(ClientUpdate("gradient", names, 1), seeded())
    inner = NoiseLikelihood(law="gaussian", scale=0.1)
    through = ThroughClip(inner=inner, max_norm=max_norm, per=per)
    expected = inner(list(sent.tensors.values()), observed)
    torch.testing.assert_close(through(dummy, observed), expected)
    torch.testing.assert_close(through.residual(dummy, observed).square().sum(), expected)


def test_clipping_nothing_has_a_finite_slope() -> None:
    inner = NoiseLikelihood(law="laplace", scale=1.0)
    through = ThroughClip(inner=inner, max_norm=1.0, per="layer")
    zero = torch.zeros(3, requires_grad=True)
    (slope,) = torch.autograd.grad(through([zero], [torch.ones(3)]), zero)
    assert slope.isfinite().all()
