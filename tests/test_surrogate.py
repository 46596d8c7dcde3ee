"""The surrogate-model attack: its objective, where it starts, what it rebuilds, what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import context, experiment, payload_of, sample_images, seeded, sent, spec_of
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from medpfl.attacks.distances import Cosine
from medpfl.attacks.labels import Counted
from medpfl.attacks.matching import MatchingObjective, Targets, flatten, unflatten
from medpfl.attacks.reading import as_gradient
from medpfl.attacks.surrogate import Surrogate
from medpfl.attacks.unknowns import Unknowns
from medpfl.errors import ConfigurationError
from medpfl.training import LocalTraining, UpdateMap
from medpfl.types import Capture, Reconstruction, ServerPayload

SPEC = spec_of(3, 8, 8)
ROWS, LR = 3, 0.3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def payload(network: str) -> ServerPayload:
    if network == "dlg_cnn":
        return payload_of(network, SPEC)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)]
        return sent(nn.Sequential(*layers))


def unknowns(images: int, *, joint: bool = False, surrogate: bool = True) -> Unknowns:
    between = Surrogate() if surrogate else None
    return Unknowns(SPEC, images, SPEC.num_classes, joint, surrogate=between)


def objective(network: ServerPayload, layout: Unknowns) -> MatchingObjective:
    return MatchingObjective(
        payload=network,
        unknowns=layout,
        distance=Cosine(),
        dtype=torch.float64,
        chunk=2,
        update=UpdateMap(lr=LR),
    )


def targets(network: ServerPayload, images: int, *, own: bool) -> Targets:
    """Return rows whose way from w0 to wT is half as long as w0 itself, about."""
    before = flatten(network.parameters).double()
    away = normal(ROWS, len(before), seed=1) * before.std() / 2
    labels = torch.arange(ROWS * images).view(ROWS, images) % SPEC.num_classes
    return Targets(
        gradient=away / LR,
        labels=functional.one_hot(labels, SPEC.num_classes).double(),
        parameters=before + 0.1 * normal(ROWS, len(before), seed=2)
        if own
        else before.new_zeros(ROWS, 0),
        buffers=before.new_zeros(ROWS, 0),
        order=torch.zeros(ROWS, 0, dtype=torch.int64),
    )


def plainly(
    network: ServerPayload, layout: Unknowns, target: Targets, z: Tensor, row: int
) -> tuple[Tensor, Tensor]:
    """Compute a row's objective and its gradient as the paper writes them."""
    shapes = {n: p.shape for n, p in network.parameters.items()}
    own = target.parameters.shape[1] > 0
    before = target.parameters[row] if own else flatten(network.parameters).double()
    point = z[row].clone().requires_grad_()
    pixels = math.prod(layout.image_shape)
    images = point[:pixels].reshape(layout.image_shape)
    a = (1 - point[-1].cos()) / 2
    after = before - LR * torch.as_tensor(target.gradient[row : row + 1])[0]
    between = unflatten((1 - a) * before + a * after, shapes)
    logits = functional_call(network.model, between, (images,))
    scores = point[pixels:-1].reshape(layout.images, -1).softmax(1) if layout.joint_labels else None
    loss = functional.cross_entropy(logits, target.labels[row] if scores is None else scores)
    gradient = torch.autograd.grad(loss, list(between.values()), create_graph=True)
    dummy = torch.cat([g.flatten() for g in gradient])
    value = 1 - functional.cosine_similarity(dummy, before - after, dim=0)
    return value.detach(), torch.autograd.grad(value, point)[0]


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize(("images", "joint"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("network", ["dlg_cnn", "any"])
def test_the_objective_is_the_papers_in_images_and_share(network, images, joint, own) -> None:
    sent_out, layout = payload(network), unknowns(images, joint=joint)
    target = targets(sent_out, images, own=own)
    z = normal(ROWS, layout.count, seed=5)
    values, gradients = objective(sent_out, layout)(z, target)
    for row in range(ROWS):
        value, gradient = plainly(sent_out, layout, target, z, row)
        torch.testing.assert_close(values[row], value, rtol=0, atol=1e-12)
        size = float(gradient.abs().max())
        torch.testing.assert_close(gradients[row], gradient, rtol=0, atol=1e-10 * size)
        assert abs(float(gradient[-1])) > 1e-6, "the share must count for something here"


@pytest.mark.parametrize("network", ["dlg_cnn", "any"])
def test_at_the_weights_sent_it_is_the_objective_of_one_gradient(network) -> None:
    sent_out = payload(network)
    target = targets(sent_out, 2, own=False)
    z = normal(ROWS, unknowns(2).count, seed=5)
    z[:, -1] = 0
    values, gradients = objective(sent_out, unknowns(2))(z, target)
    plain = objective(sent_out, unknowns(2, surrogate=False))(z[:, :-1], target)
    torch.testing.assert_close(values, plain[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(gradients[:, :-1], plain[1], rtol=1e-9, atol=1e-14)
    assert bool((gradients[:, -1] == 0).all())


@pytest.mark.parametrize("start", [0.001, 0.25, 0.5, 0.9])
def test_the_share_begins_where_it_is_told_and_never_leaves_its_interval(start: float) -> None:
    layout = replace(unknowns(2, joint=True), surrogate=Surrogate(start=start))
    images, scores = normal(*layout.image_shape), normal(*layout.label_shape)
    z = layout.pack(images, scores)
    assert len(z) == layout.count == 2 * 3 * 8 * 8 + 2 * 3 + 1
    found, found_scores = layout.unpack(z)
    assert torch.equal(found, images)
    assert torch.equal(torch.as_tensor(found_scores), scores)
    before, after = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, -2.0]).double()
    wanted = (1 - start) * before + start * after
    torch.testing.assert_close(layout.network(z, before, after), wanted)
    anywhere = Surrogate().share(torch.linspace(-20, 20, 1001))
    assert 0 <= float(anywhere.min()) < 1e-3
    assert 1 - 1e-3 < float(anywhere.max()) <= 1


@pytest.mark.parametrize("start", [-0.1, 0.0, 1.0, float("nan")])
def test_a_start_without_a_slope_is_refused(start: float) -> None:
    with pytest.raises(ConfigurationError, match=r"attack\.surrogate\.start"):
        Surrogate(start=start)


BRAIN = (
    "dataset=brain_mri",
    "preprocess.size=16",
    "federation=fedavg",
    "federation.local.epochs=8",
    "federation.local.lr=0.002",
    "n_images=1",
    "attack.restarts=1",
    "attack.trace_points=0",
    "attack.determination=false",
)
WITHHELD = "threat.local_training=none"


def rebuilt(*settings: str) -> tuple[Capture, Reconstruction]:
    sample_images("brain_mri")
    parts = experiment(*settings)
    (capture,) = parts.source.captures()
    (found,) = parts.attack.reconstruct([capture.observation], context())
    return capture, found


def similarity(capture: Capture, found: Reconstruction) -> float:
    assert capture.truth is not None
    pair = (capture.truth.inputs[0, 0].numpy(), found.inputs[0, 0].numpy())
    return float(structural_similarity(*pair, data_range=1.0))


def test_an_image_is_rebuilt_from_eight_steps_of_which_nothing_is_known() -> None:
    steps = "attack.optimizer.max_steps=200"
    capture, found = rebuilt("attack=surrogate", *BRAIN, WITHHELD, steps)
    assert capture.observation.local_training is None
    reached = similarity(capture, found)
    by_one_gradient = similarity(*rebuilt("attack=scale_free", *BRAIN, WITHHELD, steps))
    assert reached > 0.95
    assert by_one_gradient < 0.85


def test_knowing_the_steps_changes_nothing_but_rounding() -> None:
    steps = "attack.optimizer.max_steps=5"
    (_, blind), (_, knowing) = (
        rebuilt("attack=surrogate", *BRAIN, f"threat.local_training={known}", steps)
        for known in ("none", "full")
    )
    assert knowing.objective == pytest.approx(blind.objective, rel=1e-6)
    torch.testing.assert_close(knowing.inputs, blind.inputs, rtol=0, atol=1e-4)


def test_where_the_first_step_is_all_the_closed_form_is_kept() -> None:
    # At this rate one step takes the loss to zero: the update is the first gradient.
    settings = ("preprocess.size=32", "federation.local.lr=0.1")
    capture, found = rebuilt("attack=surrogate", *BRAIN, WITHHELD, *settings)
    assert found.closed_form
    assert similarity(capture, found) > 0.99


def test_the_network_seen_is_the_mean_of_that_sent_and_that_returned() -> None:
    sample_images("brain_mri")
    for known in ("none", "partial"):
        parts = experiment("attack=surrogate", *BRAIN, f"threat.local_training={known}")
        (capture,) = parts.source.captures()
        observation = capture.observation
        seen = Surrogate().seen(as_gradient(observation))
        for name, before in observation.payload.parameters.items():
            wanted = before + observation.tensors[name] / 2
            torch.testing.assert_close(seen.payload.parameters[name], wanted)


def counted(known: str, *settings: str) -> tuple[int, int]:
    """Return of how many updates the labels are counted right, and how many there are."""
    sample_images("brain_mri")
    parts = experiment(
        "attack=surrogate",
        *BRAIN,
        "n_images=16",
        "federation.batch_size=4",
        "federation.local.batch_size=2",
        f"threat.local_training={known}",
        *settings,
    )
    right = total = 0
    for capture in parts.source.captures():
        assert capture.truth is not None
        found = Counted().labels(Surrogate().seen(as_gradient(capture.observation)))
        right += torch.as_tensor(found).tolist() == sorted(capture.truth.labels.tolist())
        total += 1
    return right, total


@pytest.mark.parametrize("known", ["none", "partial"])
def test_labels_are_counted_where_not_even_the_size_of_the_update_is_known(known: str) -> None:
    assert counted(known, "federation.local.epochs=4") == (4, 4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["federation=fedsgd"], r"attack\.surrogate: under FedSGD.* Use attack=scale_free"),
        (["capture.parameters=[fc.*]"], r"attack\.surrogate: .*leaves out body\.0\.bias"),
        (["attack.surrogate.start=0"], r"attack\.surrogate\.start=0"),
    ],
)
def test_what_cannot_work_is_said_before_any_compute(settings, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        experiment("attack=surrogate", "n_images=1", "federation=fedavg", *settings)


def test_a_gradient_is_refused_by_the_attack_itself_too() -> None:
    parts = experiment("attack=surrogate", "n_images=1", "federation=fedavg")
    (capture,) = parts.source.captures()
    gradient = replace(capture.observation, kind="gradient", local_training=LocalTraining())
    with pytest.raises(ConfigurationError, match=r"attack\.surrogate: under FedSGD"):
        list(parts.attack.reconstruct([gradient], context()))
