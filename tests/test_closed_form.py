"""Closed forms: each piece against the truth that it inverts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from medpfl.attacks.closed_form import ClosedForm
from medpfl.attacks.closed_form.feature_matching import match_features
from medpfl.attacks.closed_form.features import layer_input
from medpfl.attacks.closed_form.layerwise import ConvolutionInverse
from medpfl.attacks.starts import Normal, PatchTiled
from medpfl.federated import Client, Federation, NoPretraining
from medpfl.metrics import ssim
from medpfl.models import CPLCNN, DLGCNN, IDLGCNN, LeNet
from medpfl.models.init import DefaultInit, UniformInit
from medpfl.threat import ThreatModel
from medpfl.types import DataSpec, Observation, Truth

# Small: the tests are about exactness; the full size is measured in the benchmark.
SPEC = DataSpec(shape=(3, 16, 16), num_classes=4, mean=(0.0,) * 3, std=(1.0,) * 3)
CPU = torch.device("cpu")


class NoImages:
    labels = torch.zeros(0, dtype=torch.int64)

    def load(self, index: int) -> torch.Tensor:
        raise ValueError("no pretraining, no images")


def smooth_images(count: int, spec: DataSpec = SPEC) -> torch.Tensor:
    """Random smooth pictures (N, C, *S) in [0, 1]."""
    stream = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, spec.shape[0], 6, 6, generator=stream)
    return functional.interpolate(coarse, size=spec.shape[1:], mode="bicubic").clamp(0, 1)


def observation(factory: object, images: torch.Tensor, spec: DataSpec = SPEC) -> Observation:
    federation = Federation(pretrain=NoPretraining(), batch_size=len(images))
    payload = federation.payloads(factory, spec, NoImages(), CPU)("victim")  # type: ignore[arg-type]
    victim = Truth(images, torch.arange(len(images)) + 1, tuple(map(str, range(len(images)))))
    client = Client(spec=spec, device=CPU)
    update, _ = client.update(victim, payload)
    return ThreatModel(knows=["num_examples"]).observe(
        capture_id="victim",
        payload=payload,
        update=update,
        spec=spec,
    )


@dataclass(frozen=True, kw_only=True)
class Unbiased(LeNet):
    """LeNet-5 without the bias from which the features would be read."""

    def construct(self, spec: DataSpec) -> nn.Module:
        model = super().construct(spec)
        model.fc1 = nn.Linear(model.fc1.in_features, 120, bias=False)  # type: ignore[union-attr]
        return model


def start(seen: Observation, images: torch.Tensor) -> torch.Tensor:
    attack = ClosedForm(fallback=Normal())
    return attack(seen, tuple(images.shape), torch.Generator().manual_seed(0))


def fallback(images: torch.Tensor) -> torch.Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_the_input_of_a_linear_layer_is_exact_at_any_scale(scale: float) -> None:
    stream = torch.Generator().manual_seed(0)
    features = torch.rand(50, generator=stream, dtype=torch.float64)
    delta = torch.randn(4, generator=stream, dtype=torch.float64) * scale
    found = layer_input(torch.outer(delta, features), delta)
    assert found is not None
    torch.testing.assert_close(found, features, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_a_gradient_without_information_gives_no_features(value: float) -> None:
    assert layer_input(torch.full((3, 5), value), torch.full((3,), value)) is None


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "shape"),
    [(5, 2, 2, (3, 12, 10)), (5, 1, 2, (4, 7, 9)), (2, 1, 2, (3, 6, 6)), (3, 2, 1, (2, 9, 11))],
)
def test_a_convolution_is_inverted(
    kernel: int, stride: int, padding: int, shape: tuple[int, int, int]
) -> None:
    stream = torch.Generator().manual_seed(kernel)
    draw = {"generator": stream, "dtype": torch.float64}
    layer = nn.Conv2d(shape[0], 8, kernel, stride, padding).double()
    weight = torch.rand(layer.weight.shape, **draw) - 0.5  # type: ignore[call-overload]
    bias = torch.rand(8, **draw) - 0.5  # type: ignore[call-overload]
    truth = torch.rand(shape, **draw)  # type: ignore[call-overload]
    output = functional.conv2d(truth.unsqueeze(0), weight, bias, stride, padding).sigmoid()
    above = torch.randn(output.shape, **draw)  # type: ignore[call-overload]

    inputs, parameters = truth.unsqueeze(0).requires_grad_(), weight.clone().requires_grad_()
    result = functional.conv2d(inputs, parameters, bias, stride, padding).sigmoid()
    below, sent = torch.autograd.grad((result * above).sum(), [inputs, parameters])

    inverse = ConvolutionInverse.prepare(layer, weight, bias, shape)
    found, residual = inverse.solve(output[0], above[0], sent)
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)
    assert residual < 1e-7
    torch.testing.assert_close(inverse.gradient_below(output[0], above[0]), below[0])


def test_features_are_matched_where_they_outnumber_the_pixels() -> None:
    stream = torch.Generator().manual_seed(2)
    matrix = torch.randn(60, 27, generator=stream, dtype=torch.float64)
    truth = torch.rand(3, 3, 3, generator=stream, dtype=torch.float64)
    features = (matrix @ truth.flatten()).tanh()
    found, residual = match_features(
        lambda x: (x.flatten(1) @ matrix.T).tanh(), features, (3, 3, 3)
    )
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-4)
    assert residual < 1e-5


@pytest.mark.parametrize("factory", [DLGCNN, IDLGCNN, CPLCNN])
def test_one_image_behind_an_update_is_found_without_a_search(factory: type) -> None:
    images = smooth_images(1)
    seen = observation(factory(init=UniformInit(bound=0.5)), images)
    found = start(seen, images)
    assert ssim(images[0], found[0].float().clamp(0, 1)) > 0.99


def test_the_scale_of_the_gradient_does_not_matter() -> None:
    images = smooth_images(1)
    seen = observation(IDLGCNN(init=UniformInit(bound=0.5)), images)
    tiny = replace(seen, tensors={n: t.double() * 1e-100 for n, t in seen.tensors.items()})
    torch.testing.assert_close(start(tiny, images), start(seen, images), rtol=1e-3, atol=1e-3)


def test_normalised_inputs_and_one_channel() -> None:
    spec = DataSpec(shape=(1, 18, 15), num_classes=4, mean=(0.3,), std=(0.2,))
    images = smooth_images(1, spec)
    seen = observation(IDLGCNN(init=UniformInit(bound=0.5)), images, spec)
    found = spec.denormalise(start(seen, images).float()).clamp(0, 1)
    assert ssim(images[0], found[0]) > 0.99


@pytest.mark.parametrize("factory", [IDLGCNN, CPLCNN])
@pytest.mark.parametrize("mean", [(0.3, 0.3, 0.3), (0.2, 0.3, 0.4)], ids=["equal", "unequal"])
def test_channels_known_to_be_equal_are_one_unknown(factory: type, mean: tuple[float, ...]) -> None:
    grey = smooth_images(1)[:, :1].expand(-1, 3, -1, -1)
    spec = DataSpec(shape=(3, 16, 16), num_classes=4, mean=mean, std=(0.5,) * 3, greyscale=True)
    seen = observation(factory(init=UniformInit(bound=0.5)), grey, spec)
    found = spec.denormalise(start(seen, grey).float())
    torch.testing.assert_close(found, grey, rtol=0, atol=0.02)
    if mean[0] == mean[1]:
        assert torch.equal(found[:, 0], found[:, 2])


def test_several_images_have_a_start_of_their_own() -> None:
    images = smooth_images(2)
    seen = observation(IDLGCNN(init=UniformInit(bound=0.5)), images)
    attack = ClosedForm(fallback=PatchTiled(), several=Normal())
    found = attack(seen, tuple(images.shape), torch.Generator().manual_seed(0))
    assert torch.equal(found, fallback(images))


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param("two images", id="several images"),
        pytest.param("no bias", id="a network whose first linear layer has no bias"),
        pytest.param("noise", id="noise on the update"),
        pytest.param("zero", id="no gradient"),
    ],
)
def test_where_no_closed_form_holds_the_fallback_starts(seen: str) -> None:
    images = smooth_images(2 if seen == "two images" else 1)
    uniform = UniformInit(bound=0.5)
    factory = Unbiased(init=DefaultInit()) if seen == "no bias" else IDLGCNN(init=uniform)
    sent = observation(factory, images)
    if seen == "noise":
        stream = torch.Generator().manual_seed(1)
        noisy = {n: t + torch.randn(t.shape, generator=stream) for n, t in sent.tensors.items()}
        sent = replace(sent, tensors=noisy)
    if seen == "zero":
        sent = replace(sent, tensors={n: torch.zeros_like(t) for n, t in sent.tensors.items()})
    assert torch.equal(start(sent, images), fallback(images))
