"""The threat model: the one door between what is true and what the attacker sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from helpers import CPU, experiment, payload_of, spec_of, victim_of
from torch import Tensor, nn

from medpfl.errors import ConfigurationError, MedpflError, ThreatModelError
from medpfl.federated import Client
from medpfl.threat import CAPABILITIES, ThreatModel
from medpfl.training import LocalTraining
from medpfl.types import Observation

SPEC = spec_of(3, 16, 16, num_classes=4)
VICTIM = victim_of(SPEC, [1, 3])


def observe(*knows: str) -> Observation:
    payload = payload_of("dlg_cnn", SPEC, batch_norm="train_shared")
    client = Client(spec=SPEC, device=CPU)
    update, _ = client.update(VICTIM, payload)
    return ThreatModel(knows=knows).observe(
        capture_id="v",
        payload=payload,
        update=update,
        spec=SPEC,
        auxiliary=torch.zeros(2, *SPEC.shape),
    )


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"fc.bias": torch.zeros(3)}, r"fc.bias: sent \(4,\), came back \(3,\)"),
        ({"extra": torch.zeros(2)}, r"extra: sent none, came back \(2,\)"),
    ],
)
def test_an_update_of_another_network_is_refused(tensors, words):
    payload = payload_of("dlg_cnn", SPEC)
    update, _ = Client(spec=SPEC, device=CPU).update(VICTIM, payload)
    other = replace(update, tensors={**update.tensors, **tensors})
    with pytest.raises(MedpflError, match=rf"the update of v does not fit .*{words}"):
        ThreatModel(knows=["num_examples"]).observe(
            capture_id="v",
            payload=payload,
            update=other,
            spec=SPEC,
        )


def test_an_update_may_lack_what_was_not_captured_and_nothing_else():
    payload = payload_of("dlg_cnn", SPEC)
    update, _ = Client(spec=SPEC, device=CPU).update(VICTIM, payload)
    last = {n: t for n, t in update.tensors.items() if n.startswith("fc.")}
    part, threat = replace(update, tensors=last), ThreatModel(knows=["num_examples"])
    settings = {"capture_id": "v", "payload": payload, "update": part, "spec": SPEC}
    assert set(threat.observe(**settings, parameters=list(last)).tensors) == set(last)
    with pytest.raises(MedpflError, match=r"body\.0\.bias: sent .*, came back none"):
        threat.observe(**settings)


def test_every_capability_is_a_field_of_the_observation():
    of_training = {"local_order"}  # a part of local_training
    assert set(CAPABILITIES) - of_training <= {f.name for f in fields(Observation)}


@pytest.mark.parametrize("granted", CAPABILITIES)
def test_what_is_not_granted_is_withheld(granted):
    seen = observe(granted)
    for capability in set(CAPABILITIES) - {"local_order"}:
        assert (getattr(seen, capability) is not None) == (capability == granted)


def test_the_order_of_the_images_is_granted_by_itself():
    assert observe("local_training").local_training.order is None
    assert observe("local_training", "local_order").local_training.order == ((0, 1),)


def test_what_is_granted_is_the_truth():
    seen = observe(*CAPABILITIES)
    assert seen.num_examples == 2
    assert torch.equal(seen.labels, VICTIM.labels)
    assert seen.local_training == LocalTraining().in_turn(2)


def test_what_every_server_sees():
    seen = observe()
    assert (seen.capture_id, seen.kind, seen.spec) == ("v", "gradient", SPEC)
    assert list(seen.tensors) == list(seen.payload.parameters)


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield every tensor that can be reached from a value."""
    if isinstance(value, Tensor):
        yield value
        if value.grad is not None:
            yield value.grad
    elif isinstance(value, nn.Module):
        for part in (*value.parameters(), *value.buffers(), *vars(value).values()):
            yield from tensors_in(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


@pytest.mark.parametrize("model", ["dlg_cnn", "resnet18"])
def test_an_observation_never_holds_the_victims_images(model):
    parts = experiment("attack=dlg", f"model={model}", "n_images=2")
    for capture in parts.source.captures():
        seen, victim = capture.observation, capture.truth
        truth = victim.inputs.untyped_storage().data_ptr()
        found = list(tensors_in(seen))
        assert len(found) > len(seen.tensors)
        for tensor in found:
            assert not torch.equal(tensor.flatten(), victim.inputs.flatten())
            assert tensor.untyped_storage().data_ptr() != truth
            assert tensor.grad_fn is None  # no graph that would lead back to the images


def test_an_unknown_capability_is_named_beside_the_known_ones():
    with pytest.raises(ConfigurationError, match=r"unknown capability lables; .*labels") as caught:
        ThreatModel(knows=["lables", "num_examples"])
    assert all(name in str(caught.value) for name in CAPABILITIES)


def test_a_need_that_is_not_granted_is_named_with_the_fix():
    threat = ThreatModel(knows=["num_examples"])
    threat.require({"num_examples"}, who="attack=a")
    threat.require([], who="attack=a")
    with pytest.raises(ThreatModelError) as caught:
        threat.require(["num_examples", "labels"], who="attack=a")
    message = str(caught.value)
    assert message.startswith("attack=a needs 'labels' (the images' labels)")
    assert "threat.knows=[num_examples,labels]" in message


def test_an_attack_that_needs_more_fails_before_any_compute():
    with pytest.raises(ThreatModelError, match=r"attack=cpl needs 'num_examples'"):
        experiment("attack=cpl", "threat.knows=[]")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("server", "sleepy"), ("aggregation", "shuffled"), ("knows", "labels")],
)
def test_settings_that_mean_nothing_yet_are_refused(setting, value):
    with pytest.raises(ConfigurationError, match=rf"threat\.{setting}={value}"):
        ThreatModel(**{setting: value})


def test_the_description_names_what_is_known_and_withheld():
    who, knows, withheld = ThreatModel(knows=["labels"]).describe()
    assert who == "honest-but-curious server, sees individual updates"
    assert knows.endswith("labels")
    assert withheld == (
        "withheld: num_examples, local_training, local_order, buffers, defense, "
        "auxiliary, same_images"
    )
    assert ThreatModel(knows=list(CAPABILITIES)).describe()[2] == "withheld: nothing"
