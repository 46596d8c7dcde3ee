"""One policy of BatchNorm, kept by client, server, attack and capture file alike."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from capture_files import RESNET, edit
from helpers import CPU, config, context, experiment, payload_of, seeded, sent, spec_of, victim_of
from torch import Tensor, nn
from torch.nn import functional

from medpfl.attacks.distances import Cosine
from medpfl.attacks.labels import Joint
from medpfl.attacks.matching import MatchingObjective, Targets, flatten
from medpfl.attacks.reading import as_gradient, update_map_of
from medpfl.attacks.unknowns import Unknowns
from medpfl.batch_norm import IN_WORDS, POLICIES, BatchNormPolicy, of_the_pair
from medpfl.captures import Defense, load_captures, read_captures, write_capture
from medpfl.errors import ConfigurationError, DataError
from medpfl.federated import Client
from medpfl.settings.build import instantiate
from medpfl.threat import CAPABILITIES, ThreatModel
from medpfl.training import LocalTraining
from medpfl.types import ClientUpdate, Observation, ServerPayload, Truth

SPEC = spec_of(3, 32, 32, num_classes=4)
TRUTH = victim_of(SPEC, [0, 1, 2, 3])
ALL = list(CAPABILITIES)
TRAININGS = {
    "gradient": LocalTraining(),
    "steps": LocalTraining(algorithm="fedavg", epochs=2, batch_size=2, lr=0.05, momentum=0.5),
}
PAIRS = {
    ("eval", "private"): "eval_public",
    ("eval", "shared"): "eval_public",
    ("train", "private"): "train_private",
    ("train", "shared"): "train_shared",
}


class Tiny(nn.Module):
    """A network of somebody's own, with statistics unlike fresh ones."""

    def __init__(self, in_channels: int = 3, num_classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 5, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 49, num_classes)
        nn.init.constant_(self.norm.running_mean, 0.3)
        nn.init.constant_(self.norm.running_var, 0.5)

    def forward(self, inputs_norm: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(inputs_norm)).sigmoid().flatten(1))


TINY = {"_target_": f"{__name__}.Tiny"}
MODELS = {"tiny": TINY, "resnet18": RESNET}


@cache
def payload(network: str, batch_norm: BatchNormPolicy) -> ServerPayload:
    if network == "resnet18":
        return payload_of(network, SPEC, batch_norm=batch_norm)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return sent(Tiny(), batch_norm=batch_norm)


def updated(network: ServerPayload, training: str = "steps") -> ClientUpdate:
    client = Client(spec=SPEC, device=CPU, training=TRAININGS[training])
    return client.update(TRUTH, network, seeded(1))[0]


def observed(
    network: ServerPayload, update: ClientUpdate, knows: list[str] | None = None
) -> Observation:
    threat = ThreatModel(knows=ALL if knows is None else knows)
    return threat.observe(capture_id="v", payload=network, update=update, spec=SPEC)


def objective(seen: Observation, truth: Truth) -> float:
    """Return the cosine distance at the true images, as an attack computes it."""
    read, images = as_gradient(seen), len(truth.labels)
    matching = MatchingObjective(
        payload=seen.payload,
        unknowns=Unknowns(SPEC, images, SPEC.num_classes, joint_labels=False),
        distance=Cosine(),
        dtype=torch.float64,
        chunk=1,
        update=update_map_of(seen),
    )
    targets = Targets(
        gradient=flatten(read.tensors).double().unsqueeze(0),
        labels=functional.one_hot(truth.labels, SPEC.num_classes).double().unsqueeze(0),
        parameters=torch.empty(1, 0),
        buffers=torch.empty(1, 0),
        order=torch.empty(1, 0, dtype=torch.int64),
    )
    value, _ = matching(SPEC.normalise(truth.inputs).double().flatten().unsqueeze(0), targets)
    return float(value)


# The client's update and the attack's map ---------------------------------------------------------


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("batch_norm", POLICIES)
@pytest.mark.parametrize("network", MODELS)
def test_the_update_is_what_the_attacks_map_computes_on_the_true_images(
    network: str, batch_norm: BatchNormPolicy, training: str
) -> None:
    model = payload(network, batch_norm)
    update = updated(model, training)
    seen = observed(model, update)
    trained = update_map_of(seen).train(
        seen.payload.forward(),
        seen.payload.parameters,
        SPEC.normalise(TRUTH.inputs),
        functional.one_hot(TRUTH.labels, SPEC.num_classes).float(),
    )
    for name, tensor in update.tensors.items():
        after = trained.parameters[name] - model.parameters[name]
        assert torch.equal(tensor, trained.moved[name] if training == "gradient" else after)
    # Steps of a fresh ResNet-18 on batches of two magnify 1e-7 in the images to a distance of 0.04.
    if (network, training) != ("resnet18", "steps") or not model.training:
        assert objective(seen, TRUTH) < 1e-5


@pytest.mark.parametrize("network", MODELS)
def test_an_attack_under_another_policy_misses_the_update(network: str) -> None:
    """What the tests above hold to zero is not zero of itself."""
    for own, other in (("eval_public", "train_private"), ("train_shared", "eval_public")):
        update = updated(payload(network, own), "gradient")
        assert objective(observed(payload(network, other), update), TRUTH) > 1e-3


# What leaves the client ---------------------------------------------------------------------------


def statistics_by_torch(model: ServerPayload, training: LocalTraining) -> dict[str, Tensor]:
    """Return the buffers after torch's own training loop."""
    own = copy.deepcopy(model.model).train()
    optimizer = torch.optim.SGD(own.parameters(), lr=training.lr, momentum=training.momentum)
    for batch in training.order or ():
        optimizer.zero_grad()
        chosen = list(batch)
        logits = own(SPEC.normalise(TRUTH.inputs[chosen]))
        torch.autograd.backward(functional.cross_entropy(logits, TRUTH.labels[chosen]))
        optimizer.step()
    return dict(own.named_buffers())


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("batch_norm", POLICIES)
@pytest.mark.parametrize("network", MODELS)
def test_running_statistics_leave_under_train_shared_alone(
    network: str, batch_norm: BatchNormPolicy, training: str
) -> None:
    model = payload(network, batch_norm)
    before = {name: buffer.clone() for name, buffer in model.buffers.items()}
    update = updated(model, training)
    assert all(torch.equal(model.buffers[name], buffer) for name, buffer in before.items())
    assert observed(model, update, ["num_examples"]).buffers is None
    seen = observed(model, update).buffers
    if batch_norm != "train_shared":
        assert update.buffers is None
        assert seen is None
        return
    assert seen is not None
    assert update.local_training is not None
    expected = statistics_by_torch(model, update.local_training)
    assert seen.keys() == before.keys()
    for name, buffer in expected.items():
        torch.testing.assert_close(seen[name], buffer, rtol=1e-4, atol=1e-5)
        assert not torch.equal(seen[name], before[name])


def test_statistics_that_do_not_leave_do_not_depend_on_the_policy_of_sharing() -> None:
    private, shared = (updated(payload("tiny", p)) for p in ("train_private", "train_shared"))
    assert all(torch.equal(t, shared.tensors[name]) for name, t in private.tensors.items())


SMALL = ("attack=dlg", "model=resnet18", "dataset.per_class=2", "preprocess.size=33")


@pytest.mark.parametrize("batch_norm", POLICIES)
def test_the_setting_reaches_client_attacker_and_global_model(batch_norm: BatchNormPolicy) -> None:
    parts = experiment(
        *SMALL,
        f"federation.batch_norm={batch_norm}",
        "dataset.kinds=[head]",
        "federation=fedavg",
        "federation.clients=2",
        "federation.rounds=1",
        "capture.rounds=[0]",
        "capture.clients=[0]",
        "n_images=1",
        "threat.knows=[num_examples,local_training,labels,buffers]",
    )
    shared = batch_norm == "train_shared"
    (capture,) = parts.source.captures()
    assert capture.observation.payload.batch_norm == batch_norm
    assert (capture.observation.buffers is not None) == shared
    (_, before), (_, after) = parts.source._models([], None)
    assert after.batch_norm == batch_norm
    mean = "bn1.running_mean"
    assert torch.equal(before.buffers[mean], after.buffers[mean]) != shared
    told = [line for line in parts.source.describe().federation if "BatchNorm" in line]
    assert told == ([] if batch_norm == "eval_public" else [f"BatchNorm: {IN_WORDS[batch_norm]}"])


def test_an_attack_that_needs_statistics_is_refused_where_none_leave(monkeypatch) -> None:
    monkeypatch.setattr(Joint, "requires", frozenset({"buffers"}))
    told = (*SMALL, "threat.knows=[num_examples,buffers]", "n_images=1")
    for policy in ("eval_public", "train_private"):
        with pytest.raises(ConfigurationError, match=rf"'buffers' .*batch_norm={policy} none do"):
            experiment(*told, f"federation.batch_norm={policy}")
    experiment(*told, "federation.batch_norm=train_shared")


# Captures -----------------------------------------------------------------------------------------


def captured(folder: Path, network: str, update: ClientUpdate, /, **more: Any) -> Path:
    model = payload(network, "eval_public")
    return write_capture(
        folder,
        **{
            "round": 0,
            "client": 0,
            "kind": update.kind,
            "update": {**update.tensors, **(update.buffers or {})},
            "sent": {**model.parameters, **model.buffers},
            "model": MODELS[network],
            "spec": SPEC,
            "local_training": update.local_training,
            "truth": TRUTH,
            **more,
        },
    )


def the_one(folder: Path) -> Any:
    (capture,) = load_captures(read_captures(folder, trusted=[TINY["_target_"]]))
    return capture


@pytest.mark.parametrize("batch_norm", POLICIES)
@pytest.mark.parametrize("network", MODELS)
def test_a_capture_keeps_the_policy_and_the_attacks_objective(
    tmp_path: Path, network: str, batch_norm: BatchNormPolicy
) -> None:
    model = payload(network, batch_norm)
    update = updated(model)
    captured(tmp_path, network, update, batch_norm=batch_norm)
    capture = the_one(tmp_path)
    assert capture.payload.batch_norm == batch_norm
    assert (capture.update.buffers is not None) == (batch_norm == "train_shared")
    mine, read = observed(model, update), observed(capture.payload, capture.update)
    assert objective(read, TRUTH) == objective(mine, TRUTH)
    for name, buffer in (mine.buffers or {}).items():
        assert read.buffers is not None
        assert torch.equal(read.buffers[name], buffer)


@pytest.mark.parametrize("batch_norm", POLICIES)
def test_a_captured_update_is_attacked_to_the_same_bytes(
    tmp_path: Path, batch_norm: BatchNormPolicy
) -> None:
    short = ("attack.optimizer.max_steps=3", "attack.restarts=1", "attack.trace_points=0")
    attack = instantiate(config("attack=gradinv", *short).attack)
    model = payload("tiny", batch_norm)
    update = updated(model)
    captured(tmp_path, "tiny", update, batch_norm=batch_norm)
    capture = the_one(tmp_path)
    pairs = ((model, update), (capture.payload, capture.update))
    one, other = (
        found for pair in pairs for found in attack.reconstruct(iter([observed(*pair)]), context())
    )
    assert one.objective == other.objective
    assert torch.equal(one.inputs, other.inputs)


def test_where_no_policy_is_said_the_update_tells_it(tmp_path: Path) -> None:
    for policy in ("train_private", "train_shared"):
        captured(tmp_path / policy, "tiny", updated(payload("tiny", policy)))
        assert the_one(tmp_path / policy).payload.batch_norm == policy


def test_statistics_that_contradict_the_policy_are_not_written(tmp_path: Path) -> None:
    shared = updated(payload("tiny", "train_shared"))
    private = updated(payload("tiny", "train_private"))
    for update, policy, words in (
        (shared, "eval_public", r"another norm.running_mean than was sent: .* train mode"),
        (shared, "train_private", r"holds 3 of the network's 3 buffers"),
        (private, "train_shared", r"holds 0 of the network's 3 buffers"),
    ):
        with pytest.raises(DataError, match=rf"batch_norm={policy}, .*{words}"):
            captured(tmp_path, "tiny", update, batch_norm=policy)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_statistics_that_came_back_as_they_were_sent_say_nothing(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Clients that send their whole state dict, and ran BatchNorm in eval mode."""
    model = payload("tiny", "eval_public")
    state = {**updated(model).tensors, **model.buffers}
    came = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    captured(tmp_path, "tiny", updated(model), update=came, batch_norm="eval_public")
    assert the_one(tmp_path).update.buffers is None


def test_a_defense_may_have_changed_them(tmp_path: Path) -> None:
    update = updated(payload("tiny", "train_shared"))
    defense = Defense(description="noise on all that leaves")
    captured(tmp_path, "tiny", update, batch_norm="eval_public", defense=defense)
    assert the_one(tmp_path).update.buffers is None


@pytest.mark.parametrize(("pair", "policy"), PAIRS.items())
def test_a_capture_of_version_1_is_read(
    tmp_path: Path, pair: tuple[str, str], policy: BatchNormPolicy
) -> None:
    model = payload("tiny", policy)
    update = updated(model)
    buffers = {"eval": model.buffers, "train": update.buffers or {}}[pair[0]]
    came = {**update.tensors, **(buffers if pair[1] == "shared" else {})}
    folder = captured(tmp_path, "tiny", update, update=came, batch_norm=policy)

    def as_it_was(manifest: dict[str, Any]) -> None:
        del manifest["batch_norm"], manifest["aggregate"], manifest["geometry"]
        manifest |= {"version": 1, "mode": pair[0], "buffers": pair[1]}

    edit(folder, as_it_was)
    capture = the_one(tmp_path)
    assert capture.payload.batch_norm == policy
    assert (capture.update.buffers is not None) == (policy == "train_shared")
    for name, value, words in (
        ("mode", "test", "mode must be train or eval"),
        ("buffers", True, "buffers must be private or shared"),
        ("batch_norm", policy, '"batch_norm" is not a name'),
    ):
        edit(folder, lambda m, n=name, v=value: m.update({n: v}))
        with pytest.raises(DataError, match=words):
            read_captures(tmp_path)
        edit(folder, lambda m: m.pop("batch_norm", None))
        edit(folder, lambda m: m.update(mode=pair[0], buffers=pair[1]))


@pytest.mark.parametrize("pair", [("test", "private"), ("train", "public"), (None, None)])
def test_a_pair_that_was_none_has_no_policy(pair: tuple[object, object]) -> None:
    assert of_the_pair(*pair) is None
    assert {of_the_pair(*known) for known in PAIRS} == set(POLICIES)
