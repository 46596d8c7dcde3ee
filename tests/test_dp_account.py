"""The account of a federation: targets, budgets, probes, who is hidden, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import config, experiment
from torch import nn

from medpfl.accounting import Mechanism, epsilon
from medpfl.bounds import reconstruction_robustness as rero
from medpfl.defenses import Clipping, Defenses, DpSgd, Perturbation, TopK
from medpfl.defenses.noise import Gaussian, Laplace
from medpfl.errors import ConfigurationError
from medpfl.federated.account import CLIENT_DELTA, Account, Sending, open_account
from medpfl.federated.exposure import Exchange, Exposure, largest
from medpfl.runner import run
from medpfl.source import Planned
from medpfl.training import LocalTraining

POISSON = LocalTraining(algorithm="fedavg", epochs=2, batch_size=10, sampling="poisson", lr=0.1)
EPOCHS = LocalTraining(algorithm="fedavg", epochs=2, batch_size=10, lr=0.1)
SIZES = {0: 101, 1: 101}


def network() -> nn.Module:
    return nn.Linear(3, 2)


def sending(training: LocalTraining = POISSON, **changed) -> Sending:
    probes = tuple(Planned(f"r{r}c{c}", r, c, (f"{c}",)) for r in (0, 3) for c in SIZES)
    told = {
        "training": training,
        "sizes": SIZES,
        "rounds": 5,
        "participants": lambda r: list(SIZES),
        "planned": probes,
        "are_sent": False,
        "order_known": False,
        "statistics": False,
    }
    return Sending(**{**told, **changed})


def account(part: DpSgd | None = None, to: Sending | None = None, **parts) -> Account:
    chosen = parts or {"dp_sgd": part or DpSgd(max_grad_norm=1.0, noise_multiplier=1.5)}
    return open_account(Defenses(chosen), to or sending(), network)


def sampled(sigma: float, q: float, **more) -> Mechanism:
    return Mechanism(noise_multiplier=sigma, sample_rate=q, **more)


def test_rounds_of_poisson_samples_are_accounted_step_by_step() -> None:
    found = account(to=sending(sizes={0: 100, 1: 101})).privacy
    # Of 101 images 22 steps, of 100 a larger rate and 20: which costs more is looked up.
    by_client = [
        epsilon({sampled(1.5, 10 / n): 5 * steps}, delta=1e-5)
        for n, steps in ((100, 20), (101, 22))
    ]
    assert found.epsilon == pytest.approx(max(by_client))
    assert (found.delta, found.accountant, found.unit) == (1e-5, "pld", "image")
    round_ = max(
        epsilon({sampled(1.5, 10 / n): steps}, delta=1e-5) for n, steps in ((100, 20), (101, 22))
    )
    assert found.epsilon_round == pytest.approx(round_)
    assert "Poisson samples at rate 0.099" in found.reason


def test_probes_are_releases_beside_training_and_the_bound_on_attacks_counts_them() -> None:
    found = account().privacy
    # Each image is probed in two rounds, of two certain steps each.
    releases = {sampled(1.5, 10 / 101): 110, sampled(1.5, 1.0): 4}
    assert found.epsilon_attacked == pytest.approx(epsilon(releases, delta=1e-5))
    assert found.epsilon_attacked > found.epsilon
    alone = rero.gaussian(noise_multiplier=1.5, releases=4, kappa=1e-3)
    assert alone < found.rero < 1
    # Updates that clients really send are in the account already, but for those after the last.
    whole = tuple(Planned(f"r{r}c{c}", r, c, ("x",) * SIZES[c]) for r in (0, 3) for c in SIZES)
    sent = account(to=sending(planned=whole, are_sent=True)).privacy
    assert sent.epsilon_attacked == sent.epsilon == found.epsilon
    later = (*whole, Planned("r5c0", 5, 1, ("x",) * 101))
    extra = account(to=sending(planned=later, are_sent=True)).privacy
    more = epsilon({sampled(1.5, 10 / 101): 6 * 22}, delta=1e-5)
    assert extra.epsilon_attacked == pytest.approx(more)


@pytest.mark.parametrize(
    ("training", "known", "releases", "words"),
    [
        (EPOCHS, False, 5 * 2, "no Poisson samples (federation.local.sampling=poisson)"),
        (POISSON, True, 5 * 22, "as the attacker knows the order"),
        (LocalTraining(), False, 5, "nothing is sampled"),
    ],
)
def test_without_poisson_samples_that_are_hidden_the_rate_counts_as_one(
    training, known: bool, releases: int, words: str
) -> None:
    found = account(to=sending(training, order_known=known)).privacy
    assert found.epsilon == pytest.approx(epsilon({sampled(1.5, 1.0): releases}, delta=1e-5))
    assert found.accountant == "exact"
    assert words in found.reason


def test_a_target_is_kept_to_with_the_least_noise() -> None:
    part = DpSgd(max_grad_norm=2.0, target_epsilon=3.0, accountant="rdp")
    found = account(part)
    multiplier = found.defense.dp_sgd.multiplier
    assert found.defense.dp_sgd.facts().noise_scale == pytest.approx(2 * multiplier)
    assert 3.0 * (1 - 1e-3) < found.privacy.epsilon <= 3.0
    # What is measured does not change what it is measured on: probes are on top of the target.
    assert found.privacy.epsilon_attacked > 3.0
    only = sending(sizes={}, rounds=0, planned=(Planned("a", 0, 0, ("x",)),))
    single = account(part, only).privacy
    assert 3.0 * (1 - 1e-3) < single.epsilon == single.epsilon_attacked <= 3.0
    assert single.epsilon_round is None


def test_a_budget_ends_training_and_says_what_is_never_reached() -> None:
    part = DpSgd(max_grad_norm=1.0, noise_multiplier=1.5, budget_epsilon=2.7, accountant="rdp")
    found = account(part)
    within = [
        epsilon({sampled(1.5, 10 / 101): 22 * r}, delta=1e-5, accountant="rdp")
        for r in (found.rounds, found.rounds + 1)
    ]
    assert within[0] == found.privacy.epsilon <= 2.7 < within[1]
    assert found.rounds < 3
    assert {p.round for p in found.planned} == {0}
    assert found.stopped == (
        f"the budget of epsilon 2.7 ends training after round {found.rounds} of 5, and what was "
        "trained by then is kept; updates of round 3 are never reached"
    )
    roomy = account(replace(part, budget_epsilon=50.0))
    assert (roomy.rounds, roomy.stopped, len(roomy.planned)) == (5, None, 4)


@pytest.mark.parametrize(
    ("part", "to", "words"),
    [
        (
            DpSgd(max_grad_norm=1.0, budget_epsilon=0.01, accountant="rdp"),
            sending(),
            "budget_epsilon=0.01: it is spent before anything is sent, as one round of training",
        ),
        (
            DpSgd(max_grad_norm=1.0, budget_epsilon=0.01, accountant="rdp"),
            sending(sizes={}, rounds=0),
            "as one attacked update costs epsilon",
        ),
        (
            DpSgd(max_grad_norm=1.0, noise_multiplier=1.5, budget_epsilon=2.7, accountant="rdp"),
            sending(planned=(Planned("late", 5, 0, ("x",)),)),
            "before any of the updates of capture.rounds is reached",
        ),
        (
            DpSgd(max_grad_norm=1.0, target_epsilon=0.001, target_delta=1e-12),
            sending(LocalTraining(), rounds=1_000_000, participants=lambda r: [0]),
            "defense.dp_sgd.target_epsilon=0.001: no noise multiplier up to 1e+06",
        ),
    ],
)
def test_what_no_noise_or_budget_allows_is_said(part, to, words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        account(part, to)
    assert words in str(refused.value)


CLIP, NOISE = Clipping(max_norm=2.0), Perturbation(noise=Gaussian(std=3.0))


def test_a_client_s_whole_update_is_accounted_apart() -> None:
    found = account(clipping=CLIP, perturbation=NOISE).privacy
    assert (found.unit, found.delta) == ("client", CLIENT_DELTA)
    # Replacing a client's data moves its update by up to twice the norm.
    replaced = {sampled(1.5, 1.0, neighbours="replace"): 5}
    assert found.epsilon == pytest.approx(epsilon(replaced, delta=CLIENT_DELTA))
    assert found.epsilon == pytest.approx(epsilon({sampled(0.75, 1.0): 5}, delta=CLIENT_DELTA))
    assert found.reason.startswith("client-level: hides which images a client has")
    # Two probes beside five rounds, against an update that has no part of the image.
    assert found.rero == pytest.approx(
        rero.gaussian(noise_multiplier=1.5, releases=7, kappa=1e-3), rel=1e-6
    )
    by_layer = Clipping(max_norm=2.0, per="layer")
    layered = account(clipping=by_layer, perturbation=NOISE).privacy
    two = epsilon({sampled(1.5 / math.sqrt(2), 1.0, neighbours="replace"): 5}, delta=CLIENT_DELTA)
    assert layered.epsilon == pytest.approx(two)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"c": CLIP, "t": TopK(fraction=0.1), "p": NOISE}, "TopK changes the update between"),
        ({"c": CLIP, "p": Perturbation(noise=Laplace(scale=1.0))}, "the noise is not Gaussian"),
        ({"c": CLIP, "p": Perturbation(noise=Gaussian(std=1e-9))}, "which hides nobody"),
        ({"d": DpSgd(max_grad_norm=1.0, noise_multiplier=0)}, "no noise is added"),
    ],
)
def test_no_epsilon_where_there_is_no_theorem(parts, words: str) -> None:
    found = account(**parts).privacy
    assert (found.epsilon, found.delta, found.rero) == (math.inf, None, 1.0)
    assert words in found.reason


def test_statistics_that_leave_without_noise_are_no_secret() -> None:
    def with_statistics() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    part = DpSgd(max_grad_norm=1.0)
    found = open_account(Defenses({"d": part}), sending(statistics=True), with_statistics)
    assert found.privacy.epsilon == math.inf
    assert "BatchNorm's statistics leave with the update" in found.privacy.reason
    held = Defenses({"d": DpSgd(max_grad_norm=1.0, target_epsilon=8.0, accountant="rdp")})
    with pytest.raises(ConfigurationError, match="target_epsilon=8: epsilon is infinite: BatchN"):
        open_account(held, sending(statistics=True), with_statistics)
    assert open_account(held, sending(statistics=True), network).privacy.epsilon <= 8.0


def test_laplace_noise_has_an_epsilon_as_well() -> None:
    part = DpSgd(max_grad_norm=1.0, noise_multiplier=8.0, mechanism="laplace")
    found = account(part, sending(sizes={}, rounds=0, training=LocalTraining())).privacy
    assert found.epsilon == pytest.approx(1 / 8, rel=1e-3)  # C1 / b, pure
    assert found.rero == pytest.approx(rero.laplace(epsilon=1 / 8, kappa=1e-3), rel=1e-3)


def test_few_exposures_cover_all() -> None:
    each = [
        Exposure(
            trained=Exchange(rate=1 / n, steps=n),
            rounds=1,
            attacked=Exchange(rate=1.0, steps=n % 3 + 1),
            attacks=1,
        )
        for n in range(1, 60)
    ]
    kept = largest(each)
    assert len(kept) <= 8
    assert all(any(k.covers(e) for k in kept) for e in each)
    assert largest([each[3], each[3]]) == [each[3]]


TINY = (
    *("attack=dlg", "model=dlg_cnn", "dataset.per_class=2", "dataset.kinds=[head]"),
    *("preprocess.size=12", "attack.optimizer.max_steps=1", "attack.trace_points=0"),
)
FEDERATION = (
    *TINY,
    *("federation=fedavg", "federation.clients=2", "federation.rounds=3", "n_images=2"),
    *("federation.local.batch_size=1", "federation.local.sampling=poisson", "defense=dp_sgd"),
)


def test_a_run_says_and_records_its_guarantee_and_where_its_budget_ended(
    tmp_path: Path, capsys
) -> None:
    told = ("defense.dp_sgd.budget_epsilon=7", "capture.rounds=[0,3]", "n_images=null")
    run(config(*FEDERATION, *told), tmp_path / "run")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    record = json.loads((tmp_path / "run/run.json").read_text())["summary"]
    spent = [epsilon({sampled(1.0, 0.5): 2 * r}, delta=1e-5) for r in (1, 2, 3)]
    rounds = sum(cost <= 7 for cost in spent)
    assert rounds in (1, 2)
    assert record["epsilon"] == pytest.approx(spent[rounds - 1])
    assert (record["delta"], record["accountant"]) == (1e-5, "pld")
    assert 0 < record["rero"] < 1
    assert record["defense"]["candidates"] == 1000
    assert record["defense"]["epsilon_attacked"] > record["epsilon"]
    stop = f"the budget of epsilon 7 ends training after round {rounds} of 3"
    assert said.count(stop) == 2  # before the run, and beside its numbers
    assert any(stop in sentence for sentence in record["cautions"])
    assert said.count(f"epsilon {record['epsilon']:.3g} at delta 1e-05 for one image (pld)") == 2
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert kept[-1] == f"round-00{rounds}.safetensors"


def test_what_is_sent_is_noised_as_the_account_has_it() -> None:
    told = ("defense.dp_sgd.target_epsilon=5", "defense.dp_sgd.accountant=rdp")
    parts = experiment(*FEDERATION, *told, "threat.knows=[num_examples,local_training,defense]")
    capture = next(parts.source.captures())
    (facts,) = capture.observation.defense
    assert facts.noise_multiplier == parts.source.account.defense.dp_sgd.multiplier
    bare = experiment(*FEDERATION[:-1], "defense=dp_sgd", "defense.dp_sgd.noise_multiplier=0")
    clean = next(bare.source.captures())
    noise = torch.cat(
        [
            ((t - clean.observation.tensors[n]) / -0.01).flatten().double()
            for n, t in capture.observation.tensors.items()
        ]
    )
    # One step at a rate of 1: clip(g) + N(0, (sigma C)^2), over one expected image.
    expected = facts.scale_in_update(expected=1, steps=1)
    assert float(noise.std()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("model=resnet18", "federation.batch_norm=train_private"), "bn1 (BatchNorm2d) mixes"),
        (("defense.dp_sgd.budget_epsilon=0.1",), "it is spent before anything is sent"),
        (("defense.dp_sgd.max_grad_norm=0",), "max_grad_norm=0: must be at least 1e-09"),
        (("defense=[perturbation,dp_sgd]", "noise=gaussian"), "list dp_sgd before perturbation"),
        (("federation.local.batch_size=null",), "sampling=poisson draws the images of every step"),
    ],
)
def test_mistakes_are_said_before_any_compute(settings, words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        _ = experiment(*FEDERATION, *settings).source.plan
    assert words in str(refused.value)
