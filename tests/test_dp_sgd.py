"""DP-SGD beside Opacus and by hand: gradients image by image, clipped, summed, noised."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import FACTORIES, seeded, spec_of
from scipy import stats
from torch import nn
from torch.nn import functional

from medpfl.bench.opacus_side import OpacusStep
from medpfl.defenses import Clipping, Defenses, DpSgd, Perturbation, Soteria, TopK
from medpfl.defenses.noise import Gaussian
from medpfl.defenses.per_example import clipped_sum, norms_of, per_example_gradients
from medpfl.errors import ConfigurationError
from medpfl.models import ResNet18
from medpfl.models.init import DefaultInit
from medpfl.training import LocalTraining, UpdateMap, mean_gradient
from medpfl.types import ServerPayload

IMAGES, CLASSES = 5, 3
NETWORKS = {
    **{name: FACTORIES[name] for name in ("dlg_cnn", "idlg_cnn", "cpl_cnn", "lenet")},
    "resnet18": ResNet18(init=DefaultInit(), norm="group"),
}
SPEC = spec_of(3, 32, 32)


def payload_of(model: nn.Module) -> ServerPayload:
    return ServerPayload(
        model=model,
        parameters={n: p.detach() for n, p in model.named_parameters()},
        buffers={n: b.detach() for n, b in model.named_buffers()},
        batch_norm="train_private",
    )


def network(name: str = "dlg_cnn") -> ServerPayload:
    return payload_of(NETWORKS[name].build(SPEC, seeded()))


def images(count: int = IMAGES) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % CLASSES
    inputs = torch.rand(count, 3, 32, 32, generator=seeded(1))
    return inputs, functional.one_hot(labels, CLASSES).float()


def step(part: DpSgd, payload: ServerPayload, inputs, labels, expected=None, seed: int = 0):
    defense = Defenses({"dp_sgd": part})
    gradient = defense.gradient(payload, seeded(seed), expected)
    return gradient(payload.forward(), payload.parameters, inputs, labels)


def close(one, other, tolerance: float) -> None:
    for name, tensor in one.items():
        scale = float(other[name].abs().max().clamp_min(1e-3))
        assert float((tensor - other[name]).abs().max()) <= tolerance * scale, name


def of_opacus(payload: ServerPayload, inputs, labels) -> dict[str, torch.Tensor]:
    """Return every image's gradient as Opacus computes it, `{name: (n, *P_i)}`."""
    pytest.importorskip("opacus")
    theirs = OpacusStep(payload.model, max_grad_norm=1.0, noise_multiplier=0.0, expected=1)
    return theirs.per_example(inputs, labels.argmax(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_images_are_opacus_s_and_so_is_the_clipped_step(name: str) -> None:
    payload, (inputs, labels) = network(name), images(3 if name == "resnet18" else IMAGES)
    mine = per_example_gradients(
        mean_gradient, payload.forward(), payload.parameters, inputs, labels
    )
    theirs = of_opacus(payload, inputs, labels)
    assert list(mine) == list(theirs)
    close(mine, theirs, 1e-5)
    norms = norms_of(theirs)
    bound = float(norms.sort().values[-2])  # some are clipped, some are not
    factors = (bound / norms).clamp(max=1)
    by_hand = {n: torch.einsum("n,n...->...", factors, g) / 7 for n, g in theirs.items()}
    part = DpSgd(max_grad_norm=bound, noise_multiplier=0)
    close(step(part, payload, inputs, labels, expected=7), by_hand, 1e-5)


def test_a_step_is_private_by_what_each_image_adds() -> None:
    """Whatever an image is, leaving it out moves the sum by at most the norm."""
    payload, (inputs, labels) = network(), images()
    for scale, law, norm in ((1.0, "gaussian", 2), (1e4, "gaussian", 2), (1e4, "laplace", 1)):
        hostile = torch.cat([inputs[:-1], inputs[-1:] * scale])
        part = DpSgd(max_grad_norm=0.3, noise_multiplier=0, mechanism=law)
        whole = step(part, payload, hostile, labels, expected=1)
        rest = step(part, payload, hostile[:-1], labels[:-1], expected=1)
        moved = torch.cat([(whole[n] - rest[n]).double().flatten() for n in whole])
        assert 0.29 < float(moved.norm(norm)) <= 0.3 * (1 + 1e-5)


def test_an_image_whose_gradient_is_not_finite_adds_nothing() -> None:
    payload, (inputs, labels) = network(), images()
    broken = inputs.clone()
    broken[2, 0, 0, 0] = math.nan
    kept = [0, 1, 3, 4]
    part = DpSgd(max_grad_norm=0.3, noise_multiplier=0)
    found = step(part, payload, broken, labels, expected=1)
    close(found, step(part, payload, inputs[kept], labels[kept], expected=1), 1e-5)


def test_chunks_change_nothing(monkeypatch) -> None:
    payload, (inputs, labels) = network(), images(7)
    arguments = (mean_gradient, payload.forward(), payload.parameters, inputs, labels)
    at_once = clipped_sum(*arguments, max_norm=0.5)
    monkeypatch.setattr("medpfl.defenses.per_example._AT_ONCE_BYTES", 3 * 4 * 14_824)
    close(clipped_sum(*arguments, max_norm=0.5), at_once, 1e-5)


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_noise_is_of_the_law_and_scale_that_the_facts_say(mechanism: str) -> None:
    payload, (inputs, labels) = network(), images(1)
    part = DpSgd(max_grad_norm=0.5, noise_multiplier=2.0, mechanism=mechanism)
    facts = part.facts()
    assert (facts.noise_scale, facts.law) == (1.0, mechanism)
    noisy = step(part, payload, inputs, labels, expected=4)
    plain = step(replace(part, noise_multiplier=0), payload, inputs, labels, expected=4)
    noise = torch.cat([(noisy[n] - plain[n]).flatten() for n in noisy]).double().numpy()
    assert len(noise) > 10_000
    scale = facts.scale_in_update(expected=4)
    law = stats.norm(scale=scale) if mechanism == "gaussian" else stats.laplace(scale=scale)
    assert stats.kstest(noise, law.cdf).pvalue > 1e-3


def test_no_images_are_noise_alone_and_steps_are_noised_anew() -> None:
    payload, (inputs, labels) = network(), images(2)
    part = DpSgd(max_grad_norm=1.0, noise_multiplier=1.0)
    gradient = Defenses({"dp_sgd": part}).gradient(payload, seeded(), 2)
    empty = UpdateMap(batches=((), ()), lr=0.1)
    moved = empty(payload.forward(), payload.parameters, inputs, labels, gradient=gradient)
    entries = torch.cat([t.flatten() for t in moved.values()]).double()
    # The mean of two independent steps, each of standard deviation 1 / 2.
    assert float(entries.std()) == pytest.approx(part.facts().scale_in_update(2, 2), rel=0.03)
    plain = empty(payload.forward(), payload.parameters, inputs, labels)
    assert all(float(t.abs().max()) == 0 for t in plain.values())


def test_parts_before_act_image_by_image_and_none_may_follow_that_sees_images() -> None:
    payload, (inputs, labels) = network(), images(2)
    hidden = Soteria(fraction=0.3)
    both = Defenses({"soteria": hidden, "dp_sgd": DpSgd(max_grad_norm=1e9, noise_multiplier=0)})
    found = both.gradient(payload, seeded(), 1)(
        payload.forward(), payload.parameters, inputs, labels
    )
    alone = hidden.gradient(mean_gradient, payload, seeded())
    each = [
        alone(payload.forward(), payload.parameters, inputs[i : i + 1], labels[i : i + 1])
        for i in range(2)
    ]
    close(found, {n: each[0][n] + each[1][n] for n in each[0]}, 1e-5)
    with pytest.raises(ConfigurationError, match="soteria looks at the images again after dp_sgd"):
        Defenses({"dp_sgd": DpSgd(max_grad_norm=1.0), "soteria": hidden})
    noise = Perturbation(noise=Gaussian(std=1.0))
    with pytest.raises(ConfigurationError, match="list dp_sgd before perturbation"):
        Defenses({"perturbation": noise, "dp_sgd": DpSgd(max_grad_norm=1.0, target_epsilon=8)})
    Defenses({"dp_sgd": DpSgd(max_grad_norm=1.0), "topk": TopK(fraction=0.1)})


def test_batch_norm_that_mixes_images_is_named_with_its_way_out() -> None:
    model = ResNet18(init=DefaultInit()).build(SPEC, seeded())
    part = DpSgd(max_grad_norm=1.0)
    part.check(model.eval(), SPEC)
    with pytest.raises(ConfigurationError) as refused:
        part.check(model.train(), SPEC)
    assert "defense=dp_sgd: bn1 (BatchNorm2d) mixes" in str(refused.value)
    assert "model=resnet18 model.norm=group" in str(refused.value)
    part.check(NETWORKS["resnet18"].build(SPEC, seeded()).train(), SPEC)


def test_dropout_draws_for_every_image() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 32 * 32, CLASSES)).train()
    payload, (inputs, labels) = payload_of(model), images(2)
    same = (inputs[:1].expand(2, -1, -1, -1), labels[:1].expand(2, -1))
    found = per_example_gradients(mean_gradient, payload.forward(), payload.parameters, *same)
    assert not torch.equal(found["2.weight"][0], found["2.weight"][1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_grad_norm": 0}, "max_grad_norm=0: must be at least 1e-09"),
        ({"noise_multiplier": 0, "target_epsilon": 8}, "dp_sgd.target_epsilon=8 is never kept to"),
        ({"noise_multiplier": 0, "budget_epsilon": 8}, "dp_sgd.budget_epsilon=8 is never kept to"),
        ({"noise_multiplier": 1, "target_epsilon": 8}, "set defense.dp_sgd.budget_epsilon=8 inst"),
        ({"noise_multiplier": 1e-4}, "noise_multiplier=0.0001: must be 0, or at least 0.001"),
        ({"target_delta": 0.0}, "defense.dp_sgd.target_delta=0.0: must be at least 1e-12"),
        ({"target_delta": 1.0}, "defense.dp_sgd.target_delta=1.0: must be at least 1e-12 and bel"),
        ({"target_epsilon": 0.0}, "defense.dp_sgd.target_epsilon=0.0: must be"),
        ({"mechanism": "cauchy"}, "mechanism=cauchy: choose gaussian or laplace"),
        ({"mechanism": "laplace", "accountant": "rdp"}, "accountant=rdp: not known for Laplace"),
        ({"candidates": 1}, "candidates=1: must be at least 2"),
    ],
)
def test_settings_that_cannot_be(settings, words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        DpSgd(**{"max_grad_norm": 1.0, **settings})
    assert words in str(refused.value)


def test_poisson_samples_take_each_image_by_itself() -> None:
    training = LocalTraining(
        algorithm="fedavg", epochs=400, batch_size=3, sampling="poisson", lr=0.1
    )
    order = training.drawn(10, seeded()).order
    assert len(order) == training.steps(10) == 1600
    sizes = torch.tensor([len(batch) for batch in order]).double()
    # Binomial of 10 and 0.3: its mean, its variance, and its chance of nothing at all.
    assert float(sizes.mean()) == pytest.approx(3, abs=4 * math.sqrt(2.1 / 1600))
    assert float(sizes.var()) == pytest.approx(2.1, rel=0.15)
    assert int((sizes == 0).sum()) == pytest.approx(1600 * 0.7**10, abs=27)
    together = sum(0 in batch and 1 in batch for batch in order) / 1600
    assert together == pytest.approx(0.09, abs=0.03)
    alone = replace(training, batch_size=3, epochs=1).drawn(2, seeded()).order
    assert alone == ((0, 1),)
    assert (training.expected(10), training.rate(10), training.rate(2)) == (3, 0.3, 1.0)
    for changed in ({"batch_size": None}, {"shuffle": False}):
        with pytest.raises(ConfigurationError, match="sampling=poisson draws the images of every"):
            replace(training, **changed)
    with pytest.raises(ConfigurationError, match="sampling=poisson: under FedSGD a client sends"):
        LocalTraining(sampling="poisson")


def test_noise_is_told_apart_from_what_it_is_added_to() -> None:
    parts = Defenses({"dp_sgd": DpSgd(max_grad_norm=0.5, noise_multiplier=2.0)})
    assert parts.describe() == (
        "dp_sgd: each image's gradient to a norm of 0.5, noise on their sum",
    )
    assert parts.noise == "Gaussian, 2 x the clipping norm in every step"
    assert Defenses({"dp_sgd": DpSgd(max_grad_norm=1.0, noise_multiplier=0)}).noise is None
    assert Defenses({"clipping": Clipping(max_norm=1.0)}).dp_sgd is None
