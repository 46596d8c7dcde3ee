"""The per-layer normalised distance, and the written-out derivatives of all distances."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded
from torch import Tensor
from torch.func import grad_and_value, vmap

from medpfl.attacks.distances import Cosine, Differentiated, NormalisedError, SquaredError


def layers(*values: list[float]) -> list[Tensor]:
    return [torch.tensor(v, dtype=torch.float64) for v in values]


def test_normalised_error_is_the_mean_of_relative_errors() -> None:
    observed = layers([3.0, 4.0], [0.001])
    dummy = layers([3.0, 9.0], [0.003])
    assert NormalisedError()(dummy, observed).item() == pytest.approx((25 / 25 + 4) / 2)
    assert NormalisedError(top=1)(dummy, observed).item() == pytest.approx(1.0)


def test_normalised_error_has_no_scale_and_leaves_silent_layers_out() -> None:
    observed, dummy = layers([3.0, 4.0], [0.5]), layers([1.0, -1.0], [0.2])
    value = NormalisedError()(dummy, observed).item()
    silent = NormalisedError()([*dummy, torch.ones(3)], [*observed, torch.zeros(3)])
    assert silent.item() == pytest.approx(value)
    scaled = [[1e-4 * t for t in side] for side in (dummy, observed)]
    assert NormalisedError()(*scaled).item() == pytest.approx(value)
    assert NormalisedError()(dummy, [torch.zeros_like(t) for t in dummy]).item() == 0


def test_normalised_error_has_a_finite_slope_beside_silent_layers() -> None:
    dummy = torch.ones(2, requires_grad=True)
    value = NormalisedError()([dummy, 2 * dummy], [torch.zeros(2), torch.ones(2)])
    (slope,) = torch.autograd.grad(value, dummy)
    assert torch.equal(slope, torch.tensor([2.0, 2.0]))


@pytest.mark.parametrize("kind", [SquaredError, Cosine, NormalisedError])
@pytest.mark.parametrize("top", [None, 1, 2])
@pytest.mark.parametrize("nearness", [1.0, 1e-6])
def test_derivatives_written_out_are_autograds(
    kind: type[Cosine], top: int | None, nearness: float
) -> None:
    """Near the observed gradient, too, where both all but vanish."""
    distance = kind(top=top)
    assert isinstance(distance, Differentiated)
    g = seeded(1)
    observed = [torch.randn(4, *s, generator=g, dtype=torch.float64) for s in [(3, 2), (5,), (1,)]]
    noise = [torch.randn(t.shape, generator=g, dtype=torch.float64) for t in observed]
    dummy = [t + nearness * n for t, n in zip(observed, noise, strict=True)]
    before = [t.clone() for t in dummy]
    slope, value = vmap(distance.slope)(dummy, observed)
    wanted, expected = vmap(grad_and_value(distance))(dummy, observed)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    largest = max(float(w.abs().max()) for w in wanted)
    assert largest > 0
    for found, right in zip(slope, wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-7, atol=1e-9 * largest)
    assert all(torch.equal(a, b) for a, b in zip(dummy, before, strict=True))
