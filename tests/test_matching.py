"""The matching objective against plain double-backward autograd, in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from helpers import payload_of, seeded, sent, spec_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from medpfl.attacks.distances import Cosine, Distance, SquaredError
from medpfl.attacks.matching import (
    MatchingObjective,
    Targets,
    flatten,
    float_buffers,
    rows_at_once,
    unflatten,
)
from medpfl.attacks.unknowns import Unknowns
from medpfl.batch_norm import POLICIES, BatchNormPolicy
from medpfl.models.init import UniformInit
from medpfl.types import DataSpec, ServerPayload

SIGMOID_NETWORKS = ["cpl_cnn", "dlg_cnn", "idlg_cnn"]
DISTANCES = [SquaredError(), Cosine()]
SPEC = spec_of(3, 8, 8)
ROWS = 3


def small_payload(network: str) -> ServerPayload:
    """Return a network at the size of SPEC, its logits small enough for every row to count."""
    model = payload_of(network, SPEC).model
    with torch.no_grad():
        for parameter in model.fc.parameters():
            parameter.mul_(0.05)
    return sent(model)


def normalising_payload(
    seed: int = 0, *, batch_norm: BatchNormPolicy = "eval_public"
) -> ServerPayload:
    """Return a small network with batch normalisation, its statistics unlike fresh ones."""
    g = seeded(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.Sigmoid(),
        nn.Conv2d(4, 5, 2),
        nn.BatchNorm2d(5),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(20, SPEC.num_classes),
    )
    UniformInit(bound=0.5).apply(model, g)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.2 if name.endswith("var") else -0.5, 0.9, generator=g)
    return sent(model, batch_norm=batch_norm)


def client_gradient(payload: ServerPayload, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the flat gradient `(P,)` by plain autograd in float64, differentiable in inputs."""
    model = copy.deepcopy(payload.model).double().train(payload.training)
    loss = functional.cross_entropy(model(inputs), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return torch.cat([g.flatten() for g in gradients])


def distance_of(kind: Distance, dummy: Tensor, observed: Tensor) -> Tensor:
    if isinstance(kind, SquaredError):
        return functional.mse_loss(dummy, observed, reduction="sum")
    return 1 - functional.cosine_similarity(dummy, observed, dim=0)


def reference(
    payload: ServerPayload, kind: Distance, unknowns: Unknowns, z: Tensor, target: Targets
) -> tuple[Tensor, Tensor]:
    """Return the value and the gradient `(D,)` of one row, without torch.func."""
    z = z.clone().requires_grad_()
    images, scores = unknowns.unpack(z)
    labels = target.labels[0] if scores is None else scores.softmax(1)
    dummy = client_gradient(payload, images, labels)
    value = distance_of(kind, dummy, target.gradient[0])
    return value.detach(), torch.autograd.grad(value, z)[0]


def objective_of(
    payload: ServerPayload, kind: Distance, unknowns: Unknowns, *, chunk: int = 100
) -> MatchingObjective:
    return MatchingObjective(
        payload=payload, unknowns=unknowns, distance=kind, dtype=torch.float64, chunk=chunk
    )


def unknowns_of(spec: DataSpec, *, images: int = 1, joint: bool = False) -> Unknowns:
    return Unknowns(spec, images, spec.num_classes, joint)


def points_and_targets(
    payload: ServerPayload, unknowns: Unknowns, rows: int = ROWS
) -> tuple[Tensor, Tensor, Targets]:
    """Return the truths `(B, D)`, other points `(B, D)`, and the targets of the truths."""
    g = seeded(1)
    labels = torch.randint(unknowns.classes, (rows, unknowns.images), generator=g)
    images = torch.rand(rows, *unknowns.image_shape, generator=g, dtype=torch.float64)
    hard = functional.one_hot(labels, unknowns.classes).double()
    truths = torch.stack(
        [unknowns.pack(i, 60 * p) for i, p in zip(images, hard, strict=True)]  # softmax: one-hot
    )
    gradients = [client_gradient(payload, i, p) for i, p in zip(images, hard, strict=True)]
    empty = torch.zeros(rows, 0, dtype=torch.float64)
    targets = Targets(torch.stack(gradients).detach(), hard, empty, empty, empty.long())
    points = torch.rand(truths.shape, generator=g, dtype=torch.float64)
    return truths, points, targets


def row_of(targets: Targets, row: int) -> Targets:
    return targets.select(torch.tensor([row]))


def assert_same(
    found: tuple[Tensor, Tensor],
    wanted: tuple[Tensor, Tensor],
    *,
    rtol: float,
    rounding: float = 0.0,
) -> None:
    """Compare values and gradients; `rounding` is what cancellation may leave in a value."""
    torch.testing.assert_close(found[0], wanted[0], rtol=rtol, atol=rounding)
    largest = float(wanted[1].abs().max())
    torch.testing.assert_close(found[1], wanted[1], rtol=rtol, atol=rtol * largest)


@pytest.mark.parametrize("kind", DISTANCES, ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("joint", [False, True], ids=["known", "joint"])
@pytest.mark.parametrize("network", SIGMOID_NETWORKS)
def test_value_and_gradient_are_double_backward_autograd(network, joint, kind):
    payload = small_payload(network)
    unknowns = unknowns_of(SPEC, images=2 if joint else 1, joint=joint)
    _, points, targets = points_and_targets(payload, unknowns)
    values, gradients = objective_of(payload, kind, unknowns)(points, targets)
    assert values.shape == (ROWS,)
    assert gradients.shape == points.shape
    for row in range(ROWS):
        wanted = reference(payload, kind, unknowns, points[row], row_of(targets, row))
        rounding = 1e-14 if isinstance(kind, Cosine) else 0.0
        assert_same((values[row], gradients[row]), wanted, rtol=1e-9, rounding=rounding)


@pytest.mark.parametrize("batch_norm", POLICIES)
def test_batch_normalisation_under_every_policy(batch_norm):
    payload = normalising_payload(batch_norm=batch_norm)
    unknowns = unknowns_of(SPEC, images=2)
    truths, points, targets = points_and_targets(payload, unknowns)
    objective = objective_of(payload, SquaredError(), unknowns)
    values, gradients = objective(points, targets)
    for row in range(ROWS):
        wanted = reference(payload, SquaredError(), unknowns, points[row], row_of(targets, row))
        assert_same((values[row], gradients[row]), wanted, rtol=1e-9)
    at_truth, _ = objective(truths, targets)
    assert bool((at_truth < 1e-18 * targets.gradient.square().sum(1)).all())


@pytest.mark.parametrize("network", SIGMOID_NETWORKS)
@pytest.mark.parametrize("joint", [False, True], ids=["known", "joint"])
def test_gradient_is_the_slope_of_the_value(network, joint):
    payload, unknowns = small_payload(network), unknowns_of(SPEC, joint=joint)
    _, points, targets = points_and_targets(payload, unknowns)
    objective = objective_of(payload, SquaredError(), unknowns)
    _, gradient = objective(points, targets)
    along = torch.randn(points.shape, generator=seeded(2), dtype=torch.float64)
    step = 1e-5
    ahead, _ = objective(points + step * along, targets)
    behind, _ = objective(points - step * along, targets)
    slope = (ahead - behind) / (2 * step)
    torch.testing.assert_close(slope, (gradient * along).sum(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", DISTANCES, ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("joint", [False, True], ids=["known", "joint"])
@pytest.mark.parametrize("network", SIGMOID_NETWORKS)
def test_zero_at_the_truth(network, joint, kind):
    payload, unknowns = small_payload(network), unknowns_of(SPEC, joint=joint)
    truths, points, targets = points_and_targets(payload, unknowns)
    objective = objective_of(payload, kind, unknowns)
    scale = targets.gradient.square().sum(1) if isinstance(kind, SquaredError) else 1.0
    values, _ = objective(truths, targets)
    assert bool((values.abs() <= 1e-14 * scale).all())
    elsewhere, _ = objective(points, targets)
    assert bool((elsewhere > 1e-8 * scale).all())


@pytest.mark.parametrize("network", SIGMOID_NETWORKS)
def test_stacked_parameters_give_what_shared_ones_give(network):
    payload, unknowns = small_payload(network), unknowns_of(SPEC)
    _, points, targets = points_and_targets(payload, unknowns)
    objective = objective_of(payload, SquaredError(), unknowns)
    stacked = flatten(payload.parameters).double().expand(ROWS, -1)
    assert_same(
        objective(points, replace(targets, parameters=stacked)),
        objective(points, targets),
        rtol=1e-11,
    )


def test_each_row_uses_its_own_network_and_its_own_statistics():
    payloads = [normalising_payload(seed) for seed in (0, 1)]
    unknowns = unknowns_of(SPEC)
    both = [points_and_targets(payload, unknowns, rows=1) for payload in payloads]
    own = [
        replace(
            targets,
            parameters=flatten(payload.parameters).double().unsqueeze(0),
            buffers=flatten(float_buffers(payload)).double().unsqueeze(0),
        )
        for payload, (_, _, targets) in zip(payloads, both, strict=True)
    ]
    truths = torch.cat([truth for truth, _, _ in both])
    objective = objective_of(payloads[0], Cosine(), unknowns)
    values, _ = objective(truths, own[0].join(own[1]))
    assert bool((values.abs() < 1e-13).all())


@pytest.mark.parametrize("stacked", [False, True], ids=["shared", "stacked"])
def test_chunks_do_not_change_values(stacked):
    payload, unknowns = payload_of("dlg_cnn", SPEC), unknowns_of(SPEC)
    _, points, targets = points_and_targets(payload, unknowns, rows=5)
    if stacked:
        own = flatten(payload.parameters).double().expand(5, -1)
        targets = replace(targets, parameters=own)
    whole = objective_of(payload, SquaredError(), unknowns, chunk=5)(points, targets)
    for chunk in (1, 2, 4, 1000):
        parts = objective_of(payload, SquaredError(), unknowns, chunk=chunk)(points, targets)
        assert_same(parts, whole, rtol=1e-12)


def test_the_network_that_was_sent_is_left_alone():
    payload = normalising_payload(batch_norm="train_private")
    before = copy.deepcopy(payload.model.state_dict())
    unknowns = unknowns_of(SPEC, images=2)
    _, points, targets = points_and_targets(payload, unknowns, rows=1)
    objective_of(payload, SquaredError(), unknowns)(points, targets)
    after = payload.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(m.track_running_stats for m in payload.model.modules() if hasattr(m, "running_mean"))


@given(
    shapes=st.lists(st.lists(st.integers(1, 3), max_size=3), max_size=4),
    seed=st.integers(0, 2**31),
)
def test_flatten_and_unflatten_undo_each_other(shapes, seed):
    g = seeded(seed)
    tensors = {f"p{i}": torch.randn(shape, generator=g) for i, shape in enumerate(shapes)}
    vector = flatten(tensors)
    assert vector.shape == (sum(t.numel() for t in tensors.values()),)
    back = unflatten(vector, {n: t.shape for n, t in tensors.items()})
    assert list(back) == list(tensors)
    assert all(torch.equal(back[n], t) for n, t in tensors.items())


@pytest.mark.parametrize("joint", [False, True])
def test_pack_and_unpack_undo_each_other(joint):
    unknowns = Unknowns(spec_of(2, 4, 5, num_classes=6), 3, 6, joint)
    images = torch.rand(unknowns.image_shape, generator=seeded())
    scores = torch.randn(unknowns.label_shape, generator=seeded())
    z = unknowns.pack(images, scores)
    assert z.shape == (3 * 2 * 4 * 5 + (3 * 6 if joint else 0),)
    found_images, found_scores = unknowns.unpack(z)
    assert torch.equal(found_images, images)
    assert (found_scores is None) != joint
    assert found_scores is None or torch.equal(found_scores, scores)


def test_rows_at_once_follow_from_the_activations():
    spec = spec_of(3, 32, 32)
    payload = payload_of("dlg_cnn", spec)
    # four convolutions, a sigmoid after each, and the head
    a_row = 2 * 12 * (16 * 16 + 3 * 8 * 8) + 3
    assert rows_at_once(payload, unknowns_of(spec)) == 6_000_000 // a_row
    assert rows_at_once(payload, unknowns_of(spec, images=2)) == 6_000_000 // (2 * a_row)
    assert not any(m._forward_hooks for m in payload.model.modules())
