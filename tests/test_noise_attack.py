"""Attackers under noise that know its law, and what such images look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import CPU, context, experiment, observe, payload_of, seeded, sent, spec_of, victim_of
from torch import Tensor, nn
from torch.distributions import Normal
from torch.func import vmap

from medpfl.attacks import GradientMatching
from medpfl.attacks.adaptation import adapted
from medpfl.attacks.adaptation.dp_sgd import ClippedGradient
from medpfl.attacks.adaptation.quantise import RoundingLikelihood
from medpfl.attacks.adaptation.sign import SignLikelihood
from medpfl.attacks.adaptation.sparse_noise import SparseNoise
from medpfl.attacks.adaptation.through import through_of
from medpfl.attacks.distances import SquaredError
from medpfl.attacks.image_prior import ImageGaussian
from medpfl.attacks.labels import Known
from medpfl.attacks.likelihood import NoiseLikelihood
from medpfl.attacks.priors import LikelyImages
from medpfl.attacks.starts import Smooth
from medpfl.captures import FileSource
from medpfl.defenses import Clipping, Gaussian, Laplace, Perturbation, Quantise, Sign, TopK
from medpfl.defenses.composition import Defenses
from medpfl.errors import ConfigurationError
from medpfl.federated import simulation
from medpfl.optim import LBFGS
from medpfl.outcomes import Status
from medpfl.threat import ThreatModel
from medpfl.training import mean_gradient
from medpfl.types import ClientUpdate, DefenseFacts, Observation, Reconstruction

SPEC = spec_of(1, 4, 4, num_classes=3)
STD = 0.05


def public(count: int = 30, *, seed: int = 5) -> Tensor:
    """Draw soft grey pictures."""
    noise = torch.randn((count, *SPEC.shape), generator=seeded(seed))
    return (0.5 + 0.08 * noise.cumsum(-1)).clamp(0.05, 0.95)


def attack(steps: int = 60) -> GradientMatching:
    search = LBFGS(
        max_steps=steps,
        max_iter=1,
        max_eval=25,
        line_search="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
        scale_free=True,
    )
    return GradientMatching(
        name="test",
        start=Smooth(cells=2),
        labels=Known(),
        distance=SquaredError(),
        optimizer=search,
        precision="float64",
        trace_points=0,
    )


def reconstructed(observation: Observation) -> Reconstruction:
    (found,) = attack().reconstruct([observation], context())
    return found


def noisy(
    clean: Observation, parts: Sequence[Clipping | Perturbation], *, seed: int = 7
) -> Observation:
    """Return what is seen after a defense, with its facts."""
    update = ClientUpdate("gradient", clean.tensors, 1)
    for part in parts:
        update, _ = part.on_update(update, seeded(seed))
    facts: tuple[DefenseFacts, ...] = tuple(part.facts() for part in parts)
    return replace(clean, tensors=update.tensors, defense=facts)


def of_a_linear_network(images: Tensor) -> Observation:
    """Return an update that is linear in the image: the weights are zero, the softmax is flat."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    victim = replace(victim_of(SPEC, [1]), inputs=images)
    return observe(sent(model), SPEC, victim)


def test_the_most_likely_image_of_a_linear_network_is_the_posterior_mean() -> None:
    """By Gaussian algebra: (A'A / s^2 + S^-1)^-1 (A'y / s^2 + S^-1 m), y = A x + noise."""
    images, truth = public(), public(1, seed=6)
    clean = of_a_linear_network(truth)
    seen = replace(noisy(clean, [Perturbation(noise=Gaussian(std=STD))]), auxiliary=images)
    found = reconstructed(seen)
    gaussian = ImageGaussian.learnt(images, tied=False)
    identity = torch.eye(16, dtype=torch.float64)
    root = gaussian.image(identity) - gaussian.mean
    precision = torch.linalg.inv(root.T @ root)
    error = torch.tensor([1 / 3, 1 / 3 - 1, 1 / 3], dtype=torch.float64)
    system = torch.kron(error.unsqueeze(1), identity)  # from pixels to the weights' gradient
    observed = seen.tensors["1.weight"].double().flatten()
    wanted = torch.linalg.solve(
        system.T @ system / STD**2 + precision,
        system.T @ observed / STD**2 + precision @ gaussian.mean,
    )
    assert bool(((wanted > 0) & (wanted < 1)).all())
    torch.testing.assert_close(found.inputs.double().flatten(), wanted, atol=2e-3, rtol=0)
    assert found.status is Status.CONVERGED


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("noise", [Gaussian(std=0.05), Laplace(scale=0.04)])
def test_public_images_and_the_law_bring_the_image_nearer(
    noise: Gaussian | Laplace, clips: bool
) -> None:
    parts = [*[Clipping(max_norm=0.8)] * clips, Perturbation(noise=noise)]
    errors = torch.zeros(3)
    for number, truth in enumerate(public(3, seed=6).split(1)):
        seen = noisy(of_a_linear_network(truth), parts, seed=number)
        for place, given in enumerate(({"auxiliary": public()}, {}, {"defense": None})):
            found = reconstructed(replace(seen, **given)).inputs
            errors[place] += (found - truth).square().mean()
    learnt, of_any_picture, unaware = errors.tolist()
    assert learnt < 0.6 * unaware
    assert learnt < of_any_picture < unaware


@dataclass(frozen=True, kw_only=True)
class DpSgdFacts(DefenseFacts):
    """As DP-SGD tells them."""

    max_grad_norm: float
    norm: str = "l2"
    law: str
    noise_scale: float


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_each_images_gradient_is_clipped_by_itself(norm: str) -> None:
    payload, victim = payload_of("dlg_cnn", SPEC), victim_of(SPEC, [1, 2, 0])
    hot = nn.functional.one_hot(victim.labels, 3).float()
    arguments = (payload.forward(), payload.parameters)
    alone = [
        mean_gradient(*arguments, image.unsqueeze(0), label.unsqueeze(0))
        for image, label in zip(victim.inputs, hot, strict=True)
    ]
    order = 2 if norm == "l2" else 1
    flat = [torch.cat([t.flatten() for t in own.values()]) for own in alone]
    middle = float(sorted(f.norm(order) for f in flat)[1])  # one of the three is not clipped
    expected = sum(f * min(1.0, middle / float(f.norm(order))) for f in flat) / 3
    found = ClippedGradient(max_norm=middle, norm=norm, expected=3)(*arguments, victim.inputs, hot)
    torch.testing.assert_close(torch.cat([t.flatten() for t in found.values()]), expected)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_dp_sgd_is_matched_through_its_clipping_and_its_noise(law: str) -> None:
    truth = public(1, seed=6)
    noise = Gaussian(std=0.02) if law == "gaussian" else Laplace(scale=0.02)
    seen = noisy(of_a_linear_network(truth), [Clipping(max_norm=0.8), Perturbation(noise=noise)])
    facts = DpSgdFacts(name="dp_sgd", max_grad_norm=0.8, law=law, noise_scale=0.02)
    as_clipping = reconstructed(replace(seen, auxiliary=public()))
    as_dp_sgd = reconstructed(replace(seen, defense=(facts,), auxiliary=public()))
    torch.testing.assert_close(as_dp_sgd.inputs, as_clipping.inputs, atol=2e-3, rtol=0)


def test_noise_on_what_something_else_was_done_to_is_matched_as_if_it_were_not_known() -> None:
    clean = of_a_linear_network(public(1, seed=6))
    seen = noisy(clean, [Perturbation(noise=Gaussian(std=STD))])
    after_another = (DefenseFacts(name="their own"), *(seen.defense or ()))
    found = reconstructed(replace(seen, defense=after_another, auxiliary=public()))
    unaware = reconstructed(replace(seen, defense=None))
    assert torch.equal(found.inputs, unaware.inputs)


def defended(clean: Observation, parts: dict[str, object]) -> Observation:
    """Return what is seen after parts of a defense, with their facts."""
    defense = Defenses(parts)
    update = ClientUpdate("gradient", clean.tensors, 1)
    sent_on = defense.on_update(update, {}, seeded(7)).update
    return replace(clean, tensors=sent_on.tensors, defense=defense.facts())


CUT: dict[str, dict[str, object]] = {
    "top-k": {"a": TopK(fraction=0.2)},
    "sign": {"a": Sign()},
    "quantise": {"a": Quantise(bits=3)},
    "top-k, quantise": {"a": TopK(fraction=0.4), "b": Quantise(bits=6)},
    "top-k, noise": {"a": TopK(fraction=0.4), "b": Perturbation(noise=Gaussian(std=0.01))},
    "noise, top-k": {"a": Perturbation(noise=Gaussian(std=0.01)), "b": TopK(fraction=0.4)},
    "clipping, top-k": {"a": Clipping(max_norm=0.2), "b": TopK(fraction=0.4)},
}


LIKELIHOODS = {
    "sign": SignLikelihood,
    "quantise": RoundingLikelihood,
    "top-k, quantise": RoundingLikelihood,
    "top-k, noise": SparseNoise,
    **dict.fromkeys(("top-k", "noise, top-k", "clipping, top-k"), NoiseLikelihood),
}


@pytest.mark.parametrize("case", CUT)
def test_a_posterior_keeps_what_is_known_of_the_parts_before_and_after(case: str) -> None:
    """One prior, the public images' own, beside one likelihood in nats, through all parts."""
    seen = defended(of_a_linear_network(public(1, seed=6)), CUT[case])
    engine = attack()
    problem = engine._problem(replace(seen, auxiliary=public()))
    parts, search = adapted(engine._parts, engine._search, problem)
    assert [type(prior) for prior in parts.priors] == [LikelyImages]
    assert parts.likely is not None
    assert torch.equal(parts.likely.mean, ImageGaussian.learnt(public(), tied=False).mean)
    assert (search.determination, search.restart_above) == (False, None)
    through = through_of(parts.distance)
    assert type(through.inner) is LIKELIHOODS[case]
    assert len(through.views) == (case != "top-k, noise" and "top-k" in case)
    assert through.factors.free == ("clipping" in case)


def test_public_images_bring_the_image_nearer_where_noise_is_on_what_was_cut() -> None:
    truth = public(1, seed=6)
    seen = defended(of_a_linear_network(truth), CUT["top-k, noise"])
    told, unaware = (replace(seen, auxiliary=public()), replace(seen, defense=None))
    errors = [float((reconstructed(o).inputs - truth).square().mean()) for o in (told, unaware)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("largest", [False, True])
def test_noise_on_what_was_cut_is_a_mixture_entry_by_entry(largest: bool) -> None:
    true = torch.randn(60, generator=seeded(3)).double()
    noise = NoiseLikelihood(law="gaussian", scale=0.1)
    law = SparseNoise(noise=noise, share=0.25, largest=largest)
    threshold = true.abs().sort().values[45]
    chosen = true.abs() >= threshold if largest else torch.arange(60) % 4 == 0
    sent_on = true * chosen + 0.1 * torch.randn(60, generator=seeded(4)).double()
    share = ((true.abs() - threshold) / 0.1).sigmoid() if largest else torch.tensor(0.25)
    there, absent = Normal(true, 0.1), Normal(torch.zeros(60).double(), 0.1)
    density = share * there.log_prob(sent_on).exp() + (1 - share) * absent.log_prob(sent_on).exp()
    nats = -(density * 0.1 * (2 * torch.pi) ** 0.5).log().sum()
    assert float(law([true], [sent_on])) == pytest.approx(float(nats), rel=1e-9)
    assert float(law([true.flip(0)], [sent_on])) > 3 * float(nats)
    pair = torch.stack([true, true.flip(0)])
    both = vmap(law)([pair], [sent_on.expand(2, -1)])
    assert float(both[0]) == pytest.approx(float(nats), rel=1e-9)


def test_scales_relative_to_the_update_are_read_off_it() -> None:
    truth = public(1, seed=6)
    relative = Perturbation(noise=Gaussian(std=0.1), relative_to="norm")
    seen = noisy(of_a_linear_network(truth), [relative])
    found = reconstructed(replace(seen, auxiliary=public()))
    assert float((found.inputs - truth).square().mean()) < 2e-3


def test_updates_of_other_public_images_are_other_problems() -> None:
    """What was learnt for one update is not used for another's."""
    clean = noisy(of_a_linear_network(public(1, seed=6)), [Perturbation(noise=Gaussian(std=STD))])
    dark, light = (replace(clean, capture_id=str(c), auxiliary=public() * c) for c in (0.2, 1.0))
    together = {r.capture_id: r.inputs for r in attack().reconstruct([dark, light], context())}
    assert torch.allclose(together["1.0"], reconstructed(light).inputs, atol=1e-6)
    assert torch.allclose(together["0.2"], reconstructed(dark).inputs, atol=1e-6)


# Who sees public images --------------------------------------------------------------------------

SMALL = ("attack=scale_free", "preprocess.size=12", "n_images=2", "defense=perturbation")
GRANTED = "threat.knows=[num_examples,local_training,defense,auxiliary]"


def test_public_images_are_held_back_unless_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = payload_of("dlg_cnn", SPEC)
    clean = observe(payload, SPEC, victim_of(SPEC, [1]))
    poison = torch.full((9, *SPEC.shape), torch.nan)
    update = ClientUpdate("gradient", clean.tensors, 1)
    settings = {"capture_id": "v", "payload": payload, "update": update, "spec": SPEC}
    withheld = ThreatModel(knows=["num_examples", "defense"]).observe(**settings, auxiliary=poison)
    assert withheld.auxiliary is None
    granted = ThreatModel(knows=["auxiliary"]).observe(**settings, auxiliary=poison)
    assert granted.auxiliary is poison

    def refuse(*_: object) -> Tensor:
        raise AssertionError("public images were read")

    monkeypatch.setattr(simulation, "public_images", refuse)
    assert experiment(*SMALL, "noise=laplace").source.sample().observation.auxiliary is None


def test_public_images_are_none_of_the_attacked_ones() -> None:
    source = experiment(*SMALL, "noise=laplace", GRANTED, "threat.auxiliary_images=12").source
    seen = [capture.observation.auxiliary for capture in source.captures()]
    assert seen[0] is seen[1]
    assert seen[0].shape == (12, 3, 12, 12)
    truths = torch.cat([source.truth(planned).inputs for planned in source.plan])
    apart = (seen[0].unsqueeze(1) - truths).flatten(2).square().mean(2).sqrt()
    assert float(apart.min()) > 0.02


def test_an_attacked_image_stored_twice_is_not_public() -> None:
    data = experiment(*SMALL, "noise=laplace").data
    twice = replace(data, held_out=data.images)
    few = simulation.public_images(twice, data.selected, 40)
    assert len(few) < len(data.images)
    for index in data.selected:
        assert not bool((few - data.images.load(index)).flatten(1).abs().amax(1).eq(0).any())


def test_captured_updates_have_no_public_images_beside_them() -> None:
    with pytest.raises(ConfigurationError, match="captures hold no public images"):
        FileSource(path="captures").open(ThreatModel(knows=["auxiliary"]), CPU)


def test_a_dataset_without_others_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(ConfigurationError, match=r"phantom has 6 images that no client holds"):
        experiment(*SMALL, "noise=laplace", GRANTED, "dataset.per_class=4")
    with pytest.raises(ConfigurationError, match=r"threat\.auxiliary_images=3"):
        experiment(*SMALL, "noise=laplace", GRANTED, "threat.auxiliary_images=3")
