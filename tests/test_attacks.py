"""The gradient-matching attack: against torch's own optimiser, row by row, and end to end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from helpers import (
    CPU,
    config,
    context,
    experiment,
    observe,
    payload_of,
    spec_of,
    victim_of,
)
from torch import Tensor
from torch.nn import functional

from medpfl.attacks import GradientMatching
from medpfl.attacks.distances import SquaredError
from medpfl.attacks.labels import Joint, Known, SmallestRow
from medpfl.attacks.starts import Normal, PatchTiled
from medpfl.metrics.image_quality import ssim
from medpfl.optim import LBFGS
from medpfl.optim.lbfgs import LBFGSState
from medpfl.outcomes import Status
from medpfl.runner import observed
from medpfl.seeding import generator
from medpfl.settings.build import instantiate
from medpfl.types import Observation, Reconstruction

SPEC = spec_of(3, 16, 16, num_classes=4)


class WatchedLBFGS(LBFGS):
    """Remembers where rows started, and every point with its objective, of rows in step."""

    def init(self, z: Tensor) -> LBFGSState:
        self.starts = [*getattr(self, "starts", []), *z.clone()]
        self.points: list[Tensor] = []
        self.values: list[Tensor] = []
        return super().init(z)

    def tell(self, state: LBFGSState, value: Tensor, gradient: Tensor) -> None:
        self.points.append(state.z.clone())
        self.values.append(value.clone())
        super().tell(state, value, gradient)


def attack_of(**changes: object) -> GradientMatching:
    """Return DLG with a few small steps in float64, or a variant of it."""
    parts: dict[str, object] = {
        "name": "dlg",
        "start": Normal(),
        "labels": Joint(),
        "distance": SquaredError(),
        "optimizer": LBFGS(max_steps=3, max_iter=4),
        "precision": "float64",
        "trace_points": 0,
    }
    return GradientMatching(**{**parts, **changes})  # type: ignore[arg-type]


def observations_of(count: int = 3, *, shared: bool = True) -> list[Observation]:
    """Return victims "a", "b", ... of the DLG network, with other images, labels and norms."""
    one = payload_of("dlg_cnn", SPEC)
    return [
        observe(
            one if shared else payload_of("dlg_cnn", SPEC, seed=number),
            SPEC,
            victim_of(SPEC, [number % 4], seed=number),
            capture_id="abcdefgh"[number],
        )
        for number in range(count)
    ]


def with_update(observation: Observation, value: float) -> Observation:
    """Return the observation of an update whose entries are all `value`."""
    filled = {n: torch.full_like(t, value) for n, t in observation.tensors.items()}
    return replace(observation, tensors=filled)


def reconstruct(
    attack: GradientMatching, observations: Sequence[Observation], *, seed: int = 0
) -> dict[str, Reconstruction]:
    found = list(attack.reconstruct(iter(observations), context(seed)))
    assert sorted(r.capture_id for r in found) == sorted(o.capture_id for o in observations)
    return {r.capture_id: r for r in found}


def assert_same(a: Reconstruction, b: Reconstruction, *, rtol: float = 1e-9) -> None:
    assert (a.status, a.steps, a.evaluations) == (b.status, b.steps, b.evaluations)
    assert a.objective == pytest.approx(b.objective, rel=rtol, nan_ok=True)
    torch.testing.assert_close(a.inputs, b.inputs, rtol=1e-6, atol=1e-6)
    assert torch.equal(a.labels, b.labels)


# Against torch.optim.LBFGS -----------------------------------------------------------------------


def loop_over_torch(observation: Observation, *, steps: int, max_iter: int) -> list[Tensor]:
    """Return the points `(D,)` that torch's L-BFGS visits in DLG, less those it visits again."""
    stream = generator(0, "start", observation.capture_id, 0)
    image = torch.randn((1, *SPEC.shape), generator=stream).double().requires_grad_()
    scores = torch.randn(1, SPEC.num_classes, generator=stream).double().requires_grad_()
    model = payload_of("dlg_cnn", SPEC).model.double()
    wanted = [t.double() for t in observation.tensors.values()]
    optimizer = torch.optim.LBFGS([image, scores], max_iter=max_iter)
    points: list[Tensor] = []

    def closure() -> Tensor:
        point = torch.cat([image.detach().flatten(), scores.detach().flatten()])
        if not points or not torch.equal(point, points[-1]):
            points.append(point)
        loss = functional.cross_entropy(model(image), scores.softmax(1))
        dummy = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        value = torch.stack([(a - b).square().sum() for a, b in zip(dummy, wanted, strict=True)])
        image.grad, scores.grad = torch.autograd.grad(value.sum(), [image, scores])
        return value.sum().detach()

    for _ in range(steps):
        optimizer.step(closure)
    return points


def test_batched_dlg_follows_a_plain_loop_over_torch():
    steps, max_iter = 3, 5
    observations = observations_of(3)
    watched = WatchedLBFGS(max_steps=steps, max_iter=max_iter)
    found = reconstruct(attack_of(optimizer=watched), observations)
    for row, observation in enumerate(observations):
        reference = loop_over_torch(observation, steps=steps, max_iter=max_iter)
        mine = [points[row] for points in watched.points]
        assert len(reference) == len(mine) == steps * max_iter
        for a, b in zip(mine, reference, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
        # the result is the attacker's choice: the visited point of lowest objective
        best = min(range(len(mine)), key=lambda i: float(watched.values[i][row]))
        pixels = reference[best][: math.prod(SPEC.shape)].reshape(1, *SPEC.shape)
        handed_in = found[observation.capture_id]
        torch.testing.assert_close(
            handed_in.inputs, pixels.float().clamp(0, 1), rtol=1e-6, atol=1e-6
        )
        assert handed_in.labels.item() == int(reference[best][-SPEC.num_classes :].argmax())
        assert handed_in.objective == pytest.approx(float(watched.values[best][row]))


# Rows do not know each other ---------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["one model", "a model each"])
def test_a_result_does_not_depend_on_the_company(shared):
    observations = observations_of(5, shared=shared)
    together = reconstruct(attack_of(rows=64), observations)
    assert_same(reconstruct(attack_of(), observations[2:3])["c"], together["c"])
    in_pairs = reconstruct(attack_of(rows=2), list(reversed(observations)))
    for capture_id, reconstruction in together.items():
        assert_same(in_pairs[capture_id], reconstruction)


def test_starts_follow_from_seed_victim_and_restart_alone():
    def starts(observations: Sequence[Observation], *, seed: int = 0) -> list[Tensor]:
        watched = WatchedLBFGS(max_steps=1, max_iter=1)
        reconstruct(attack_of(optimizer=watched, restarts=2, rows=3), observations, seed=seed)
        return watched.starts

    observations = observations_of(3)
    a0, a1, b0, b1, c0, c1 = starts(observations)
    assert all(map(torch.equal, starts(observations[1:2]), (b0, b1)))
    assert all(map(torch.equal, starts(observations[::-1]), (c0, c1, b0, b1, a0, a1)))
    different = [a0, a1, b0, b1, c0, c1, *starts(observations[:1], seed=1)]
    assert len({tuple(s.tolist()) for s in different}) == 8


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_of_several_restarts_the_lowest_objective_is_handed_in(rows):
    observations = observations_of(3)
    watched = WatchedLBFGS(max_steps=3, max_iter=4)
    attack = attack_of(optimizer=watched, restarts=3, rows=rows, labels=Known())
    found = reconstruct(attack, observations)
    for place, observation in enumerate(observations):
        alone = [
            reconstruct(attack_of(start=Given(z), labels=Known()), [observation])
            for z in watched.starts[3 * place : 3 * place + 3]
        ]
        restarts = [r[observation.capture_id] for r in alone]
        best = min(restarts, key=lambda r: r.objective)
        handed_in = found[observation.capture_id]
        assert handed_in.evaluations == sum(r.evaluations for r in restarts)
        assert_same(replace(handed_in, evaluations=best.evaluations), best)


class Given:
    """Starts where it is told."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __call__(
        self, observation: Observation, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        return self.images.reshape(shape).float()


def test_a_trace_ends_with_what_is_handed_in():
    for reconstruction in reconstruct(attack_of(trace_points=10), observations_of(2)).values():
        trace = reconstruction.trace
        assert trace is not None
        steps = trace.steps.tolist()
        assert steps[0] == 0
        assert steps == sorted(steps)
        assert trace.inputs.shape == (len(steps), 1, *SPEC.shape)
        assert torch.equal(trace.inputs[-1], reconstruction.inputs)
        assert trace.objective[-1].item() == reconstruction.objective == trace.objective.min()
    assert reconstruct(attack_of(), observations_of(1))["a"].trace is None


# Updates that nothing can match ------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 64])
@pytest.mark.parametrize(
    ("value", "status"),
    [
        (0.0, Status.NO_GRADIENT),
        (math.nan, Status.NON_FINITE),
        (math.inf, Status.NON_FINITE),
    ],
)
def test_hopeless_updates_are_reported_between_the_others(value, status, rows):
    good = observations_of(4)
    attack = attack_of(rows=rows, start=PatchTiled(), labels=SmallestRow())
    clean = reconstruct(attack, good)
    mixed = [with_update(good[0], value), good[1], with_update(good[2], value), good[3]]
    found = reconstruct(attack, mixed)
    for place, observation in enumerate(mixed):
        reconstruction = found[observation.capture_id]
        if place % 2:
            assert_same(reconstruction, clean[observation.capture_id])
            continue
        assert reconstruction.status is status
        assert (reconstruction.steps, reconstruction.evaluations) == (0, 0)
        assert math.isnan(reconstruction.objective)
        stream = generator(0, "start", observation.capture_id, 0)
        start = PatchTiled()(observation, (1, *SPEC.shape), stream)
        assert torch.equal(reconstruction.inputs, start)


@pytest.mark.parametrize(
    "labels", [Joint(), SmallestRow(), Known()], ids=lambda s: type(s).__name__
)
def test_victims_without_a_gradient_alone(labels):
    observations = [with_update(o, 0.0) for o in observations_of(3)]
    found = reconstruct(attack_of(labels=labels, restarts=2), observations)
    assert {r.status for r in found.values()} == {Status.NO_GRADIENT}
    assert {r.evaluations for r in found.values()} == {0}
    assert {r.labels.shape for r in found.values()} == {(1,)}


def test_what_counts_as_zero_depends_on_the_attackers_precision():
    faint = with_update(observations_of(1)[0], 1e-30)  # its square is 0 in float32
    assert reconstruct(attack_of(precision="float32"), [faint])["a"].status is Status.NO_GRADIENT
    assert reconstruct(attack_of(precision="float64"), [faint])["a"].evaluations > 0


def test_no_victims_no_reconstructions():
    assert reconstruct(attack_of(), []) == {}


def test_one_entry_that_is_not_finite_is_enough():
    observation = observations_of(1)[0]
    tensors = {n: t.clone() for n, t in observation.tensors.items()}
    next(iter(tensors.values())).flatten()[3] = math.nan
    found = reconstruct(attack_of(), [replace(observation, tensors=tensors)])
    assert found["a"].status is Status.NON_FINITE
    assert bool(found["a"].inputs.isfinite().all())


def test_a_dummy_that_leaves_the_finite_numbers_is_a_row_of_its_own():
    class Bursting:
        """A distance that is not finite for the update of victim b."""

        def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
            value = SquaredError()(dummy, observed)
            return torch.where(observed[-1].sum() > 100, torch.nan, value)

    good = observations_of(3)
    bad = replace(
        good[1],
        tensors={n: t + 1000 if n == "fc.bias" else t for n, t in good[1].tensors.items()},
    )
    clean = reconstruct(attack_of(), good)
    found = reconstruct(attack_of(distance=Bursting()), [good[0], bad, good[2]])
    assert found["b"].status is Status.NON_FINITE
    assert math.isnan(found["b"].objective)
    assert found["b"].evaluations == 1
    for capture_id in "ac":
        assert_same(found[capture_id], clean[capture_id])


def test_joint_labels_are_those_of_the_dummy():
    assert Joint().labels(observations_of(1)[0]) is None
    assert Joint().requires == frozenset()
    for reconstruction in reconstruct(attack_of(), observations_of(2)).values():
        assert reconstruction.labels.shape == (1,)


def test_an_update_of_unknown_size_is_refused():
    assert attack_of().requires == {"num_examples"}
    assert attack_of(labels=Known()).requires == {"num_examples", "labels"}
    blind = replace(observations_of(1)[0], num_examples=None)
    with pytest.raises(ValueError, match="number of examples is withheld"):
        reconstruct(attack_of(), [blind])


def test_known_labels_of_two_images_are_matched_jointly():
    victim = victim_of(SPEC, [1, 3], seed=5)
    observation = observe(payload_of("dlg_cnn", SPEC), SPEC, victim)
    attack = attack_of(labels=Known(), start=Given(victim.inputs))
    (found,) = reconstruct(attack, [observation]).values()
    norm = sum(float(t.double().square().sum()) for t in observation.tensors.values())
    assert found.objective < 1e-10 * norm  # at the truth but for the client's float32
    torch.testing.assert_close(found.inputs, victim.inputs, rtol=0, atol=1e-4)
    assert found.labels.tolist() == [1, 3]


# The whole path ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpl", "dlg", "idlg"])
def test_conf_composes_the_attack_it_names(name):
    attack = instantiate(config(f"attack={name}").attack)
    assert isinstance(attack, GradientMatching)
    assert attack.name == name
    assert attack.requires == {"num_examples"}


def test_cpl_reconstructs_the_phantom_images_that_have_a_gradient():
    ids = "[skin_irregular/0000,chest_clear/0000]"
    parts = experiment("attack=cpl", f"dataset.select={ids}", "attack.trace_points=0")
    statuses, waiting = [], {}
    seen = observed(parts.source.captures(), waiting)
    for reconstruction in parts.attack.reconstruct(seen, context()):
        capture = waiting.pop(reconstruction.capture_id)
        victim, facts = capture.truth, capture.facts
        similarity = ssim(victim.inputs[0], reconstruction.inputs[0])
        assert reconstruction.inputs.device == CPU
        if facts.gradient_norm == 0:
            assert reconstruction.status is Status.NO_GRADIENT
            assert similarity < 0.5
        else:
            assert similarity > 0.99
            assert torch.equal(reconstruction.labels, victim.labels)
            assert reconstruction.objective < 1e-6
        statuses.append(reconstruction.status)
    assert statuses.count(Status.NO_GRADIENT) == 1
    assert not waiting
