"""DP-SGD in updates: what the record says of it, and what attackers make who know of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import CPU, context, payload_of, seeded, spec_of, victim_of
from test_contracts import attack_of

from medpfl.aggregates import Aggregate
from medpfl.attacks.adaptation import adapted, matched_through
from medpfl.attacks.adaptation.dp_sgd import ClippedGradient, through_dp_sgd
from medpfl.attacks.gradient_matching import GradientMatching
from medpfl.defenses import Clipping, Defenses, DpSgd, Gaussian, Perturbation, SecureAggregation
from medpfl.defenses.none import NoDefense
from medpfl.defenses.perturbation import snr_db
from medpfl.federated import Client
from medpfl.federated.sending import Sender
from medpfl.metrics import ssim_per_image
from medpfl.threat import ThreatModel
from medpfl.training import LocalTraining
from medpfl.types import Observation, Truth

SPEC = spec_of(1, 12, 12, num_classes=3)
NETWORK = payload_of("dlg_cnn", SPEC)
CLIENT = Client(spec=SPEC, device=CPU, training=LocalTraining())


def clipped(labels: list[int], *, noise: float, seed: int = 0) -> tuple[Observation, Truth]:
    """Return what is seen of images that are clipped to a tenth, with noise of so much of that."""
    truth = victim_of(SPEC, labels, seed=seed)
    part = DpSgd(max_grad_norm=0.1 * norm_of_one(), noise_multiplier=0)
    update = Sender(client=CLIENT, defense=Defenses({"": part}), seed=0).send(
        "a", truth, NETWORK, {}
    )
    scale = noise * part.max_grad_norm
    stream = seeded(9)
    tensors = {
        name: tensor + scale / len(labels) * torch.randn(tensor.shape, generator=stream)
        for name, tensor in update.update.tensors.items()
    }
    seen = ThreatModel(knows=["num_examples", "local_training", "defense"]).observe(
        capture_id=f"round-000/client-{seed}",
        payload=NETWORK,
        update=replace(update.update, tensors=tensors),
        spec=SPEC,
        defense=(replace(part.facts(), noise_multiplier=noise, noise_scale=scale),),
    )
    return seen, truth


def norm_of_one() -> float:
    _, facts = CLIENT.update(victim_of(SPEC, [1]), NETWORK)
    return facts.gradient_norm


def attack(*settings: str) -> GradientMatching:
    short = ("attack.restarts=1", "attack.determination=false", "attack.trace_points=0")
    return attack_of("scale_free", *short, *settings)


@pytest.mark.parametrize(("labels", "noise"), [([2], 1e-6), ([0, 2], 1e-6)])
def test_where_there_is_next_to_no_noise_images_come_back_as_they_do_undefended(labels, noise):
    seen, truth = clipped(labels, noise=noise)
    (found,) = attack("attack.optimizer.max_steps=500").reconstruct([seen], context())
    assert sorted(found.labels.tolist()) == labels
    assert float(ssim_per_image(truth.inputs, found.inputs).min()) > 0.95


def labels_of(attacker: GradientMatching, seen: Observation) -> list[int]:
    problem = attacker._problem(seen)
    parts, _ = adapted(attacker._parts, attacker._search, problem)
    return sorted(parts.labels.labels(seen).tolist())


def test_labels_are_counted_through_clipping_and_noise_that_hide_them_from_the_bias():
    batches = [[0, 2], [1, 1], [0, 1, 1], [0, 2, 2, 2], [1], [0, 1, 2, 2]]
    told, untold, attacker = [], [], attack()
    for seed, labels in enumerate(batches):
        seen, _ = clipped(labels, noise=0.02, seed=seed)
        told.append(labels_of(attacker, seen))
        untold.append(labels_of(attacker, replace(seen, defense=None)))
    assert told == batches
    assert untold != batches


def test_a_step_divides_by_the_images_that_are_expected_and_may_have_none():
    truth = victim_of(SPEC, [0, 1, 2])
    hot = torch.eye(3)
    forward, given = NETWORK.forward(), NETWORK.parameters
    part = DpSgd(max_grad_norm=0.3, noise_multiplier=0)
    theirs = Defenses({"": part}).gradient(NETWORK, seeded(), 5)
    mine = ClippedGradient(max_norm=0.3, norm="l2", expected=5)
    for taken in (slice(3), slice(1), slice(0)):
        pairs = (truth.inputs[taken], hot[taken])
        sent = theirs(forward, given, *pairs)
        for name, tensor in mine(forward, given, *pairs).items():
            torch.testing.assert_close(tensor, sent[name], rtol=1e-4, atol=1e-6)


def test_the_images_of_a_step_are_those_that_the_local_batch_has_whatever_its_rest():
    local = LocalTraining(algorithm="fedavg", batch_size=2, lr=0.1)
    seen, _ = clipped([0, 1, 2], noise=0.01)
    seen = replace(seen, kind="delta", local_training=local.in_turn(3))
    attacker = attack()
    problem = attacker._problem(attacker._read(seen))
    parts, _ = through_dp_sgd(seen.defense[0], attacker._parts, attacker._search, problem)
    assert [len(batch) for batch in problem.update.batches] == [2, 1]
    assert parts.gradient.expected == 2
    # One pass in two steps: a half of the sum over two.
    assert parts.labels.share == pytest.approx(1 / 4)
    assert parts.distance.scale == pytest.approx(seen.defense[0].noise_scale / 2 / 2**0.5)


STEPS = LocalTraining(algorithm="fedavg", batch_size=2, lr=0.3)


@pytest.mark.parametrize(
    ("training", "unit"), [(LocalTraining(), 1 / 3), (STEPS, 0.3 * 2**0.5 / 2)], ids=["one", "two"]
)
def test_the_record_says_the_norm_without_a_defense_and_the_noise_that_was_drawn(training, unit):
    client = replace(CLIENT, training=training)
    truth = victim_of(SPEC, [0, 1, 2])
    sents = []
    for noise in (0.0, 0.5):
        part = DpSgd(max_grad_norm=0.01, noise_multiplier=noise)
        sender = Sender(client=client, defense=Defenses({"": part}), seed=0)
        sents.append(sender.send("a", truth, NETWORK, {}))
    plain, noisy = sents
    alone = Sender(client=client, defense=Defenses({"": NoDefense()}), seed=0)
    norm = alone.send("a", truth, NETWORK, {}).facts.gradient_norm
    assert plain.facts.gradient_norm == noisy.facts.gradient_norm == norm
    assert (plain.facts.noise_scale, plain.facts.snr_db) == (None, None)
    assert noisy.facts.noise_scale == pytest.approx(0.5 * 0.01 * unit)
    noise = [noisy.update.tensors[n] - t for n, t in plain.update.tensors.items()]
    # Of several steps, the later ones also begin elsewhere for the noise of those before.
    tolerance = 1e-3 if training.kind == "gradient" else 0.5
    ratio = snr_db(plain.update.tensors.values(), noise)
    assert noisy.facts.snr_db == pytest.approx(ratio, abs=tolerance)
    assert float(torch.cat([t.flatten() for t in noise]).std()) == pytest.approx(
        noisy.facts.noise_scale, rel=0.1
    )


def test_noise_that_does_not_add_up_is_not_told():
    client = replace(CLIENT, training=replace(STEPS, optimizer="adam"))
    part = DpSgd(max_grad_norm=0.01, noise_multiplier=0.5)
    sender = Sender(client=client, defense=Defenses({"": part}), seed=0)
    facts = sender.send("a", victim_of(SPEC, [0, 1, 2]), NETWORK, {}).facts
    assert (facts.noise_scale, facts.snr_db) == (None, None)


def test_gaussian_noise_alone_before_a_sum_is_known_noise_on_the_mean():
    noise = Perturbation(noise=Gaussian(std=0.2)).facts()
    sums = SecureAggregation().facts()
    seen, _ = clipped([0, 1, 2, 0], noise=0)
    seen = replace(seen, aggregate=Aggregate(clients=2, sizes=(3, 1)), defense=(noise, sums))
    (found,) = matched_through(seen)
    # Three quarters of one client's noise, and a quarter of another's.
    draws = torch.randn(2, 10**5, generator=seeded()).mul(0.2)
    assert found.scale == pytest.approx(float((draws[0] * 0.75 + draws[1] * 0.25).std()), rel=0.01)
    assert replace(found, scale=0.2) == noise
    assert matched_through(replace(seen, aggregate=None)) == (noise, sums)
    for others in (
        (Clipping(max_norm=1.0).facts(), noise, sums),
        (replace(noise, relative_to="norm"), sums),
        (replace(noise, law="laplace"), sums),
        (sums,),
        None,
    ):
        assert matched_through(replace(seen, defense=others)) == ()
