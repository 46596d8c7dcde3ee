"""The per-layer normalised distance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medpfl.attacks.distances import NormalisedError


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
