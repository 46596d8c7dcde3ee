"""Group consistency: the restarts of a victim as one row, pulled towards their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from unittest.mock import patch

import pytest
import torch
from helpers import CPU, context, observe, payload_of, seeded, sent, victim_of
from torch import Tensor, nn

from medpfl.attacks import GradientMatching
from medpfl.attacks.composition import Parts
from medpfl.attacks.distances import NormalisedError, SquaredError
from medpfl.attacks.groups import GroupMatching
from medpfl.attacks.labels import Joint, Known
from medpfl.attacks.matching import MatchingObjective, Targets
from medpfl.attacks.priors import OutOfRange, TotalVariation
from medpfl.attacks.projection import Box, ImageProjection, MedianFilter
from medpfl.attacks.stages import Key
from medpfl.attacks.starts import Normal
from medpfl.attacks.victim_rows import VictimRows, members_of
from medpfl.errors import ConfigurationError
from medpfl.optim import LBFGS, Adam, LevenbergMarquardt
from medpfl.optim.rows import RowTable
from medpfl.optim.scheduler import Outcome
from medpfl.types import DataSpec, Observation, Reconstruction

SPEC = DataSpec(shape=(1, 8, 8), num_classes=3, mean=(0.4,), std=(0.3,))
VOLUME = DataSpec(shape=(1, 4, 5, 6), num_classes=3, mean=(0.4,), std=(0.3,))
MEMBERS = 3


def seen_of(
    spec: DataSpec = SPEC, labels: tuple[int, ...] = (1,), *, seed: int = 0, capture_id: str = "v"
) -> Observation:
    if spec is VOLUME:
        torch.manual_seed(0)
        layers = nn.Conv3d(1, 2, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(240, 3)
        payload = sent(nn.Sequential(*layers))
    else:
        payload = payload_of("dlg_cnn", spec)
    return observe(payload, spec, victim_of(spec, labels, seed=seed), capture_id=capture_id)


def rows_of(**changes: object) -> VictimRows:
    parts: dict[str, object] = {
        "start": Normal(),
        "labels": Known(),
        "distance": NormalisedError(),
        "priors": (),
        "projections": (),
        "channels": "free",
        "boxed": False,
    }
    rows = {"members": MEMBERS, "shared": False, "seed": 0, "device": CPU}
    own = {name: value for name, value in changes.items() if name in rows}
    parts |= {name: value for name, value in changes.items() if name not in rows}
    return VictimRows(parts=Parts(**parts), **{**rows, **own})  # type: ignore[arg-type]


def problem(
    seen: Observation, *others: Observation, weight: float = 0.7, **changes: object
) -> tuple[GroupMatching, MatchingObjective, Tensor, Targets]:
    """Return the objective of groups, that of members, and the groups' starts and targets."""
    rows = rows_of(**changes)
    unknowns = rows.unknowns(seen)
    single = MatchingObjective(
        payload=seen.payload,
        unknowns=unknowns,
        distance=NormalisedError(),
        dtype=torch.float64,
        chunk=4,
        priors=[OutOfRange(weight=0.1)],
    )
    grouped = GroupMatching(
        objective=single, unknowns=unknowns, members=rows.members, weight=weight
    )
    first, *rest = (rows.row(rows.key(o), torch.float64) for o in (seen, *others))
    z = torch.stack([row.start for row in (first, *rest)])
    return grouped, single, z, first.target.join(*(row.target for row in rest))


def repeated(targets: Targets, members: int = MEMBERS) -> Targets:
    return targets.select(torch.arange(len(targets.labels)).repeat_interleave(members))


# ---- the objective


@pytest.mark.parametrize("spec", [SPEC, VOLUME], ids=["2D", "3D"])
@pytest.mark.parametrize("boxed", [False, True])
def test_members_are_summed_and_pay_for_being_apart(spec: DataSpec, boxed: bool) -> None:
    seen = [seen_of(spec, seed=n, capture_id=f"v{n}") for n in range(2)]
    grouped, single, z, targets = problem(*seen, boxed=boxed)
    members = z.reshape(2 * MEMBERS, -1)
    values, _ = single(members, repeated(targets))
    images = members.reshape(-1, *spec.shape)
    images = spec.normalise(images.sigmoid()) if boxed else images
    images = images.reshape(2, MEMBERS, -1)
    away = (images - images.mean(1, keepdim=True)).square().mean(2).sum(1)
    torch.testing.assert_close(grouped(z, targets)[0], values.reshape(2, -1).sum(1) + 0.7 * away)


@pytest.mark.parametrize("labels", [Known(), Joint()], ids=["known", "joint"])
@pytest.mark.parametrize("spec", [SPEC, VOLUME], ids=["2D", "3D"])
def test_the_gradient_is_that_of_differences(spec: DataSpec, labels: object) -> None:
    grouped, _, z, targets = problem(seen_of(spec, (1, 1)), labels=labels)
    _, gradient = grouped(z, targets)
    along = torch.randn(z.shape, generator=seeded(1), dtype=torch.float64)
    step = 1e-5
    ahead, behind = (grouped(z + sign * step * along, targets)[0] for sign in (1, -1))
    torch.testing.assert_close(
        (gradient * along).sum(1), (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7
    )


def test_the_curvature_is_that_of_the_gradients_near_a_solution() -> None:
    """H v is the change of the gradient along v, where the residual is zero."""
    seen = seen_of()
    grouped, _, z, targets = problem(seen)
    truth = SPEC.normalise(victim_of(SPEC, [1]).inputs).double().flatten()
    z = truth.repeat(MEMBERS).unsqueeze(0)
    vectors = torch.randn(1, 4, z.shape[1], generator=seeded(2), dtype=torch.float64)
    found = grouped.curvature(z, targets)(vectors)
    assert found.shape == vectors.shape
    step = 1e-4
    for number in range(4):
        ahead, behind = (grouped(z + s * step * vectors[:, number], targets)[1] for s in (1, -1))
        wanted = (ahead - behind) / (2 * step)
        torch.testing.assert_close(
            found[:, number], wanted, rtol=0, atol=1e-3 * float(wanted.abs().max())
        )


def test_a_group_depends_on_itself_alone() -> None:
    seen = [seen_of(labels=(1, 1, 2), seed=n, capture_id=f"v{n}") for n in range(4)]
    grouped, _, z, targets = problem(*seen)
    value, gradient = grouped(z, targets)
    for place in range(4):
        one = torch.tensor([place])
        alone = grouped(z[one], targets.select(one))
        torch.testing.assert_close(alone, (value[one], gradient[one]), rtol=1e-12, atol=1e-12)


# ---- several images


def test_images_are_compared_in_the_cheapest_order_within_their_label() -> None:
    seen = seen_of(labels=(1, 1, 2))
    grouped, _, _, targets = problem(seen)
    images = torch.rand(3, 64, generator=seeded(3), dtype=torch.float64)
    swapped, across = images[[1, 0, 2]], images[[2, 1, 0]]

    def apart(*members: Tensor) -> float:
        z = torch.cat([m.flatten() for m in members]).unsqueeze(0)
        return float(grouped._cost(z[0], grouped._order(z, targets)[0]))

    assert apart(images, swapped, images) < 1e-30
    assert apart(swapped, images, images) < 1e-30
    assert apart(images, across, images) > 0.01


def test_images_whose_labels_are_unknowns_may_stand_in_any_order() -> None:
    grouped, _, z, targets = problem(seen_of(labels=(1, 2)), labels=Joint())
    images = z.reshape(MEMBERS, -1)[:, :128].reshape(MEMBERS, 2, 64)
    members = [images[0], images[0].flip(0), images[0]]
    scores = torch.zeros(6, dtype=torch.float64)
    z = torch.cat([torch.cat([m.flatten(), scores]) for m in members]).unsqueeze(0)
    assert float(grouped._cost(z[0], grouped._order(z, targets)[0])) < 1e-30


def test_members_that_are_lost_do_not_stop_the_others() -> None:
    grouped, _, z, targets = problem(*(seen_of(labels=(1, 1), seed=n) for n in range(2)))
    z[0, 5] = math.nan
    value, gradient = grouped(z, targets)
    assert bool(value[0].isnan())
    assert bool(value[1].isfinite())
    assert bool(gradient[1].isfinite().all())


# ---- the attack


def attack_of(**changes: object) -> GradientMatching:
    parts: dict[str, object] = {
        "name": "grouped",
        "start": Normal(),
        "labels": Known(),
        "distance": SquaredError(),
        "optimizer": Adam(lr=0.05, max_steps=20),
        "priors": {"total_variation": TotalVariation(weight=0.01)},
        "projections": {"box": Box(), "median_filter": MedianFilter(every=7)},
        "restarts": MEMBERS,
        "precision": "float64",
        "trace_points": 5,
    }
    return GradientMatching(**{**parts, **changes})  # type: ignore[arg-type]


def reconstruct(attack: GradientMatching, count: int = 2, **seen: object) -> list[Reconstruction]:
    observations = [seen_of(seed=n, capture_id=f"v{n}", **seen) for n in range(count)]  # type: ignore[arg-type]
    found = attack.reconstruct(iter(observations), context())
    return sorted(found, key=lambda r: r.capture_id)


@pytest.mark.parametrize("spec", [SPEC, VOLUME], ids=["2D", "3D"])
def test_with_no_weight_members_are_restarts(spec: DataSpec) -> None:
    """Adam moves every unknown by itself, so that groups of no consistency change nothing."""
    # So short that each step lowers every member's objective: all have their best at the last.
    settings = {"optimizer": Adam(lr=1e-3, max_steps=12), "projections": None}
    apart = reconstruct(attack_of(**settings), spec=spec, labels=(1, 1))
    grouped = reconstruct(attack_of(group_consistency=0.0, **settings), spec=spec, labels=(1, 1))
    for a, b in zip(apart, grouped, strict=True):
        torch.testing.assert_close(a.inputs, b.inputs, rtol=1e-6, atol=1e-6)
        assert (a.status, a.steps, a.evaluations) == (b.status, b.steps, b.evaluations - MEMBERS)
        assert b.objective == pytest.approx(a.objective, rel=1e-9)
        assert b.trace is not None
        assert b.trace.inputs.shape[1:] == b.inputs.shape


def members_reconstructed(**changes: object) -> tuple[Reconstruction, list[Outcome[Key]]]:
    """Return what is handed in for one victim, and how each of its restarts ended."""
    attack = attack_of(projections=None, **changes)
    ended: list[Outcome[Key]] = []

    def watched(outcome: Outcome[Key], values: Sequence[float]) -> list[Outcome[Key]]:
        members = members_of(outcome, values)
        ended.extend(members)
        return members

    with patch("medpfl.attacks.solver.members_of", watched):
        (found,) = reconstruct(attack, 1)
    assert [o.key.restart for o in ended] == list(range(MEMBERS))
    return found, ended


def test_consistency_brings_restarts_together() -> None:
    spread = []
    for weight in (0.0, 10.0):
        _, members = members_reconstructed(
            group_consistency=weight, optimizer=Adam(lr=0.05, max_steps=60)
        )
        z = torch.stack([member.z for member in members])
        spread.append(float((z - z.mean(0)).square().mean()))
    assert spread[1] < 0.05 * spread[0]


def test_the_member_of_lowest_objective_is_handed_in() -> None:
    found, members = members_reconstructed(group_consistency=1e-6)
    objectives = [member.objective for member in members]
    assert len(set(objectives)) == MEMBERS
    best = min(members, key=lambda member: member.objective)
    assert found.objective == best.objective
    pixels = SPEC.denormalise(best.z.reshape(found.inputs.shape)).clamp(0, 1)
    torch.testing.assert_close(found.inputs, pixels.float())
    # Each objective is the member's own: nothing of the consistency is in it.
    seen, rows = seen_of(), rows_of()
    attack = attack_of()
    solver = attack._solver(attack._problem(seen), context())
    single = solver.objective(attack._search.stages[-1], chunk=MEMBERS)
    targets = repeated(rows.target(rows.key(seen), torch.float64))
    values, _ = single(torch.stack([member.z for member in members]), targets)
    assert values.tolist() == pytest.approx(objectives, rel=1e-9)


@pytest.mark.parametrize("network", ["shared", "own"])
def test_rows_beside_it_change_no_group(network: str) -> None:
    def seen(n: int) -> Observation:
        payload = payload_of("dlg_cnn", SPEC, seed=0 if network == "shared" else n)
        return observe(payload, SPEC, victim_of(SPEC, [1, 1], seed=n), capture_id=f"v{n}")

    observations = [seen(n) for n in range(3)]
    if network == "shared":
        payload = observations[0].payload
        observations = [Observation(**{**vars(o), "payload": payload}) for o in observations]
    attack = attack_of(group_consistency=0.1)
    together = {r.capture_id: r for r in attack.reconstruct(iter(observations), context())}
    for observation in observations:
        (alone,) = attack.reconstruct(iter([observation]), context())
        beside = together[observation.capture_id]
        assert (alone.status, alone.evaluations) == (beside.status, beside.evaluations)
        torch.testing.assert_close(alone.inputs, beside.inputs, rtol=1e-6, atol=1e-6)


def test_groups_are_polished_by_second_order() -> None:
    polish = LevenbergMarquardt(max_steps=30, objective_below=1e-9)
    attack = attack_of(
        optimizer=LBFGS(max_steps=3, line_search="strong_wolfe", history=10),
        polish=polish,
        distance=NormalisedError(),
        priors={"out_of_range": OutOfRange(weight=1e-3)},
        projections=None,
        group_consistency=1e-3,
        restarts=2,
    )
    for number, found in enumerate(reconstruct(attack)):
        truth = victim_of(SPEC, [1], seed=number).inputs
        assert float((found.inputs - truth).abs().max()) < 1e-2


def test_projections_move_every_member() -> None:
    seen = seen_of()
    unknowns = rows_of().unknowns(seen)
    z = 3 * torch.randn(2, MEMBERS * unknowns.count, generator=seeded(5), dtype=torch.float64)
    steps = torch.tensor([3, 4])
    parts = (MedianFilter(every=2), Box())
    moved = ImageProjection(parts, unknowns, MEMBERS)(z, steps)
    for member, before in enumerate(z.chunk(MEMBERS, dim=1)):
        wanted = ImageProjection(parts, unknowns)(before, steps)
        assert torch.equal(moved.chunk(MEMBERS, dim=1)[member], wanted)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"group_consistency": -1.0}, "attack.group_consistency=-1.0: must be at least 0"),
        ({"group_consistency": math.nan}, "attack.group_consistency=nan: must be a finite number"),
        ({"group_consistency": 0.1, "restarts": 1}, "Use attack.restarts=2 or more"),
        ({"group_consistency": 0.1, "restart_above": 0.0}, "Use attack.restart_above=null"),
    ],
)
def test_groups_that_cannot_work_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        attack_of(**settings)


def test_targets_are_repeated_by_reference() -> None:
    """The gradient of a large network is not copied once a member."""
    *_, targets = problem(seen_of())
    assert isinstance(targets.gradient, RowTable)
    rows = repeated(targets).gradient[0:MEMBERS]
    assert rows.stride(0) == 0


def test_a_trace_shows_the_member_that_is_handed_in() -> None:
    settings = {"projections": None, "optimizer": Adam(lr=1e-3, max_steps=12)}
    (found,) = reconstruct(attack_of(group_consistency=1e-6, **settings), 1)
    assert found.trace is not None
    steps = (found.trace.inputs[1:] - found.trace.inputs[:-1]).abs().flatten(1).mean(1)
    assert float(steps.max()) < 0.02  # no jump from one member to another
    assert found.trace.objective.tolist() == pytest.approx([found.objective] * 6, rel=0.5)
