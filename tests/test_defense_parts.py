"""Every part of a defense against a reference of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from helpers import CPU, payload_of, seeded, spec_of, victim_of
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from medpfl.defenses import (
    Clipping,
    Gaussian,
    Laplace,
    Masking,
    Perturbation,
    Pruning,
    Quantise,
    RandomK,
    Sign,
    Soteria,
    TopK,
)
from medpfl.defenses.soteria import hidden_features, sensitivity
from medpfl.defenses.wire import Coding
from medpfl.errors import ConfigurationError
from medpfl.federated import Client
from medpfl.training import LocalTraining, mean_gradient
from medpfl.types import ClientUpdate

SHAPES = {"weight": (6, 5), "bias": (6,), "head": (4, 6, 2)}
ENTRIES = 30 + 6 + 48


def update_of(tensors: Mapping[str, Tensor]) -> ClientUpdate:
    return ClientUpdate(kind="gradient", tensors=tensors, num_examples=1)


def an_update(scale: float = 1.0, seed: int = 9) -> ClientUpdate:
    stream = seeded(seed)
    return update_of({n: scale * torch.randn(s, generator=stream) for n, s in SHAPES.items()})


def flat(tensors: Mapping[str, Tensor]) -> np.ndarray:
    return np.concatenate([t.double().numpy().ravel() for t in tensors.values()])


def sent_by(part, update: ClientUpdate, seed: int = 0) -> dict[str, Tensor]:
    """Return what a part makes of a first update."""
    if hasattr(part, "error_feedback"):
        return dict(part.on_update(update, {}, seeded(seed))[0].tensors)
    return dict(part.on_update(update, seeded(seed))[0].tensors)


@pytest.mark.parametrize("max_norm", [1e-6, 0.5, 3.0, 1e6])
def test_clipping_the_whole_update(max_norm: float) -> None:
    update = an_update()
    defended, report = Clipping(max_norm=max_norm).on_update(update, seeded())
    before = flat(update.tensors)
    factor = min(1.0, max_norm / np.linalg.norm(before))
    np.testing.assert_allclose(flat(defended.tensors), factor * before, rtol=1e-6)
    assert report.clip_factor == pytest.approx(factor)
    if factor == 1:  # what is short enough is left to the bit
        assert all(defended.tensors[n] is t for n, t in update.tensors.items())


def test_clipping_tensor_by_tensor() -> None:
    update = an_update()
    defended, report = Clipping(max_norm=3.0, per="layer").on_update(update, seeded())
    norms = {n: float(t.double().norm()) for n, t in update.tensors.items()}
    assert min(norms.values()) < 3 < max(norms.values())
    for name, tensor in defended.tensors.items():
        factor = min(1.0, 3 / norms[name])
        torch.testing.assert_close(tensor, factor * update.tensors[name])
    total = [min(norm, 3.0) ** 2 for norm in norms.values()]
    assert report.clip_factor == pytest.approx(
        math.sqrt(sum(total) / sum(n**2 for n in norms.values()))
    )


def test_an_update_of_nothing_is_not_clipped_and_a_tiny_one_has_a_norm() -> None:
    zero, report = Clipping(max_norm=1.0).on_update(an_update(0.0), seeded())
    assert report.clip_factor == 1
    assert not flat(zero.tensors).any()
    # The squares of these underflow in float32.
    tiny, report = Clipping(max_norm=1e-31).on_update(an_update(1e-30), seeded())
    assert np.linalg.norm(flat(tiny.tensors)) == pytest.approx(1e-31)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_noise_relative_to_the_norm_has_one_signal_to_noise_ratio(scale: float) -> None:
    stream = seeded(2)
    update = update_of({"w": scale * torch.rand(400, 100, generator=stream)})
    part = Perturbation(noise=Gaussian(std=0.1), relative_to="norm")
    defended, report = part.on_update(update, seeded(1))
    before = flat(update.tensors)
    rms = math.sqrt(np.mean(before**2))
    assert report.noise_scale == pytest.approx(0.1 * rms)
    assert report.snr_db == pytest.approx(20, abs=0.1)
    noise = flat(defended.tensors) - before
    assert np.std(noise) == pytest.approx(0.1 * rms, rel=0.02)


@pytest.mark.parametrize("percentile", [0, 10, 50, 95, 100])
def test_noise_relative_to_a_percentile(percentile: float) -> None:
    update = an_update()
    part = Perturbation(noise=Laplace(scale=0.5), relative_to="percentile", percentile=percentile)
    _, report = part.on_update(update, seeded(1))
    magnitudes = np.abs(flat(update.tensors))
    unit = np.percentile(magnitudes, percentile, method="inverted_cdf")
    assert report.noise_scale == pytest.approx(0.5 * unit)


def test_relative_noise_is_the_laws_own_sample_in_another_unit() -> None:
    update, noise = an_update(), Gaussian(std=0.1)
    plain = flat(Perturbation(noise=noise).on_update(update, seeded(4))[0].tensors)
    part = Perturbation(noise=noise, relative_to="norm")
    relative = flat(part.on_update(update, seeded(4))[0].tensors)
    before = flat(update.tensors)
    unit = math.sqrt(np.mean(before**2))
    np.testing.assert_allclose(relative - before, unit * (plain - before), atol=1e-6)


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.1, 0.5, 0.999])
def test_top_k_keeps_the_largest_of_all(fraction: float) -> None:
    update = an_update()
    before = flat(update.tensors)
    after = flat(sent_by(TopK(fraction=fraction), update))
    count = max(1, round(fraction * ENTRIES))
    chosen = np.argsort(-np.abs(before))[:count]
    expected = np.zeros_like(before)
    expected[chosen] = before[chosen]
    np.testing.assert_array_equal(after, expected)


def test_top_k_layer_by_layer_keeps_at_least_one_of_each() -> None:
    update = an_update()
    for name, tensor in sent_by(TopK(fraction=0.1, per="layer"), update).items():
        before = update.tensors[name]
        count = max(1, round(0.1 * before.numel()))
        assert int((tensor != 0).sum()) == count
        smallest = tensor.abs()[tensor != 0].min()
        assert int((before.abs() > smallest).sum()) == count - 1


def test_of_equal_entries_as_many_are_sent_as_were_asked_for() -> None:
    after = sent_by(TopK(fraction=0.25), update_of({"w": torch.ones(8)}))["w"]
    assert after.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("per", ["update", "layer"])
def test_random_k_draws_every_place_alike(per: str) -> None:
    update, part, draws = an_update(), RandomK(fraction=0.25, per=per), 600
    counts = np.zeros(ENTRIES)
    for seed in range(draws):
        after = flat(sent_by(part, update, seed))
        kept = after != 0
        np.testing.assert_array_equal(after[kept], flat(update.tensors)[kept])
        sizes = [30, 6, 48] if per == "layer" else [ENTRIES]
        assert kept.sum() == sum(round(0.25 * size) for size in sizes)
        counts += kept
    expected = draws * kept.sum() / ENTRIES
    if per == "update":
        # Six standard deviations of a share of so many draws; the seeds are fixed.
        assert np.abs(counts - expected).max() < 6 * math.sqrt(expected * 0.75)
    assert sent_by(part, update, 1).keys() == update.tensors.keys()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantisation_to_the_nearest_level(bits: int) -> None:
    update, part = an_update(), Quantise(bits=bits, stochastic=False)
    levels = 2 ** (bits - 1) - 1
    for name, tensor in sent_by(part, update).items():
        before = update.tensors[name].double()
        step = float(before.abs().max()) / levels
        expected = torch.round(before / step) * step
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
        assert part.facts().step(tensor) == pytest.approx(step, rel=1e-6)


def test_qsgd_is_right_in_the_mean_and_on_its_levels() -> None:
    update, part = an_update(), Quantise(bits=4, stochastic=True)
    total, draws = np.zeros(ENTRIES), 2000
    for seed in range(draws):
        sent = sent_by(part, update, seed)
        total += flat(sent)
    for name, tensor in sent.items():
        step = float(update.tensors[name].double().norm()) / 7
        place = tensor.double() / step
        torch.testing.assert_close(place, place.round(), rtol=0, atol=1e-5)
        assert part.facts().step(tensor) == pytest.approx(step, rel=1e-5)
    # An entry is off by at most a step, with a variance of at most a quarter of its square.
    steps = np.concatenate(
        [np.full(t.numel(), float(t.double().norm()) / 7) for t in update.tensors.values()]
    )
    off = np.abs(total / draws - flat(update.tensors))
    assert (off < 6 * steps / 2 / math.sqrt(draws)).all()


def test_qsgds_variance_is_within_its_bound() -> None:
    # Alistarh et al. 2017, Lemma 3.1: E ||Q(v) - v||^2 <= min(n / s^2, sqrt(n) / s) ||v||^2.
    update = update_of({"w": torch.randn(1000, generator=seeded(3))})
    for bits in (2, 4, 8):
        part, levels = Quantise(bits=bits), 2 ** (bits - 1) - 1
        before = flat(update.tensors)
        errors = [np.sum((flat(sent_by(part, update, s)) - before) ** 2) for s in range(40)]
        bound = min(1000 / levels**2, math.sqrt(1000) / levels) * np.sum(before**2)
        assert 0 < np.mean(errors) <= bound


def test_signs_with_and_without_their_size() -> None:
    update = an_update()
    update.tensors["bias"][2] = 0
    for name, tensor in sent_by(Sign(scale="none"), update).items():
        assert torch.equal(tensor, update.tensors[name].sign())
    for name, tensor in sent_by(Sign(), update).items():
        before = update.tensors[name].double()
        size = before[before != 0].abs().mean()
        torch.testing.assert_close(tensor.double(), before.sign() * size, rtol=1e-6, atol=0)
        # No other size is nearer.
        for other in (0.99, 1.01):
            apart = (before.sign() * size * other - before).norm()
            assert (before.sign() * size - before).norm() < apart


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.999])
def test_pruning_takes_the_smallest_of_each_tensor(fraction: float) -> None:
    update = an_update()
    for name, tensor in sent_by(Pruning(fraction=fraction), update).items():
        before = update.tensors[name].flatten()
        count = max(1, round((1 - fraction) * before.numel()))
        expected = torch.zeros_like(before)
        order = before.abs().argsort(descending=True)[:count]
        expected[order] = before[order]
        assert torch.equal(tensor.flatten(), expected)


@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_masking_hides_a_share_and_leaves_the_others(fill: str) -> None:
    stream = seeded(5)
    update = update_of({"w": 3 + torch.randn(200, 100, generator=stream)})
    after = sent_by(Masking(fraction=0.3, fill=fill), update)["w"]
    hidden = after != update.tensors["w"]
    assert float(hidden.double().mean()) == pytest.approx(0.3, abs=0.02)
    size = float(update.tensors["w"].double().square().mean().sqrt())
    assert float(after[hidden].std()) == pytest.approx(0 if fill == "zero" else size, rel=0.05)


def test_the_bytes_of_every_coding() -> None:
    def cost(part, update: ClientUpdate) -> int:
        stateful = hasattr(part, "error_feedback")
        given = (update, {}, seeded()) if stateful else (update, seeded())
        coding = Coding.dense(ENTRIES).then(part.on_update(*given)[-1].coding)
        return coding.bytes_of(ENTRIES)

    update = an_update()
    assert cost(Clipping(max_norm=1.0), update) == 4 * ENTRIES
    assert cost(TopK(fraction=0.1), update) == 8 * 8
    assert cost(RandomK(fraction=0.25), update) == 21 * 8
    # More than half of the entries are shorter as a list of all of them.
    assert cost(TopK(fraction=0.9), update) == 4 * ENTRIES
    assert cost(Pruning(fraction=0.5), update) == 4 * ENTRIES
    assert cost(Quantise(bits=8), update) == ENTRIES + 3 * 4
    assert cost(Quantise(bits=5), update) == math.ceil(5 * ENTRIES / 8) + 12
    assert cost(Sign(), update) == math.ceil(ENTRIES / 8) + 12
    assert cost(Sign(scale="none"), update) == math.ceil(ENTRIES / 8)
    update.tensors["bias"][2] = 0
    assert cost(Sign(scale="none"), update) == math.ceil(2 * ENTRIES / 8)


def test_codings_follow_each_other() -> None:
    few = Coding.sparse(10).then(Coding(value_bits=8, extra_bytes=12))
    assert few.bytes_of(1000) == 10 * 5 + 12
    assert few.then(Coding.dense(1000)).bytes_of(1000) == 4000
    assert Coding.dense(1000).then(Coding(value_bits=1)).then(Coding.sparse(3)).bytes_of(
        1000
    ) == math.ceil(3 * 33 / 8)


SPEC = spec_of(3, 12, 12, num_classes=4)


def a_network():
    """Return a network that is sent, and the features before its last layer, ``fc``."""
    payload = payload_of("dlg_cnn", SPEC)
    return payload, lambda x: payload.model.body(x).flatten(1)


def reference_columns(function, inputs: Tensor, count: int) -> set[int]:
    """Return the features that the authors' rule hides, by a Jacobian of every image."""
    ratios = 0
    for image in inputs.double():
        jac = jacobian(lambda x: function(x.unsqueeze(0)).squeeze(0), image)
        ratios += jac.flatten(1).norm(dim=1) / function(image.unsqueeze(0)).squeeze(0).abs()
    return set(ratios.argsort()[:count].tolist())


@pytest.mark.parametrize("images", [1, 3])
def test_soteria_hides_the_columns_of_the_authors_rule(images: int) -> None:
    payload, function = a_network()
    victim, client = victim_of(SPEC, list(range(images))), Client(spec=SPEC, device=CPU)
    plain, _ = client.update(victim, payload)
    gradient = Soteria(fraction=0.25).gradient(mean_gradient, payload, seeded())
    defended, _ = client.update(victim, payload, gradient=gradient)
    weight = defended.tensors["fc.weight"]
    zero = (weight == 0).all(0)
    assert int(zero.sum()) == round(0.25 * weight.shape[1])
    payload.model.double()
    expected = reference_columns(function, SPEC.normalise(victim.inputs), int(zero.sum()))
    assert set(zero.nonzero().flatten().tolist()) == expected
    for name, tensor in plain.tensors.items():
        untouched = defended.tensors[name]
        if name == "fc.weight":
            assert torch.equal(untouched[:, ~zero], tensor[:, ~zero])
        else:
            assert torch.equal(untouched, tensor)


def test_soteria_leaves_features_that_are_zero_for_last() -> None:
    layer = nn.Linear(5, 4, bias=False).double()
    layer.weight.data = torch.tensor(
        [[1.0, 0, 0, 0, 0], [0, 2, 0, 0, 0], [0, 0, -1, 0, 0], [1, 1, 0, 0, 0]]
    ).double()

    def features(x: Tensor) -> Tensor:
        return layer(x).relu()

    inputs = torch.tensor([[4.0, 1, 1, 0, 0], [1, 1, 1, 0, 0]]).double()
    # ||dr / dx|| / r is 1/4 + 1, 2/2 + 2/2, nothing, and sqrt(2)/5 + sqrt(2)/2.
    assert hidden_features(features, inputs, 0.25).tolist() == [False, False, False, True]
    assert hidden_features(features, inputs, 0.75).tolist() == [True, True, False, True]


def test_sensitivity_by_feature_is_that_by_pixel() -> None:
    wide, narrow = nn.Linear(6, 9).double(), nn.Linear(6, 4).double()
    inputs = torch.randn(3, 1, 2, 3, generator=seeded(2)).double()
    for layer in (wide, narrow):  # more features than pixels, and fewer

        def features(x: Tensor, layer: nn.Linear = layer) -> Tensor:
            return layer(x.flatten(1)).sigmoid()

        for image, norms in zip(inputs, sensitivity(features, inputs), strict=True):
            jac = jacobian(lambda x: features(x.unsqueeze(0)).squeeze(0), image)
            torch.testing.assert_close(norms, jac.flatten(1).norm(dim=1))


def test_soteria_acts_in_every_step_of_a_client() -> None:
    payload, _ = a_network()
    training = LocalTraining(algorithm="fedavg", epochs=3, batch_size=1, lr=0.1)
    client = Client(spec=SPEC, device=CPU, training=training)
    part, seen = Soteria(fraction=0.5), []

    def recorded(*given):
        found = mean_gradient(*given)
        seen.append(found)
        return found

    gradient = part.gradient(recorded, payload, seeded())
    hidden, _ = client.update(victim_of(SPEC, [0, 1]), payload, gradient=gradient)
    assert len(seen) == 6
    open_, _ = client.update(victim_of(SPEC, [0, 1]), payload)
    weight = "fc.weight"
    assert hidden.tensors[weight].norm() < open_.tensors[weight].norm()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Clipping(max_norm=0.0), "defense.clipping.max_norm=0.0: must be positive"),
        (lambda: Clipping(max_norm=math.nan), "defense.clipping.max_norm=nan: must be"),
        (lambda: Clipping(max_norm=1.0, per="image"), "defense.clipping.per=image: choose"),
        (lambda: TopK(fraction=0.0), "defense.topk.fraction=0.0: must be positive and below 1; "),
        (lambda: TopK(fraction=1.0), "defense.topk.fraction=1.0: must be positive and below 1; "),
        (lambda: TopK(fraction=0.1, per="row"), "defense.topk.per=row: choose update or layer"),
        (lambda: RandomK(fraction=1), "defense.randomk.fraction=1: must be positive and below"),
        (lambda: Quantise(bits=1), "defense.quantise.bits=1: must be at least 2 and at most 16"),
        (lambda: Quantise(bits=8.5), "defense.quantise.bits=8.5: must be an integer"),
        (lambda: Sign(scale="max"), "defense.sign.scale=max: choose mean or none"),
        (lambda: Sign(scale="none", error_feedback=True), "only grows. Choose defense.sign.scale"),
        (lambda: Pruning(fraction=1.0), "defense.pruning.fraction=1.0: must be positive and bel"),
        (lambda: Masking(fraction=0.0), "defense.masking.fraction=0.0: must be positive and bel"),
        (lambda: Masking(fraction=0.1, fill="one"), "defense.masking.fill=one: choose zero or"),
        (lambda: Soteria(fraction=0.0), "defense.soteria.fraction=0.0: must be positive and bel"),
        (
            lambda: Perturbation(noise=Gaussian(std=1.0), relative_to="max"),
            "defense.perturbation.relative_to=max: choose norm, percentile or null",
        ),
        (
            lambda: Perturbation(noise=Gaussian(std=1.0), percentile=101),
            "defense.perturbation.percentile=101: must be at least 0 and at most 100",
        ),
    ],
)
def test_what_a_part_cannot_be(make, words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        make()
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_networks_that_soteria_cannot_defend() -> None:
    convolution = nn.Sequential(nn.Conv2d(3, 4, 12), nn.Flatten())
    with pytest.raises(ConfigurationError, match="Sequential has no fully connected layer to"):
        Soteria(fraction=0.1).check(convolution, SPEC)
    with pytest.raises(ConfigurationError, match=r"defense\.soteria\.layer=top: no fully .* fc"):
        Soteria(fraction=0.1, layer="top").check(payload_of("dlg_cnn", SPEC).model, SPEC)
    rows = nn.Sequential(nn.Flatten(2), nn.Linear(144, 2), nn.Flatten())
    with pytest.raises(ConfigurationError, match="takes 2 axes an image, not one vector"):
        Soteria(fraction=0.1).check(rows, SPEC)
