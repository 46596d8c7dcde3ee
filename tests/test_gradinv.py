"""GradInv: against the published loop written plainly, with BatchNorm in every mode, end to end."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import (
    CPU,
    config,
    context,
    experiment,
    observe,
    payload_of,
    seeded,
    sent,
    spec_of,
    victim_of,
)
from torch import Tensor, nn
from torch.nn import functional

from medpfl.attacks import GradientMatching
from medpfl.attacks.distances import Cosine
from medpfl.attacks.labels import Known
from medpfl.attacks.matching import MatchingObjective, Targets, flatten, float_buffers, rows_at_once
from medpfl.attacks.priors import TotalVariation
from medpfl.attacks.projection import Box, MedianFilter, median_filter
from medpfl.attacks.starts import Normal
from medpfl.attacks.unknowns import Unknowns
from medpfl.batch_norm import POLICIES, BatchNormPolicy
from medpfl.errors import ConfigurationError, ThreatModelError
from medpfl.federated import FineTune
from medpfl.optim import LBFGS, Adam
from medpfl.optim.shared_rows import SharedRows
from medpfl.runner import run
from medpfl.seeding import generator
from medpfl.settings.build import instantiate
from medpfl.types import DataSpec, Observation, ServerPayload

SPEC = DataSpec(
    shape=(3, 16, 16), num_classes=4, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
SMALL = ("attack=gradinv", "preprocess.size=32", "n_images=1")


def attack_of(**changes: object) -> GradientMatching:
    """Return GradInv with 14 steps in float64, or a variant of it."""
    parts: dict[str, object] = {
        "name": "gradinv",
        "start": Normal(),
        "labels": Known(),
        "distance": Cosine(top=3),
        "optimizer": Adam(lr=0.1, max_steps=14, signed=True, milestones=[0.5, 12]),
        "priors": {"total_variation": TotalVariation(weight=0.02), "none": None},
        "projections": {"box": Box(), "median_filter": MedianFilter(every=5), "none": None},
        "precision": "float64",
        "trace_points": 0,
    }
    return GradientMatching(**{**parts, **changes})  # type: ignore[arg-type]


def observation_of(seed: int = 0, *, capture_id: str = "v") -> Observation:
    payload = payload_of("lenet", SPEC)
    victim = victim_of(SPEC, [1], seed=seed)
    return observe(payload, SPEC, victim, capture_id=capture_id)


# Against plain torch -----------------------------------------------------------------------------


def plain_objective(model: nn.Module, x: Tensor, label: Tensor, observed: list[Tensor]) -> Tensor:
    """Return Geiping's objective with the 3 largest tensors and total variation."""
    loss = functional.cross_entropy(model(x), label)
    dummy = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    chosen = torch.stack([t.norm() for t in observed]).topk(3).indices.tolist()
    a, b = (torch.cat([side[i].flatten() for i in chosen]) for side in (dummy, observed))
    variation = (x[..., 1:] - x[..., :-1]).abs().mean() + (
        x[..., 1:, :] - x[..., :-1, :]
    ).abs().mean()
    return 1 - functional.cosine_similarity(a, b, dim=0) + 0.02 * variation


def plain_gradinv(observation: Observation, restart: int) -> tuple[float, Tensor]:
    """Return the smallest objective on the way and the image there, by torch's own optimiser."""
    model = copy.deepcopy(observation.payload.model).double()
    observed = [t.double() for t in observation.tensors.values()]
    start = generator(0, "start", observation.capture_id, restart)
    x = torch.randn((1, *SPEC.shape), generator=start).double().requires_grad_()
    black, white = (SPEC.normalise(torch.full_like(x.detach(), v)) for v in (0.0, 1.0))
    optimizer = torch.optim.Adam([x], lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [7, 12])
    best, image = float("inf"), x.detach().clone()
    for step in range(1, 15):
        value = plain_objective(model, x, observation.labels, observed)
        if value.item() < best:
            best, image = value.item(), x.detach().clone()
        (x.grad,) = torch.autograd.grad(value, [x])
        x.grad.sign_()
        optimizer.step()
        schedule.step()
        x.data = x.data.clamp(black, white)
        if step % 5 == 0:
            x.data = median_filter(x.data, 3)
    return best, SPEC.denormalise(image.float()).clamp(0, 1)


def test_it_is_the_published_loop() -> None:
    observation = observation_of()
    (found,) = attack_of(restarts=3).reconstruct([observation], context())
    plain = [plain_gradinv(observation, restart) for restart in range(3)]
    best, image = min(plain, key=lambda pair: pair[0])
    assert len({value for value, _ in plain}) == 3
    assert found.objective == pytest.approx(best, rel=1e-9)
    torch.testing.assert_close(found.inputs, image, rtol=1e-6, atol=1e-6)
    assert (found.steps, found.evaluations) == (14, 3 * 14)


@pytest.mark.parametrize("rows", [1, 4])
def test_places_and_neighbours_change_nothing(rows: int) -> None:
    observations = [observation_of(seed, capture_id=f"v{seed}") for seed in range(3)]
    payload = observations[0].payload
    observations = [replace(o, payload=payload) for o in observations]
    beside = attack_of(restarts=2, rows=rows).reconstruct(observations, context())
    together = {r.capture_id: r for r in beside}
    for observation in observations:
        (alone,) = attack_of(restarts=2, rows=2).reconstruct([observation], context())
        found = together[observation.capture_id]
        assert found.objective == pytest.approx(alone.objective, rel=1e-9)
        torch.testing.assert_close(found.inputs, alone.inputs)


def test_projections_need_an_optimizer_that_can_go_on_from_anywhere() -> None:
    optimizer = LBFGS(max_steps=2)
    with pytest.raises(ConfigurationError, match="LBFGS cannot go on"):
        attack_of(optimizer=optimizer)
    assert attack_of(optimizer=optimizer, projections=None, priors=None).name == "gradinv"


# ResNet-18 and BatchNorm -------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", ["eval_public", "train_private"])
def test_the_objective_on_resnet18_is_plain_autograds(batch_norm: BatchNormPolicy) -> None:
    """Two images in one update; in train mode they share the statistics of their batch."""
    spec = spec_of(3, 32, 32)
    payload = payload_of("resnet18", spec, batch_norm=batch_norm)
    observation = observe(payload, spec, victim_of(spec, [0, 2]))
    unknowns = Unknowns(spec, 2, 3, joint_labels=False)
    objective = MatchingObjective(
        payload=payload, unknowns=unknowns, distance=Cosine(), dtype=torch.float64, chunk=1
    )
    z = torch.randn(1, 2 * 3 * 32 * 32, generator=seeded(1)).double()
    targets = Targets(
        gradient=SharedRows(flatten(observation.tensors).double()),
        labels=functional.one_hot(torch.tensor([[0, 2]]), 3).double(),
        parameters=torch.zeros(1, 0),
        buffers=torch.zeros(1, 0),
        order=torch.zeros(1, 0, dtype=torch.int64),
    )
    before = {name: buffer.clone() for name, buffer in payload.buffers.items()}
    value, gradient = objective(z, targets)
    assert all(torch.equal(payload.buffers[name], before[name]) for name in before)

    model = copy.deepcopy(payload.model).double().train(payload.training)
    x = z.reshape(2, 3, 32, 32).requires_grad_()
    loss = functional.cross_entropy(model(x), torch.tensor([0, 2]))
    dummy = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    a = torch.cat([t.flatten() for t in dummy])
    expected = 1 - functional.cosine_similarity(a, targets.gradient[:1][0], dim=0)
    torch.testing.assert_close(value[0], expected.detach())
    (pull,) = torch.autograd.grad(expected, x)
    torch.testing.assert_close(gradient[0], pull.flatten())


@pytest.mark.parametrize("batch_norm", POLICIES)
def test_the_truth_has_the_clients_gradient(batch_norm: BatchNormPolicy) -> None:
    """Across client, threat model and attack, under every policy, with 1000 outputs."""
    policy = f"federation.batch_norm={batch_norm}"
    e = experiment(*SMALL, "n_images=2", "federation.batch_size=2", policy)
    (capture,) = e.source.captures()
    observation, victim = capture.observation, capture.truth
    assert observation.payload.batch_norm == batch_norm
    assert len(observation.tensors["fc.bias"]) == 1000
    unknowns = Unknowns(e.data.spec, 2, 1000, joint_labels=False)
    objective = MatchingObjective(
        payload=observation.payload,
        unknowns=unknowns,
        distance=Cosine(top=10),
        dtype=torch.float32,
        chunk=2,
    )
    truth = e.data.spec.normalise(victim.inputs).flatten()
    z = torch.stack([truth, truth.roll(1)])
    target = Targets(
        gradient=SharedRows(flatten(observation.tensors)),
        labels=functional.one_hot(observation.labels, 1000).float().unsqueeze(0),
        parameters=torch.zeros(1, 0),
        buffers=torch.zeros(1, 0),
        order=torch.zeros(1, 0, dtype=torch.int64),
    )
    value, _ = objective(z, target.join(target))
    assert value[0].abs() < 1e-5
    assert value[1] > 1e-3


def test_one_image_of_32_pixels_has_no_batch_statistics() -> None:
    with pytest.raises(ConfigurationError, match="in train mode"):
        experiment(*SMALL, "federation.batch_norm=train_private")


# The configurations ------------------------------------------------------------------------------


def test_the_untrained_configuration_is_the_papers() -> None:
    c = config("attack=gradinv")
    optimizer = instantiate(c.attack.optimizer)
    assert optimizer.milestones == (9_000, 15_000, 21_000)
    assert (optimizer.lr, optimizer.max_steps, optimizer.signed) == (0.1, 24_000, True)
    assert (c.attack.restarts, c.attack.distance.top) == (8, 10)
    assert c.attack.priors.total_variation.weight == 1e-6
    assert (c.attack.projections.median_filter.every, c.preprocess.size) == (500, 224)
    assert (c.model.weights, c.model.head, c.federation.batch_norm) == (
        None,
        "imagenet",
        "eval_public",
    )
    assert list(c.attack.projections) == ["box", "median_filter"]


def test_the_trained_configuration_is_the_papers(tmp_path: Path) -> None:
    c = config("attack=gradinv_trained")
    assert c.model.weights == "imagenet"
    assert c.attack.distance.top is None
    assert c.attack.priors.total_variation.weight == 0.1
    assert c.attack.projections.median_filter is None
    assert c.attack.optimizer == config("attack=gradinv").attack.optimizer
    file = tmp_path / "given.pt"
    given = payload_of("resnet18", spec_of(3, 32, 32, num_classes=1000), seed=9)
    torch.save(given.model.state_dict(), file)
    e = experiment("attack=gradinv_trained", *SMALL[1:], f"model.weights={file}")
    payload = e.source.example()
    assert torch.equal(flatten(payload.parameters), flatten(given.parameters))


def test_labels_must_be_granted() -> None:
    with pytest.raises(ThreatModelError, match="labels"):
        experiment(*SMALL, "threat=honest_but_curious")


def test_a_run_end_to_end(tmp_path: Path) -> None:
    changes = ["attack.optimizer.max_steps=3", "attack.restarts=2", "attack.trace_points=2"]
    summary = run(config(*SMALL, *changes), tmp_path / "run")
    assert summary.n == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "complete"


# Memory ------------------------------------------------------------------------------------------


def test_restarts_share_one_gradient() -> None:
    a, b = torch.arange(3.0), torch.arange(3.0) + 5
    rows = SharedRows(a).join(SharedRows(a), SharedRows(b), SharedRows(b))
    assert rows.shape == (4, 3)
    assert rows[:2].data_ptr() == a.data_ptr()
    assert rows[2:].data_ptr() == b.data_ptr()
    assert torch.equal(rows[1:3], torch.stack([a, b]))
    kept = rows.select(torch.tensor([3, 0]))
    assert torch.equal(kept[:], torch.stack([b, a]))
    kept.write(torch.tensor([0]), SharedRows(a))
    assert kept[:].data_ptr() == a.data_ptr()
    assert torch.equal(rows[2:], torch.stack([b, b]))  # the table it came from is untouched


def test_rows_at_once_are_bounded_by_the_parameters_too() -> None:
    """ResNet-18 at 32 pixels: few activations, 11 million parameters a row."""
    spec = spec_of(3, 32, 32)
    payload = payload_of("resnet18", spec)
    rows = rows_at_once(payload, Unknowns(spec, 1, 3, joint_labels=False))
    assert 1 < rows < 4e9 / (8 * 4 * sum(p.numel() for p in payload.parameters.values()))


# Fine-tuning -------------------------------------------------------------------------------------


class Pictures:
    """Two classes: dark and bright noise."""

    labels = torch.tensor([0, 1] * 10)

    def load(self, index: int) -> Tensor:
        noise = torch.rand((3, 16, 16), generator=seeded(index))
        return 0.4 * noise + 0.6 * (index % 2)


def tuned(payload: ServerPayload, **settings) -> nn.Module:
    model = copy.deepcopy(payload.model).eval()
    FineTune(**settings)(model, Pictures(), SPEC, CPU)
    return model


def accuracy(model: nn.Module) -> float:
    inputs = SPEC.normalise(torch.stack([Pictures().load(i) for i in range(20)]))
    return float((model.eval()(inputs).argmax(1) == Pictures.labels).double().mean())


def test_fine_tuning_learns_the_task(caplog: pytest.LogCaptureFixture) -> None:
    payload = sent(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)))
    with caplog.at_level(logging.INFO):
        model = tuned(payload, epochs=5, lr=0.01, batch_size=4)
    assert accuracy(model) == 1 > accuracy(payload.model)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 5
    assert "epoch 5 of 5" in lines[-1]
    assert "100.0 %" in lines[-1]


def test_fine_tuning_is_sgd_on_the_named_order() -> None:
    payload = payload_of("lenet", SPEC)
    model = tuned(payload, epochs=2, lr=0.05, batch_size=8, momentum=0.5, seed=3)
    reference = copy.deepcopy(payload.model).train()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.5)
    for epoch in range(2):
        order = torch.randperm(20, generator=generator(3, "finetune", epoch))
        for index in order[:16].split(8):  # 4 images are too few for a batch
            inputs = SPEC.normalise(torch.stack([Pictures().load(int(i)) for i in index]))
            optimizer.zero_grad()
            functional.cross_entropy(reference(inputs), Pictures.labels[index]).backward()
            optimizer.step()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    untouched = tuned(payload, epochs=0)
    for mine, theirs in zip(untouched.parameters(), payload.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_fine_tuning_moves_the_statistics_of_batch_normalisation() -> None:
    spec = replace(SPEC, shape=(3, 32, 32))
    payload = payload_of("resnet18", spec)
    images = Pictures()
    images.labels = images.labels[:3]
    model = copy.deepcopy(payload.model)
    FineTune(batch_size=32)(model, images, SPEC, CPU)  # fewer images than a batch: all of them
    moved = {n: b for n, b in model.named_buffers() if b.is_floating_point()}
    before = float_buffers(payload)
    assert all(not torch.equal(moved[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "fault", [{"epochs": -1}, {"lr": 0.0}, {"batch_size": 0}, {"momentum": 1.0}], ids=str
)
def test_fine_tuning_that_cannot_work_is_refused(fault: dict) -> None:
    with pytest.raises(ConfigurationError, match=r"federation\.pretrain"):
        FineTune(**fault)


def test_the_fine_tuned_network_is_the_one_that_is_sent() -> None:
    tune = ("federation/pretrain=finetune", "federation.pretrain.epochs=1", "dataset.per_class=1")
    sizes = ("preprocess.size=32", "n_images=1", "dataset.kinds=[head]")
    plain = experiment("attack=dlg", *sizes, "dataset.per_class=1").source.example()
    one, again = (experiment("attack=dlg", *sizes, *tune).source.example() for _ in range(2))
    assert torch.equal(flatten(one.parameters), flatten(again.parameters))
    assert not torch.equal(flatten(one.parameters), flatten(plain.parameters))
