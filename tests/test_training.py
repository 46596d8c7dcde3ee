"""The one map from images to updates, against torch's own optimisers and against itself."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import CPU, payload_of, seeded, spec_of, victim_of
from torch import Tensor
from torch.func import grad
from torch.nn import functional

from medpfl.errors import ConfigurationError
from medpfl.federated import Client
from medpfl.training import LocalTraining, UpdateMap, forward_of
from medpfl.types import ServerPayload

SPEC = spec_of(1, 12, 12)


def sent_in(dtype: torch.dtype, network: str = "dlg_cnn") -> tuple[ServerPayload, Tensor, Tensor]:
    """Return a network, images of it and their label probabilities."""
    payload = payload_of(network, SPEC)
    payload = ServerPayload(
        payload.model,
        {n: p.to(dtype) for n, p in payload.parameters.items()},
        payload.buffers,
        batch_norm="eval_public",
    )
    victim = victim_of(SPEC, [0, 2, 1, 1, 0])
    return payload, victim.inputs.to(dtype), functional.one_hot(victim.labels, 3).to(dtype)


def by_torch(payload: ServerPayload, training: LocalTraining, inputs: Tensor, labels: Tensor):
    """Train with torch's own loop; return the weights after."""
    model = copy.deepcopy(payload.model).to(inputs.dtype)
    model.load_state_dict(dict(payload.parameters))
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    more = {"momentum": training.momentum} if training.optimizer == "sgd" else {}
    optimizer = kinds[training.optimizer](model.parameters(), lr=training.lr, **more)
    assert training.order is not None
    for batch in training.order:
        optimizer.zero_grad()
        index = list(batch)
        functional.cross_entropy(model(inputs[index]), labels[index]).backward()
        optimizer.step()
    return {n: p.detach() for n, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_step_on_everything_is_the_gradient_to_the_bit(dtype: torch.dtype) -> None:
    payload, inputs, probabilities = sent_in(dtype)
    fedavg = LocalTraining(algorithm="fedavg", lr=0.37).drawn(5, seeded())
    arguments = (payload.forward(), payload.parameters, inputs, probabilities)
    gradient = UpdateMap.of(LocalTraining())(*arguments)
    update = UpdateMap.of(fedavg)(*arguments)
    assert all(torch.equal(update[n], gradient[n]) for n in gradient)
    assert UpdateMap.of(fedavg).is_one_gradient(5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs_to_the_bit(momentum: float) -> None:
    payload, inputs, probabilities = sent_in(torch.float32)
    training = LocalTraining(
        algorithm="fedavg", epochs=3, batch_size=2, lr=0.3, momentum=momentum
    ).drawn(5, seeded(1))
    trained = UpdateMap.of(training).train(
        payload.forward(), payload.parameters, inputs, probabilities
    )
    expected = by_torch(payload, training, inputs, probabilities.argmax(1))
    assert all(torch.equal(trained.parameters[n], expected[n]) for n in expected)


def test_adam_is_torchs() -> None:
    payload, inputs, probabilities = sent_in(torch.float64)
    training = LocalTraining(
        algorithm="fedavg", epochs=4, batch_size=2, lr=0.01, optimizer="adam"
    ).drawn(5, seeded(1))
    trained = UpdateMap.of(training).train(
        payload.forward(), payload.parameters, inputs, probabilities
    )
    expected = by_torch(payload, training, inputs, probabilities.argmax(1))
    for name, tensor in expected.items():
        torch.testing.assert_close(trained.parameters[name], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_moved_is_the_way_in_the_unit_of_a_gradient(optimizer) -> None:
    payload, inputs, probabilities = sent_in(torch.float64)
    training = LocalTraining(
        algorithm="fedavg", epochs=2, batch_size=2, lr=0.05, optimizer=optimizer
    ).drawn(5, seeded(1))
    update = UpdateMap.of(training)
    assert update.steps == training.steps(5) == 6
    trained = update.train(payload.forward(), payload.parameters, inputs, probabilities)
    for name, moved in trained.moved.items():
        way = (payload.parameters[name] - trained.parameters[name]) / (0.05 * 6)
        torch.testing.assert_close(moved, way, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_map_is_differentiable_in_the_images(optimizer) -> None:
    payload, inputs, probabilities = sent_in(torch.float64)
    training = LocalTraining(
        algorithm="fedavg", epochs=2, batch_size=3, lr=0.1, optimizer=optimizer
    ).in_turn(5)
    update, forward = UpdateMap.of(training), payload.forward()

    def size(images: Tensor) -> Tensor:
        moved = update(forward, payload.parameters, images, probabilities)
        return torch.stack([m.square().sum() for m in moved.values()]).sum()

    slope = grad(size)(inputs)
    along = torch.randn(inputs.shape, generator=seeded(2), dtype=torch.float64)
    step = 1e-6
    difference = (size(inputs + step * along) - size(inputs - step * along)) / (2 * step)
    # Adam's first step is nearly the sign of the gradient, whose derivative is steep at zero.
    close = 1e-5 if optimizer == "sgd" else 2e-3
    assert float((slope * along).sum()) == pytest.approx(float(difference), rel=close)


def test_a_client_sends_what_its_float32_weights_have_moved() -> None:
    payload = payload_of("dlg_cnn", SPEC)
    victim = victim_of(SPEC, [0, 2])
    training = LocalTraining(algorithm="fedavg", epochs=2, lr=0.1)
    update, facts = Client(spec=SPEC, device=CPU, training=training).update(victim, payload)
    assert update.kind == "delta"
    after = by_torch(payload, update.local_training, SPEC.normalise(victim.inputs), victim.labels)
    for name, tensor in update.tensors.items():
        assert torch.equal(tensor, after[name] - payload.parameters[name])
    norm = torch.cat([t.flatten() for t in update.tensors.values()]).double().norm()
    assert facts.gradient_norm == pytest.approx(float(norm) / (2 * 0.1), rel=1e-4)


def test_orders_visit_every_image_once_an_epoch_and_follow_the_generator() -> None:
    training = LocalTraining(algorithm="fedavg", epochs=3, batch_size=4)
    order = training.drawn(10, seeded(3)).order
    assert order == training.drawn(10, seeded(3)).order
    assert order != training.drawn(10, seeded(4)).order
    assert [len(batch) for batch in order] == [4, 4, 2] * 3
    for epoch in range(3):
        visited = [i for batch in order[3 * epoch : 3 * epoch + 3] for i in batch]
        assert sorted(visited) == list(range(10))
    assert order[:3] != order[3:6]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"algorithm": "fedprox"},
            r"federation\.local\.algorithm=fedprox: choose fedsgd or fedavg",
        ),
        ({"epochs": 2}, r"federation\.local\.epochs=2: under FedSGD .* Choose federation=fedavg"),
        ({"batch_size": 2}, r"federation\.local\.batch_size=2: under FedSGD"),
        ({"optimizer": "adam"}, r"federation\.local\.optimizer=adam: under FedSGD"),
        (
            {"algorithm": "fedavg", "optimizer": "adam", "momentum": 0.9},
            r"federation\.local\.momentum=0\.9: adam has momentum of its own",
        ),
        ({"algorithm": "fedavg", "lr": 0.0}, r"federation\.local\.lr=0\.0: must be positive"),
    ],
)
def test_local_training_that_makes_no_sense_is_refused(settings, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        LocalTraining(**settings)


def test_a_network_without_numbers_runs_with_those_it_is_given() -> None:
    payload = payload_of("resnet18", spec_of(3, 33, 33), batch_norm="train_private")
    hollow = payload.network()
    assert all(t.is_meta for t in (*hollow.parameters(), *hollow.buffers()))
    assert not any(t.is_meta for t in (*payload.model.parameters(), *payload.model.buffers()))
    inputs = torch.rand(2, 3, 33, 33, generator=seeded())
    for training in (True, False):
        expected = copy.deepcopy(payload.model).train(training)(inputs)
        found = payload.forward(training=training)(payload.parameters, inputs)
        assert torch.equal(found, expected)
    assert forward_of(hollow, payload.buffers)(payload.parameters, inputs).shape == (2, 3)
