"""Bounds from the Jacobian of an update: formulas, limits, and attackers that never beat them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from bound_maps import Smooth, client_sends, drawn, linear_map, no_network, normalised
from helpers import (
    context,
    observe,
    payload_of,
    sample_images,
    seeded,
    sent,
    spec_of,
    victim_of,
)
from torch import Tensor
from torch.func import jacrev, vmap

from medpfl.attacks import GradientMatching
from medpfl.attacks.distances import SquaredError
from medpfl.attacks.labels import Known
from medpfl.attacks.starts import Normal
from medpfl.bounds.expectation import expected
from medpfl.bounds.fisher import expected_information, information
from medpfl.bounds.pixels import PixelMap
from medpfl.bounds.prior import GaussianPrior
from medpfl.data import ImageFolder, Preprocess
from medpfl.errors import ConfigurationError
from medpfl.optim import LBFGS
from medpfl.seeding import generator
from medpfl.training import LocalTraining, UpdateMap
from medpfl.types import Truth

FEDAVG = LocalTraining(algorithm="fedavg", epochs=2, batch_size=1, lr=0.3)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def exact(pixel_map: PixelMap, inputs: Tensor) -> Tensor:
    """Return J'J by reverse derivatives, one an entry of the update."""
    pixels = (inputs.mean(1) if pixel_map.tied else inputs).double().flatten()
    jacobian = jacrev(pixel_map.update)(pixels).detach()  # BatchNorm leaves its graph
    return jacobian.T @ jacobian


# J'J


def test_a_biased_linear_layer_with_squared_loss():
    weight, bias, target = drawn(4, 6), drawn(4, seed=1), drawn(4, seed=2)

    def squared(forward, parameters, inputs_norm, probabilities):
        x = inputs_norm.flatten()
        error = parameters["weight"] @ x + parameters["bias"] - target
        return {"weight": torch.outer(error, x), "bias": error}

    spec = spec_of(1, 2, 3)
    pixel_map = PixelMap(
        update_map=UpdateMap(),
        forward=no_network,
        parameters={"weight": weight, "bias": bias},
        probabilities=torch.ones(1, 1),
        spec=spec,
        tied=False,
        gradient=squared,
    )
    image = torch.rand((1, 1, 2, 3), dtype=torch.float64, generator=seeded(3))
    x = image.flatten()
    d = weight @ x + bias - target
    mixed = torch.outer(weight.T @ d, x)
    formula = (1 + x @ x) * weight.T @ weight + d @ d * torch.eye(6).double() + mixed + mixed.T
    assert relative(information(pixel_map, image).gram, formula) < 1e-12

    step = 1e-5
    shifted = [pixel_map.update(x + s * step * e) for e in torch.eye(6).double() for s in (1, -1)]
    slopes = torch.stack([(a - b) / (2 * step) for a, b in zip(*[iter(shifted)] * 2, strict=True)])
    assert relative(slopes @ slopes.T, formula) < 1e-9


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("local", [LocalTraining(), FEDAVG], ids=["fedsgd", "fedavg"])
def test_the_map_is_the_client_s(local, training):
    spec = normalised(2, 4, 4)
    torch.manual_seed(0)
    payload = sent(Smooth(2, 3, 4), batch_norm="train_private" if training else "eval_public")
    truth = victim_of(spec, [2, 0])
    pixel_map = PixelMap.of(payload, truth.labels, training=local, spec=spec, tied=False)
    update = pixel_map.update(truth.inputs.double().flatten())
    sent_by_client = client_sends(truth, payload, spec, local)
    assert pixel_map.entries == len(update) == len(sent_by_client)
    sign = 1 if local.kind == "gradient" else -1
    assert relative(sign * update, sent_by_client) < 1e-5
    found = information(pixel_map, truth.inputs)
    assert found.shape == (2, 2, 4, 4)
    assert relative(found.gram, exact(pixel_map, truth.inputs)) < 1e-12


def test_pixels_are_those_in_0_to_1():
    matrix = drawn(20, 12)
    spec = normalised(3, 2, 2)
    scale = torch.tensor(spec.std, dtype=torch.float64).repeat_interleave(4)
    found = information(linear_map(matrix, spec), torch.zeros(1, 3, 2, 2)).gram
    jacobian = matrix / scale
    assert relative(found, jacobian.T @ jacobian) < 1e-12


def test_channels_that_are_tied_add_up():
    spec, grey = normalised(3, 4, 4), torch.rand((1, 1, 4, 4), generator=seeded(1))
    images = grey.expand(1, 3, 4, 4)
    payload = payload_of("dlg_cnn", spec)
    free, tied = (
        information(
            PixelMap.of(
                payload, torch.tensor([1]), training=LocalTraining(), spec=spec, tied=together
            ),
            images,
        )
        for together in (False, True)
    )
    assert tied.shape == (1, 1, 4, 4)
    assert relative(tied.gram, free.gram.reshape(3, 16, 3, 16).sum((0, 2))) < 1e-12


def test_only_what_is_seen_counts():
    spec = spec_of(1, 8, 8)
    payload, truth = payload_of("dlg_cnn", spec), victim_of(spec, [0])
    traces = []
    for seen in (["fc.weight"], ["fc.bias"], ["fc.weight", "fc.bias"], None):
        pixel_map = PixelMap.of(
            payload, truth.labels, training=LocalTraining(), spec=spec, tied=False, seen=seen
        )
        traces.append(information(pixel_map, truth.inputs).trace().value)
    assert traces[2] == pytest.approx(traces[0] + traces[1], rel=1e-12)
    assert traces[3] > traces[2]


def test_the_expectation_is_a_mean():
    spec = spec_of(1, 4, 4)
    payload = payload_of("dlg_cnn", spec)
    pixel_map = PixelMap.of(
        payload, torch.tensor([1]), training=LocalTraining(), spec=spec, tied=True
    )
    points = list(torch.rand((3, 1, 1, 4, 4), generator=seeded(4)))
    mean = expected_information(pixel_map, points).gram
    assert relative(mean, sum(information(pixel_map, p).gram for p in points) / 3) < 1e-12


# Bounds


def quadratic(seed: int = 0) -> tuple[Tensor, GaussianPrior, PixelMap, Tensor]:
    """Return a linear map of six pixels, and a prior that ties them together."""
    matrix = drawn(9, 6, seed=seed)
    images = torch.rand((12, 1, 2, 3), dtype=torch.float64, generator=seeded(seed + 1))
    prior = GaussianPrior.from_images(images, tied=False)
    return matrix, prior, linear_map(matrix, spec_of(1, 2, 3)), images[:1]


@pytest.mark.parametrize("std", [0.01, 1.0, 30.0])
def test_bounds_of_a_linear_map(std):
    matrix, prior, pixel_map, image = quadratic()
    found = information(pixel_map, image)
    gram = matrix.T @ matrix
    inverse = std**2 * gram.inverse()
    bound = found.cramer_rao(std)
    assert bound.mse == pytest.approx(float(inverse.trace()) / 6, rel=1e-9)
    assert relative(bound.per_pixel.flatten(), inverse.diagonal()) < 1e-9
    assert float(bound.per_pixel.mean()) == pytest.approx(bound.mse, rel=1e-12)
    assert found.cramer_rao_of_trace(std).value == pytest.approx(
        std**2 * 6 / float(gram.trace()), rel=1e-12
    )
    assert found.fisher_information_loss(std).value == pytest.approx(
        float(torch.linalg.matrix_norm(matrix, 2)) / std, rel=1e-12
    )
    posterior = (gram / std**2 + prior.covariance().inverse()).inverse()
    bound = found.van_trees(std, prior)
    assert bound.mse == pytest.approx(float(posterior.trace()) / 6, rel=1e-9)
    assert relative(bound.per_pixel.flatten(), posterior.diagonal()) < 1e-9


def test_limits_of_van_trees():
    _, prior, pixel_map, image = quadratic()
    found = information(pixel_map, image)
    flat = GaussianPrior.isotropic(prior.mean, 1e12)
    assert found.van_trees(0.1, flat).mse == pytest.approx(found.cramer_rao(0.1).mse, rel=1e-9)
    assert found.van_trees(1e9, prior).mse == pytest.approx(prior.variance, rel=1e-9)
    assert prior.variance == pytest.approx(float(prior.covariance().trace()) / 6, rel=1e-12)
    assert found.van_trees(1e-6, prior).mse == pytest.approx(found.cramer_rao(1e-6).mse, rel=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_the_weak_form_is_never_above_the_strong(seed):
    found = information(quadratic(seed)[2], quadratic(seed)[3])
    assert found.cramer_rao_of_trace(1.0).value < found.cramer_rao(1.0).mse


def test_effective_rank():
    spec = spec_of(1, 2, 3)
    blank = torch.zeros(1, 1, 2, 3)
    equal = information(linear_map(3 * torch.eye(6).double(), spec), blank)
    assert equal.effective_rank().value == pytest.approx(6, rel=1e-12)
    singular = torch.tensor([4.0, 2, 1, 1, 0, 0]).double()
    some = information(linear_map(singular.diag(), spec), blank)
    share = (singular / 8)[:4]
    assert some.effective_rank().value == pytest.approx(
        math.exp(-float((share * share.log()).sum())), rel=1e-6
    )


def test_an_update_that_tells_nothing():
    _, prior, _, image = quadratic()
    found = information(linear_map(torch.zeros(9, 6).double(), spec_of(1, 2, 3)), image)
    assert found.van_trees(0.1, prior).mse == pytest.approx(prior.variance, rel=1e-12)
    assert found.cramer_rao(0.1).mse > 1e100
    assert found.cramer_rao(0.1).short_by == math.inf
    assert found.cramer_rao_of_trace(0.1).value == math.inf
    assert found.fisher_information_loss(0.1).value == 0
    assert found.effective_rank().value == 0


def test_a_pattern_without_a_trace_is_said_to_be_unbounded():
    matrix, _, _, image = quadratic()
    matrix[:, 0] = matrix[:, 1]
    bound = information(linear_map(matrix, spec_of(1, 2, 3)), image).cramer_rao(0.1)
    assert bound.short_by == math.inf
    assert bound.mse > 1e6
    assert float(bound.per_pixel.flatten()[:2].min()) > 1e6
    assert float(bound.per_pixel.flatten()[2:].max()) < 1


# Attackers


def test_no_linear_attacker_is_nearer_than_the_bounds():
    matrix, prior, pixel_map, image = quadratic()
    std, draws = 0.4, 40_000
    found = information(pixel_map, image)
    images = prior.draw(draws, seeded(5))
    seen = images @ matrix.T + std * drawn(draws, 9, seed=6)

    least_squares = seen @ torch.linalg.pinv(matrix).T
    gram = matrix.T @ matrix / std**2
    gain = (gram + prior.covariance().inverse()).inverse() @ matrix.T / std**2
    posterior = prior.mean + (seen - prior.mean @ matrix.T) @ gain.T
    for guess, bound in (
        (least_squares, found.cramer_rao(std)),
        (posterior, found.van_trees(std, prior)),
    ):
        errors = (guess - images).square()
        deviation = errors.std(0) / draws**0.5
        reached = bound.per_pixel.flatten()
        assert ((errors.mean(0) - reached).abs() < 4.5 * deviation).all()
        assert float(errors.mean()) == pytest.approx(bound.mse, rel=0.02)
    assert found.van_trees(std, prior).mse < 0.9 * found.cramer_rao(std).mse


def most_probable(
    pixel_map: PixelMap, seen: Tensor, truth: Tensor, prior: GaussianPrior, std: float
) -> Tensor:
    """Return the most probable pixels of updates `(B, P)`, searched from the truth `(B, d)`."""
    mean = prior.mean.repeat(pixel_map.shape[0])
    known = torch.block_diag(*[prior.covariance().inverse()] * pixel_map.shape[0])
    update, slopes = vmap(pixel_map.update), vmap(jacrev(pixel_map.update))

    def loss(pixels: Tensor) -> Tensor:
        off, apart = update(pixels) - seen, pixels - mean
        return off.square().sum(1) / std**2 + ((apart @ known) * apart).sum(1)

    pixels = truth
    for _ in range(4):
        jacobian, off = slopes(pixels), update(pixels) - seen
        gradient = (jacobian.mT @ off.unsqueeze(2)).squeeze(2) / std**2 + (pixels - mean) @ known
        step = torch.linalg.solve(jacobian.mT @ jacobian / std**2 + known, gradient)
        tried = torch.stack([pixels - length * step for length in (1, 0.5, 0.2, 0.05, 0)])
        best = torch.stack([loss(one) for one in tried]).argmin(0)
        pixels = tried[best, torch.arange(len(best))]
    return pixels


@pytest.mark.parametrize(
    ("local", "labels"),
    [(LocalTraining(), [1]), (FEDAVG, [1, 0])],
    ids=["one image", "two images, FedAvg"],
)
@pytest.mark.parametrize("std", [0.003, 0.03])
def test_no_attacker_of_a_network_is_nearer_than_van_trees(local, labels, std):
    spec, seeds = spec_of(1, 3, 3, num_classes=2), 100
    torch.manual_seed(1)
    payload = sent(Smooth(1, 2, 3))
    labels = torch.tensor(labels)
    pixel_map = PixelMap.of(payload, labels, training=local, spec=spec, tied=False)
    some = torch.rand((40, 1, 3, 3), generator=seeded(2)).double() * 0.5 + 0.25
    prior = GaussianPrior.from_images(some, tied=False)
    shape, count = (len(labels), 1, 3, 3), len(labels)
    points = [prior.draw(count, seeded(100 + n)).reshape(shape) for n in range(16)]
    bound = expected_information(pixel_map, points).van_trees(std, prior).mse
    truth = prior.draw(seeds * count, seeded(3)).reshape(seeds, -1)
    clean = vmap(pixel_map.update)(truth)
    seen = clean + std * drawn(*clean.shape, seed=4)
    guess = most_probable(pixel_map, seen, truth, prior, std)
    errors = (guess - truth).square().mean(1)
    reached = float(errors.mean())
    assert reached > bound - 3 * float(errors.std()) / seeds**0.5
    assert bound < 0.95 * prior.variance  # else nothing was tested
    assert reached < 1.5 * bound


def test_our_own_attack_is_not_nearer_than_van_trees():
    spec, victims, std = spec_of(1, 6, 6), 12, 1e-3
    payload = payload_of("dlg_cnn", spec)
    pixel_map = PixelMap.of(
        payload, torch.tensor([1]), training=LocalTraining(), spec=spec, tied=False
    )
    prior = GaussianPrior.isotropic(torch.full((36,), 0.5), 0.15**2)
    images = prior.draw(victims, seeded(1)).reshape(victims, 1, 1, 6, 6)
    points = [prior.draw(1, seeded(100 + n)).reshape(1, 1, 6, 6) for n in range(16)]
    bound = expected(pixel_map, points).van_trees(std, prior).mse
    assert 0 < bound <= expected_information(pixel_map, points).van_trees(std, prior).mse
    seen = []
    for number, image in enumerate(images):
        truth = Truth(inputs=image.float(), labels=torch.tensor([1]), ids=(f"{number}",))
        clean = observe(payload, spec, truth, capture_id=f"{number}")
        noise = generator(number, "noise")
        noisy = {
            n: t + std * torch.randn(t.shape, generator=noise) for n, t in clean.tensors.items()
        }
        seen.append(replace(clean, tensors=noisy))
    attack = GradientMatching(
        name="dlg",
        start=Normal(),
        labels=Known(),
        distance=SquaredError(),
        optimizer=LBFGS(max_steps=4, max_iter=20, line_search="strong_wolfe", scale_free=True),
        precision="float64",
        trace_points=0,
    )
    found = {r.capture_id: r.inputs for r in attack.reconstruct(iter(seen), context())}
    errors = torch.stack(
        [(found[f"{n}"].double() - image).square().mean() for n, image in enumerate(images)]
    )
    assert float(errors.mean()) > bound - 3 * float(errors.std()) / victims**0.5
    assert bound < 0.9 * prior.variance


# What is asked


def test_mistakes():
    _, _, pixel_map, image = quadratic()
    own = information(pixel_map, image)
    wide = linear_map(drawn(9, 12), spec_of(3, 2, 2), tied=True)
    cases = [
        (lambda: own.cramer_rao(0.0), r"bound\.std.*positive"),
        (lambda: own.fisher_information_loss(math.nan), r"bound\.std"),
        (lambda: own.van_trees(1.0, GaussianPrior.isotropic(torch.zeros(5), 1.0)), "5 unknowns"),
        (lambda: information(pixel_map, torch.zeros(2, 1, 2, 3)), r"\(2, 1, 2, 3\)"),
        (lambda: information(wide, torch.rand(1, 3, 2, 2, generator=seeded())), "channels=free"),
        (lambda: expected_information(pixel_map, []), "at least one"),
        (lambda: information(pixel_map, image, exact=False), "generator"),
        (lambda: information(pixel_map, image, exact=False, generator=seeded(), probes=1), "2 pr"),
        (lambda: information(pixel_map, image / 0), "not finite"),
    ]
    for call, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            call()


@pytest.mark.real_data
def test_brain_images():
    root = f"{sample_images('brain_mri')}/Training"
    data = ImageFolder(root=root, split="all").load(
        preprocess=Preprocess(size=16), n_images=40, seed=0
    )
    images = torch.stack([data.images.load(i) for i in data.selected])
    prior = GaussianPrior.from_images(images[1:], tied=True)
    spec = normalised(3, 16, 16, num_classes=4, greyscale=True)
    pixel_map = PixelMap.of(
        payload_of("dlg_cnn", spec),
        torch.tensor([1]),
        training=LocalTraining(),
        spec=spec,
        tied=True,
    )
    expected = expected_information(pixel_map, [images[k : k + 1] for k in range(1, 4)])
    spectrum = expected.spectrum(prior)
    bounds = [spectrum.bound(std).mse for std in (1e-4, 1e-3, 1e-2, 1e-1, 1e2)]
    assert bounds == sorted(bounds)
    assert bounds[0] == pytest.approx(expected.cramer_rao(1e-4).mse, rel=0.1)
    assert bounds[2] < 0.7 * expected.cramer_rao(1e-2).mse
    assert bounds[-1] == pytest.approx(prior.variance, rel=1e-3)
