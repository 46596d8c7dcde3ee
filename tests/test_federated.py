"""The client's update and the server's model, against plain autograd and torch's own Adam."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass

import pytest
import torch
from helpers import CPU, FACTORIES, experiment, payload_of, seeded, sent, spec_of, victim_of
from torch import Tensor, nn
from torch.nn import functional

from medpfl.batch_norm import POLICIES
from medpfl.errors import ConfigurationError
from medpfl.federated import AdamSteps, Client, Federation, NoPretraining
from medpfl.types import DataSpec, ServerPayload

SPEC = spec_of(3, 16, 16, num_classes=4)
RESNET_SPEC = spec_of(3, 33, 33, num_classes=4)
NORMALISED = DataSpec(shape=(3, 16, 16), num_classes=4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def client(spec: DataSpec) -> Client:
    return Client(spec=spec, device=CPU)


def by_hand(payload: ServerPayload, inputs_norm: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the gradients of the mean negative log-likelihood, by ``.backward()``."""
    model = copy.deepcopy(payload.model).train(payload.training)
    model.zero_grad()
    log_probabilities = model(inputs_norm).log_softmax(1)
    loss = -log_probabilities[torch.arange(len(labels)), labels].mean()
    torch.autograd.backward(loss)
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


# The client --------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[2], [0, 3, 3]], ids=["one image", "three images"])
@pytest.mark.parametrize("network", ["cpl_cnn", "dlg_cnn", "idlg_cnn", "lenet"])
def test_the_update_is_the_gradient_on_normalised_inputs(network, labels):
    payload = payload_of(network, NORMALISED)
    victim = victim_of(NORMALISED, labels)
    update, facts = client(NORMALISED).update(victim, payload)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (NORMALISED.mean, NORMALISED.std))
    inputs_norm = (victim.inputs - mean) / std
    expected = by_hand(payload, inputs_norm, victim.labels)
    assert list(update.tensors) == list(payload.parameters)
    for name, tensor in update.tensors.items():
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
    assert (update.kind, update.num_examples) == ("gradient", len(labels))
    norm = torch.cat([t.flatten() for t in expected.values()]).double().norm()
    assert facts.gradient_norm == pytest.approx(float(norm), rel=1e-4)
    probability = payload.model(inputs_norm).softmax(1)[torch.arange(len(labels)), victim.labels]
    torch.testing.assert_close(facts.true_probability, probability.detach())


@pytest.mark.parametrize("batch_norm", POLICIES)
def test_the_payload_stays_as_it_was_sent(batch_norm):
    payload = payload_of("resnet18", RESNET_SPEC, batch_norm=batch_norm)
    before = copy.deepcopy(payload.model.state_dict())
    client(RESNET_SPEC).update(victim_of(RESNET_SPEC, [0, 1]), payload)
    after = payload.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(payload.parameters[n], before[n]) for n in payload.parameters)
    assert all(torch.equal(payload.buffers[n], before[n]) for n in payload.buffers)
    assert all(p.grad is None for p in payload.model.parameters())


def test_train_and_eval_mode_differ_with_batch_normalisation():
    victim = victim_of(RESNET_SPEC, [0, 1])
    tensors = {}
    for batch_norm in ("eval_public", "train_private"):
        payload = payload_of("resnet18", RESNET_SPEC, batch_norm=batch_norm)
        update, _ = client(RESNET_SPEC).update(victim, payload)
        expected = by_hand(payload, victim.inputs, victim.labels)
        for name, tensor in update.tensors.items():
            largest = float(expected[name].abs().max())
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-3 * largest)
        tensors[batch_norm] = update.tensors["conv1.weight"]
    assert not torch.allclose(*tensors.values(), rtol=0.1)


def test_the_same_images_give_the_same_update():
    payload, victim = payload_of("dlg_cnn", SPEC), victim_of(SPEC, [1])
    (first, _), (second, _) = (client(SPEC).update(victim, payload) for _ in range(2))
    assert all(torch.equal(first.tensors[n], second.tensors[n]) for n in first.tensors)


def test_a_saturated_network_sends_exactly_nothing():
    model = FACTORIES["dlg_cnn"].build(SPEC, seeded())
    with torch.no_grad():
        model.fc.bias[2] = 1000.0
    update, facts = client(SPEC).update(victim_of(SPEC, [2]), sent(model))
    assert facts.gradient_norm == 0
    assert facts.true_probability.item() == 1
    assert not any(t.any() for t in update.tensors.values())


# Pretraining -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """`count` drawn images in class order."""

    count: int

    @property
    def labels(self) -> Tensor:
        return torch.arange(self.count) * SPEC.num_classes // max(1, self.count)

    def load(self, index: int) -> Tensor:
        assert 0 <= index < self.count
        return torch.rand(SPEC.shape, generator=seeded(index))


def network() -> nn.Module:
    return FACTORIES["dlg_cnn"].build(SPEC, seeded(50))


def adam_by_hand(batches: list[range], split: Split) -> nn.Module:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch in batches:
        inputs = torch.stack([split.load(i) for i in batch])
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), split.labels[list(batch)])
        torch.autograd.backward(loss)
        optimizer.step()
    return model


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_published_step_is_adams_on_images_32_to_63():
    model, split = network(), Split(100)
    AdamSteps()(model, split, SPEC, CPU)
    assert_same_weights(model, adam_by_hand([range(32, 64)], split))
    before = network().state_dict()
    assert not any(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_more_steps_go_on_with_the_next_batches():
    model, split = network(), Split(100)
    AdamSteps(steps=2, batch_size=20, first_batch=0)(model, split, SPEC, CPU)
    assert_same_weights(model, adam_by_hand([range(20), range(20, 40)], split))


@pytest.mark.parametrize(("count", "used"), [(20, range(20)), (32, range(32)), (2, range(2))])
def test_a_split_of_fewer_than_two_batches_trains_on_what_it_has(count, used, caplog):
    model, split = network(), Split(count)
    with caplog.at_level(logging.WARNING, logger="medpfl"):
        AdamSteps()(model, split, SPEC, CPU)
    assert_same_weights(model, adam_by_hand([used], split))
    assert f"{count} images" in caplog.text
    assert f"the last {len(used)} images are used" in caplog.text


def test_a_second_batch_that_is_not_full_is_used_without_a_warning(caplog):
    model, split = network(), Split(40)
    with caplog.at_level(logging.WARNING, logger="medpfl"):
        AdamSteps()(model, split, SPEC, CPU)
    assert_same_weights(model, adam_by_hand([range(32, 40)], split))
    assert caplog.text == ""


@pytest.mark.parametrize("pretrain", [AdamSteps(steps=0), NoPretraining()])
def test_no_steps_leave_the_model_as_it_was(pretrain):
    model = network()
    pretrain(model, Split(100), SPEC, CPU)
    assert_same_weights(model, network())


@pytest.mark.parametrize(
    "setting", [{"steps": -1}, {"lr": 0.0}, {"batch_size": 0}, {"first_batch": -1}], ids=str
)
def test_pretraining_settings_that_cannot_work_are_named(setting):
    with pytest.raises(ConfigurationError, match=r"federation\.pretrain"):
        AdamSteps(**setting)


# The server --------------------------------------------------------------------------------------


def payloads(**changes: object):
    federation = Federation(**{"pretrain": NoPretraining(), **changes})  # type: ignore[arg-type]
    return federation.payloads(FACTORIES["dlg_cnn"], SPEC, Split(64), CPU)


def same_parameters(a: ServerPayload, b: ServerPayload) -> bool:
    return all(torch.equal(a.parameters[n], b.parameters[n]) for n in a.parameters)


def test_one_model_for_all_is_the_papers_model():
    send = payloads()
    assert send("a") is send("b")
    assert_same_weights(send("a").model, network())  # seed 50
    assert not same_parameters(send("a"), payloads(model_seed=51)("a"))


def test_a_new_model_a_victim_is_the_same_at_every_call():
    send = payloads(new_model_per_victim=True)
    assert not same_parameters(send("a"), send("b"))
    assert same_parameters(send("a"), send("a"))
    assert same_parameters(send("b"), payloads(new_model_per_victim=True)("b"))
    assert not same_parameters(send("a"), payloads(new_model_per_victim=True, model_seed=1)("a"))


def test_the_server_pretrains_what_it_sends():
    send = payloads(pretrain=AdamSteps())
    assert_same_weights(send("a").model, adam_by_hand([range(32, 64)], Split(64)))


@pytest.mark.parametrize("batch_norm", POLICIES)
def test_the_policy_is_sent_along(batch_norm):
    payload = payloads(batch_norm=batch_norm)("a")
    assert payload.batch_norm == batch_norm
    assert payload.training == (batch_norm != "eval_public")
    assert payload.buffers == {}
    assert not any(p.requires_grad for p in payload.parameters.values())


@pytest.mark.parametrize(
    ("key", "value"), [("batch_norm", "train"), ("batch_norm", "null"), ("batch_size", 0)]
)
def test_federation_settings_that_cannot_work_are_named(key, value):
    with pytest.raises(ConfigurationError, match=rf"federation\.{key}={value}"):
        payloads(**{key: None if value == "null" else value})


def test_an_experiment_with_more_images_behind_an_update_than_it_attacks_is_refused():
    with pytest.raises(ConfigurationError, match=r"federation\.batch_size=3, but only 2"):
        experiment("attack=dlg", "n_images=2", "federation.batch_size=3")
