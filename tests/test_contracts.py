"""What every attack and every defense that a configuration names must keep to."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch
from helpers import (
    CONF,
    CPU,
    SEARCHES,
    config,
    context,
    payload_of,
    seeded,
    sent,
    spec_of,
    victim_of,
)
from torch import Tensor, nn

from medpfl.attacks import Attack
from medpfl.attacks.base import Selective
from medpfl.batch_norm import BatchNormPolicy
from medpfl.defenses import Defenses
from medpfl.defenses.configured import defenses_at
from medpfl.errors import ConfigurationError
from medpfl.federated import Client
from medpfl.federated.sending import Sender
from medpfl.image_score import DEFENSE_COLUMNS
from medpfl.settings.build import instantiate
from medpfl.threat import ThreatModel
from medpfl.training import LocalTraining
from medpfl.types import ClientUpdate, DataSpec, Observation, Reconstruction, ServerPayload, Truth

SPEC = spec_of(1, 12, 12, num_classes=3)
SHORT = ("attack.optimizer.max_steps=2", "attack.trace_points=2")
FEW = "attack.optimizer.max_iter=4"
# What an attack needs beside that to be short.
SHORTER = {
    **dict.fromkeys(("cpl", "dlg", "idlg"), (FEW,)),
    "gradinv": ("attack.restarts=2", "attack.projections.median_filter.every=1"),
    "gradinv_trained": ("attack.restarts=2", "model.weights=null"),
    "scale_free": ("attack.restarts=2",),
    "second_order": ("attack.restarts=2", "attack.polish.max_steps=1", "attack.polish.solver=cg"),
}
ATTACKS = SEARCHES
# Updates side by side are summed in another order, which float32 searches magnify.
PRECISE = "attack.precision=float64"
DEFENSES = sorted(path.stem for path in (CONF / "defense").glob("[!_]*.yaml"))
NOISES = sorted(path.stem for path in (CONF / "noise").glob("[!_]*.yaml"))
NETWORKS = ("dlg_cnn", "sigmoid", "batch_norm")
TRAININGS = (
    LocalTraining(algorithm="fedavg", lr=0.01),
    LocalTraining(algorithm="fedavg", epochs=2, batch_size=1, lr=0.01),
)


@cache
def attack_of(name: str, *settings: str) -> Attack:
    return instantiate(config(f"attack={name}", *SHORT, *SHORTER.get(name, ()), *settings).attack)


def payload(
    network: str, *, seed: int = 0, batch_norm: BatchNormPolicy = "eval_public"
) -> ServerPayload:
    if network == "dlg_cnn":
        return payload_of(network, SPEC, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle: list[nn.Module] = [nn.BatchNorm2d(4)] if network == "batch_norm" else []
        bend = nn.Tanh() if network == "tanh" else nn.Sigmoid()
        layers = [nn.Conv2d(1, 4, 5, stride=2), *middle, bend, nn.Flatten(), nn.Linear(64, 3)]
        return sent(nn.Sequential(*layers), batch_norm=batch_norm)


def granting(attack: Attack) -> ThreatModel:
    """Return the threat model that grants what an attack asks for, and no more."""
    return ThreatModel(knows=sorted(attack.requires))


def usual(attack: Attack, network: ServerPayload) -> LocalTraining:
    """Return FedSGD, or two steps for an attack that says that it cannot use a gradient."""
    names = list(network.parameters)
    if isinstance(attack, Selective):
        try:
            attack.check_update(network.model, None, "gradient", names)
        except ConfigurationError as error:
            assert "federation=fedavg" in str(error)  # noqa: PT017
            return LocalTraining(algorithm="fedavg", epochs=2, lr=0.01)
    return LocalTraining()


def observation(
    attack: Attack,
    network: ServerPayload,
    *,
    images: int = 1,
    seed: int = 0,
    training: LocalTraining | None = None,
    threat: ThreatModel | None = None,
) -> Observation:
    client = Client(spec=SPEC, device=CPU, training=training or usual(attack, network))
    victim = victim_of(SPEC, [n % 3 for n in range(seed, seed + images)], seed=seed)
    update, _ = client.update(victim, network, seeded(seed))
    return (threat or granting(attack)).observe(
        capture_id=f"round-000/client-{seed}", payload=network, update=update, spec=SPEC
    )


def attacked(attack: Attack, seen: Iterable[Observation]) -> dict[str, Reconstruction]:
    """Attack a stream; every capture must be answered once."""
    captures = list(seen)
    found = list(attack.reconstruct(iter(captures), context()))
    assert sorted(r.capture_id for r in found) == sorted(c.capture_id for c in captures)
    return {r.capture_id: r for r in found}


def takes(attack: Attack, network: ServerPayload, images: int) -> bool:
    """Say whether an attack goes with so many images; one that does not must say so in words."""
    try:
        attack.check(network.model, images)
    except ConfigurationError as error:
        assert f"{images} images are behind each" in str(error)  # noqa: PT017
        return False
    return True


def check_form(found: Reconstruction, spec: DataSpec, images: int) -> None:
    """What is handed in has the form that `Reconstruction` promises."""
    shape = (images, *spec.shape)
    assert (found.inputs.shape, found.inputs.dtype) == (shape, torch.float32)
    assert bool(found.inputs.isfinite().all())
    assert 0 <= float(found.inputs.min()) <= float(found.inputs.max()) <= 1
    assert (found.labels.shape, found.labels.dtype) == ((images,), torch.int64)
    assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < spec.num_classes
    if found.trace is not None:
        points = len(found.trace.steps)
        assert found.trace.inputs.shape == (points, *shape)
        assert found.trace.objective.shape == (points,)
        assert 0 <= float(found.trace.inputs.min()) <= float(found.trace.inputs.max()) <= 1


def same_bytes(one: Reconstruction, other: Reconstruction) -> None:
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.labels, other.labels)
    assert one.objective == other.objective or one.objective != one.objective
    assert (one.status, one.steps, one.evaluations) == (
        other.status,
        other.steps,
        other.evaluations,
    )


def snapshot(seen: Sequence[Observation]) -> list[Tensor]:
    """Copy every tensor that an attack is handed."""
    held = []
    for o in seen:
        own = (*o.payload.model.parameters(), *o.payload.model.buffers())
        granted = () if o.labels is None else (o.labels,)
        mappings = (o.tensors, o.payload.parameters, o.payload.buffers)
        held += [t.detach().clone() for m in mappings for t in m.values()]
        held += [t.detach().clone() for t in (*own, *granted)]
    return held


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_handed_in_follows_from_the_observation_and_changes_nothing(name, network):
    attack = attack_of(name)
    policy: BatchNormPolicy = "train_private" if network == "batch_norm" else "eval_public"
    model = payload(network, batch_norm=policy)
    images = 2 if takes(attack, model, 2) else 1
    seen = [observation(attack, model, images=images, seed=seed) for seed in range(2)]
    nothing = {n: torch.zeros_like(t) for n, t in seen[0].tensors.items()}
    seen.append(replace(seen[0], capture_id="round-001/client-0", tensors=nothing))
    before, mode = snapshot(seen), model.model.training
    torch.manual_seed(1)
    first = attacked(attack, seen)
    torch.manual_seed(2)
    second = attacked(attack, seen)
    assert all(map(torch.equal, before, snapshot(seen)))
    assert model.model.training is mode
    for capture_id, found in first.items():
        check_form(found, SPEC, images)
        same_bytes(found, second[capture_id])


def alone_and_together(attack: Attack, seen: Sequence[Observation]) -> None:
    """Whatever is beside it in the stream, an update is attacked as if it were alone."""
    together = attacked(attack, seen)
    for one in seen:
        alone, found = attacked(attack, [one])[one.capture_id], together[one.capture_id]
        assert found.status is alone.status
        assert found.objective == pytest.approx(alone.objective, rel=1e-3, abs=1e-9, nan_ok=True)
        torch.testing.assert_close(found.inputs, alone.inputs, rtol=0, atol=1e-4)
        assert torch.equal(found.labels, alone.labels)


@pytest.mark.parametrize("name", ATTACKS)
def test_updates_of_mixed_sizes_are_each_attacked_as_if_alone(name):
    attack, model = attack_of(name, PRECISE), payload("dlg_cnn")
    if takes(attack, model, 2):
        sizes = enumerate((1, 2, 1))
        alone_and_together(attack, [observation(attack, model, images=n, seed=s) for s, n in sizes])


@pytest.mark.parametrize("networks", ["AAB", "ABA", "ABB"])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_update_is_attacked_with_the_network_it_was_sent(name, networks):
    attack = attack_of(name, PRECISE)
    payloads = {letter: payload("dlg_cnn", seed=seed) for seed, letter in enumerate("AB")}
    seen = [observation(attack, payloads[n], seed=seed) for seed, n in enumerate(networks)]
    alone_and_together(attack, seen)


@pytest.mark.parametrize("name", ATTACKS)
def test_networks_that_only_look_alike_are_told_apart(name):
    """The same class, the same parameters: what lies between them differs."""
    attack, pairs = attack_of(name, PRECISE), itertools.product(("sigmoid", "tanh"), range(2))
    payloads = [payload(network) for network, _ in pairs]
    assert len({str({n: p.shape for n, p in sent.parameters.items()}) for sent in payloads}) == 1
    alone_and_together(attack, [observation(attack, p, seed=s) for s, p in enumerate(payloads)])


@pytest.mark.parametrize("known", ["full", "partial", "none"])
@pytest.mark.parametrize("training", TRAININGS, ids=["one step", "steps"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_weight_difference_is_attacked_or_refused_in_words(name, training, known):
    attack, model = attack_of(name), payload("sigmoid")
    images = 2 if takes(attack, model, 2) else 1
    threat = replace(granting(attack), local_training=known)
    seen = observation(attack, model, images=images, training=training, threat=threat)
    assert seen.kind == "delta"
    if isinstance(attack, Selective):
        try:
            attack.check_update(model.model, seen.local_training, "delta", list(seen.tensors))
        except ConfigurationError as error:
            assert known == "none"
            assert str(error).startswith("attack.")  # noqa: PT017
            assert "Use" in str(error)  # noqa: PT017
            return
    (found,) = attacked(attack, [seen]).values()
    check_form(found, SPEC, images)


def poisoned(seen: Observation, update: ClientUpdate, attack: Attack) -> Observation:
    """Observe again an update in which all that is not granted is nonsense.

    The module that came with the payload is an architecture: its own numbers are nobody's business.
    """
    withheld = {
        "labels": torch.full_like(torch.as_tensor(update.labels), 10**6),
        "local_training": LocalTraining(algorithm="fedavg", epochs=7, lr=1e6),
        "buffers": {n: torch.full_like(b, 99) for n, b in seen.payload.buffers.items()},
        "num_examples": 10**6,
    }
    for name in attack.requires:
        withheld.pop(name, None)
    model = copy.deepcopy(seen.payload.model).train(not seen.payload.model.training)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().fill_(float("nan") if tensor.is_floating_point() else -1)
    return granting(attack).observe(
        capture_id=seen.capture_id,
        payload=replace(seen.payload, model=model),
        update=replace(update, **withheld),
        spec=SPEC,
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_not_granted_changes_nothing(name, network):
    attack, model = attack_of(name), payload(network, batch_norm="train_shared")
    images = 2 if takes(attack, model, 2) else 1
    victim: Truth = victim_of(SPEC, list(range(images)))
    client = Client(spec=SPEC, device=CPU, training=usual(attack, model))
    update, _ = client.update(victim, model, seeded())
    seen = granting(attack).observe(
        capture_id="round-000/client-0", payload=model, update=update, spec=SPEC
    )
    (fair,) = attacked(attack, [seen]).values()
    (unfair,) = attacked(attack, [poisoned(seen, update, attack)]).values()
    same_bytes(fair, unfair)
    victim.inputs.fill_(float("nan"))
    (later,) = attacked(attack, [seen]).values()
    same_bytes(fair, later)


def composed() -> list[tuple[str, str]]:
    """Return the defenses and noises that go together."""
    pairs = []
    for pair in itertools.product(DEFENSES, NOISES):
        try:
            defense_of(*pair)
        except ConfigurationError:
            continue
        pairs.append(pair)
    return pairs


def defense_of(name: str, noise: str) -> Defenses:
    return defenses_at(config(f"defense={name}", f"noise={noise}"))


PAIRS = composed()
KINDS: dict[str, Callable[[], ClientUpdate]] = {
    "gradient": lambda: an_update("gradient"),
    "delta": lambda: an_update("delta"),
}


def an_update(kind: str) -> ClientUpdate:
    shapes = {"scalar": (), "bias": (3,), "weight": (4, 3, 5, 5), "nothing": (0, 2)}
    tensors = {n: torch.randn(s, generator=seeded(1)) for n, s in shapes.items()}
    training = LocalTraining(algorithm="fedsgd" if kind == "gradient" else "fedavg")
    return ClientUpdate(
        kind=training.kind,
        tensors={**tensors, "wide": tensors["bias"].double()},
        num_examples=2,
        local_training=training,
        buffers={"mean": torch.ones(3)},
        labels=torch.tensor([0, 1]),
    )


def test_every_defense_and_every_noise_is_in_the_table():
    assert {defense for defense, _ in PAIRS} == set(DEFENSES)
    assert {noise for _, noise in PAIRS} == set(NOISES)


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(t, other[n]) for n, t in one.items())


def check_form_of(sent: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    assert list(sent) == list(like)
    for n, tensor in sent.items():
        assert (tensor.shape, tensor.dtype) == (like[n].shape, like[n].dtype)
        assert bool(tensor.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "noise"), PAIRS)
def test_a_defended_update_is_still_one_of_the_network(name, noise, kind):
    defense, update = defense_of(name, noise), KINDS[kind]()
    before = {n: t.clone() for n, t in update.tensors.items()}
    first = defense.on_update(update, {}, seeded(3))
    again = defense.on_update(update, {}, seeded(3))
    assert same_tensors(update.tensors, before)
    check_form_of(first.update.tensors, before)
    assert same_tensors(first.update.tensors, again.update.tensors)
    assert replace(first, update=update, state={}) == replace(again, update=update, state={})
    assert replace(first.update, tensors={}) == replace(update, tensors={})
    assert first.facts.keys() <= set(DEFENSE_COLUMNS)
    assert (defense.noise is None) == (noise == "none" and name != "dp_sgd")
    assert all(line.startswith(name) for line in defense.describe())


@pytest.mark.parametrize(("name", "noise"), PAIRS)
def test_what_a_defense_keeps_is_one_clients_and_left_as_it_was(name, noise):
    defense, update = defense_of(name, noise), an_update("gradient")
    kept = defense.on_update(update, {}, seeded(3)).state
    before = copy.deepcopy(kept)
    later = defense.on_update(update, kept, seeded(4))
    check_form_of(later.update.tensors, update.tensors)
    assert kept.keys() == before.keys() == later.state.keys()
    for part, tensors in kept.items():
        assert same_tensors(tensors, before[part])
        assert all(bool(t.isfinite().all()) for t in later.state[part].values())


@pytest.mark.parametrize(("name", "noise"), PAIRS)
def test_what_an_attacker_may_know_is_plain_and_nothing_drawn(name, noise):
    facts = defense_of(name, noise).facts()
    assert facts == defense_of(name, noise).facts()
    assert [fact.name for fact in facts] == ([] if name == "none" else [name])
    for fact in facts:
        plain = asdict(fact)
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert all(isinstance(v, str | int | float | None) for v in plain.values())


@pytest.mark.parametrize("training", [LocalTraining(), *TRAININGS])
@pytest.mark.parametrize(("name", "noise"), PAIRS)
def test_a_defended_client_sends_an_update_of_its_network(name, noise, training):
    model, truth = payload("dlg_cnn"), victim_of(SPEC, [0, 2])
    defense = defense_of(name, noise)
    defense.check(model.model, SPEC)
    client = Client(spec=SPEC, device=CPU, training=training)
    one, other = (
        Sender(client=client, defense=defense, seed=seed).send("a", truth, model, {})
        for seed in (0, 0)
    )
    assert same_tensors(one.update.tensors, other.update.tensors)
    check_form_of(one.update.tensors, model.parameters)
    assert one.update.kind == training.kind
