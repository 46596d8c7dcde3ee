"""Networks beyond the papers': the layers below the first fully connected one, matched."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from helpers import observe, payload_of, seeded, sent, spec_of, victim_of
from torch import nn
from torch.nn import functional

from medpfl.attacks.closed_form import ClosedForm, trunk
from medpfl.attacks.closed_form.trunk import Trunk, TrunkEquations
from medpfl.attacks.starts import Normal
from medpfl.metrics import ssim
from medpfl.types import DataSpec, Observation, ServerPayload, Truth

GREY = spec_of(1, 16, 16)


def smooth(spec: DataSpec, seed: int = 0) -> Truth:
    coarse = torch.rand((1, spec.shape[0], 6, 6), generator=seeded(seed))
    image = functional.interpolate(coarse, size=spec.shape[1:], mode="bicubic").clamp(0, 1)
    return replace(victim_of(spec, [1]), inputs=image)


def seen(payload: ServerPayload, spec: DataSpec = GREY) -> tuple[Observation, Truth]:
    victim = smooth(spec)
    return observe(payload, spec, victim, knows=("num_examples",)), victim


def solved(network: nn.Module, spec: DataSpec = GREY) -> float:
    """Return the SSIM of the closed-form image; 0 where there is none."""
    observation, victim = seen(sent(network), spec)
    solution = ClosedForm(fallback=Normal()).solve(observation)
    if solution is None:
        return 0.0
    image = spec.denormalise(solution.image).float().clamp(0, 1)
    return ssim(victim.inputs[0], image)


def small(*, width: int = 8, spec: DataSpec = GREY) -> nn.Sequential:
    """A network of someone's own: strides, a tanh, batch normalisation, two linear layers."""
    torch.manual_seed(0)
    layers = [
        ("first", nn.Conv2d(spec.shape[0], width, 3, stride=2, padding=1)),
        ("norm", nn.BatchNorm2d(width)),
        ("bend", nn.Tanh()),
        ("flat", nn.Flatten()),
        ("head", nn.Linear(64 * width, 20)),
        ("sigmoid", nn.Sigmoid()),
        ("last", nn.Linear(20, 3)),
    ]
    return nn.Sequential(OrderedDict(layers))


def test_large_trunks_are_matched_without_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "_MOST_DENSE", 100)
    monkeypatch.setattr(trunk, "gauss_newton", None)  # what forms the matrix
    observation, victim = seen(payload_of("lenet", GREY))
    solution = ClosedForm(fallback=Normal()).solve(observation)
    assert solution is not None
    assert math.isnan(solution.determined)
    assert ssim(victim.inputs[0], solution.image.float().clamp(0, 1)) > 0.9


def test_lenet_gives_a_grey_image_away() -> None:
    payload = payload_of("lenet", GREY)
    observation, victim = seen(payload)
    solution = ClosedForm(fallback=Normal()).solve(observation)
    assert solution is not None
    assert solution.determined > 0.9
    assert ssim(victim.inputs[0], solution.image.float().clamp(0, 1)) > 0.99


def test_a_network_of_ones_own_gives_its_image_away() -> None:
    assert solved(small()) > 0.99


def test_normalised_colour_images() -> None:
    spec = DataSpec((3, 12, 12), 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    network = small(spec=spec)
    network.head = nn.Linear(36 * 8, 20)
    assert solved(network, spec) > 0.99


def test_channels_known_to_be_equal_are_one_unknown() -> None:
    spec = DataSpec((3, 16, 16), 3, mean=(0.2, 0.3, 0.4), std=(0.5,) * 3, greyscale=True)
    observation, _ = seen(payload_of("lenet", spec), spec)
    trunk = Trunk.of(observation.payload, spec.shape)
    assert trunk is not None
    equations = TrunkEquations.of(observation, trunk)
    assert equations is not None
    assert equations.unknowns.count == 256


def test_the_equations_hold_at_the_image_and_nowhere_near() -> None:
    observation, victim = seen(payload_of("lenet", GREY))
    trunk = Trunk.of(observation.payload, GREY.shape)
    assert trunk is not None
    assert trunk.below == ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")
    assert trunk.head == "fc1"
    equations = TrunkEquations.of(observation, trunk)
    assert equations is not None
    truth = victim.inputs.double().flatten()
    assert float(equations.residual(truth).norm()) < 1e-5  # a float32 client's rounding
    assert float(equations.residual(truth + 0.1).norm()) > 1e-2


def without_head() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 16), nn.Flatten())


def twice() -> nn.Module:
    layer = nn.Linear(256, 256)
    return nn.Sequential(nn.Flatten(), layer, nn.Sigmoid(), layer, nn.Linear(256, 3))


def unbiased() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 9, bias=False), nn.Linear(9, 3))


def row_by_row() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 4), nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize("network", [without_head, twice, unbiased, row_by_row])
def test_networks_without_a_trunk(network) -> None:
    assert Trunk.of(sent(network()), GREY.shape) is None


def test_no_trunk_where_the_clients_batch_enters() -> None:
    assert Trunk.of(sent(small(), batch_norm="train_private"), GREY.shape) is None
    assert Trunk.of(sent(small()), GREY.shape) is not None


def test_a_trunk_that_would_take_longer_than_a_search_is_left_alone() -> None:
    trunk = Trunk.of(payload_of("resnet18", spec_of(3, 32, 32)), (3, 32, 32))
    assert trunk is not None
    assert not trunk.suits(3072)


class Single(nn.Module):
    """Computes with a float32 constant, and returns tuples inside: no closed form, no fault."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(16, 8, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        states, _ = self.memory(inputs.squeeze(1))
        return self.last(states[:, -1].float() @ torch.eye(8))


def test_a_network_that_does_not_run_in_float64_is_searched() -> None:
    torch.manual_seed(0)
    assert solved(Single()) == 0.0


def test_too_few_equations_leave_the_image_undetermined() -> None:
    network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 9), nn.Linear(9, 3))
    observation, _ = seen(sent(network))
    solution = ClosedForm(fallback=Normal()).solve(observation)
    assert solution is not None
    assert solution.determined == pytest.approx(4 / 256)
