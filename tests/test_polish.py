"""Second order in the attack: polish, mixed precision, pixels kept in their box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from helpers import context, experiment, observe, payload_of, spec_of, victim_of
from torch import Tensor

from medpfl.attacks import GradientMatching
from medpfl.attacks.distances import Cosine, Distance
from medpfl.attacks.labels import Known
from medpfl.attacks.priors import TotalVariation
from medpfl.attacks.starts import PatchTiled
from medpfl.attacks.unknowns import Unknowns
from medpfl.errors import ConfigurationError
from medpfl.optim import LBFGS, BatchedOptimizer, LevenbergMarquardt
from medpfl.outcomes import Status
from medpfl.types import DataSpec, Observation, Reconstruction, Truth

SPEC = DataSpec(
    shape=(3, 8, 8), num_classes=3, mean=(0.4, 0.4, 0.4), std=(0.3, 0.3, 0.3), greyscale=True
)


def lbfgs(steps: int = 20) -> LBFGS:
    return LBFGS(
        max_steps=steps, max_iter=1, max_eval=25, history=10, line_search="strong_wolfe",
        tolerance_grad=0.0, tolerance_change=0.0, on_stall="reset",
    )  # fmt: skip


def second_order() -> LevenbergMarquardt:
    return LevenbergMarquardt(max_steps=30, objective_below=1e-9)


def attack_of(**changes: object) -> GradientMatching:
    parts: dict[str, object] = {
        "name": "polished",
        "start": PatchTiled(),
        "labels": Known(),
        "distance": Cosine(),
        "optimizer": lbfgs(),
        "channels": "tied",
        "precision": "float64",
        "trace_points": 0,
    }
    return GradientMatching(**{**parts, **changes})  # type: ignore[arg-type]


def victims_of(count: int = 2) -> dict[str, Truth]:
    """Return grey victims."""
    coloured = {f"v{n}": victim_of(spec_of(3, 8, 8), [n % 3], seed=n) for n in range(count)}
    return {
        name: replace(v, inputs=v.inputs.mean(1, keepdim=True).expand_as(v.inputs))
        for name, v in coloured.items()
    }


def observations() -> list[Observation]:
    payload = payload_of("dlg_cnn", SPEC)
    return [observe(payload, SPEC, v, capture_id=name) for name, v in victims_of().items()]


def reconstruct(
    attack: GradientMatching, seen: Sequence[Observation] | None = None
) -> dict[str, Reconstruction]:
    found = attack.reconstruct(iter(observations() if seen is None else seen), context())
    return {r.capture_id: r for r in found}


# ---- polish and precision


@pytest.mark.parametrize("solver", ["dense", "cg"])
@pytest.mark.parametrize("pixels", ["free", "sigmoid"])
def test_a_handful_of_steps_finds_the_images(solver: str, pixels: str) -> None:
    optimizer = LevenbergMarquardt(max_steps=40, objective_below=1e-8, solver=solver)
    victims = victims_of()
    for name, found in reconstruct(attack_of(optimizer=optimizer, pixels=pixels)).items():
        assert found.status is Status.CONVERGED
        assert (victims[name].inputs - found.inputs).square().mean() < 1e-4


def test_a_polish_goes_on_from_where_the_first_optimizer_ended() -> None:
    coarse = reconstruct(attack_of())
    fine = reconstruct(attack_of(polish=second_order(), trace_points=20))
    for name, found in fine.items():
        before = coarse[name]
        assert before.objective > 1e-8 > found.objective
        assert found.status is Status.CONVERGED
        assert 20 < found.steps < 50
        assert found.evaluations > before.evaluations
        assert found.trace is not None
        assert found.trace.steps.tolist() == sorted(set(found.trace.steps.tolist()))
        assert 20 in found.trace.steps.tolist()  # where the polish begins
        assert found.trace.objective[-1] == found.objective


def test_a_polish_costs_its_own_evaluations_and_no_more() -> None:
    polished = reconstruct(attack_of(polish=LevenbergMarquardt(max_steps=2)))
    for name, before in reconstruct(attack_of()).items():
        assert polished[name].steps == before.steps + 2
        assert polished[name].evaluations == before.evaluations + 3
        assert polished[name].status is Status.OUT_OF_STEPS


@pytest.mark.parametrize(
    "polish", [None, LevenbergMarquardt(max_steps=10)], ids=["again", "second order"]
)
def test_mixed_precision_ends_below_float32(polish: BatchedOptimizer | None) -> None:
    steps = lbfgs(60)
    single = reconstruct(attack_of(optimizer=steps, precision="float32"))
    mixed = reconstruct(attack_of(optimizer=steps, polish=polish, precision="mixed"))
    for name, found in mixed.items():
        assert found.objective < single[name].objective
        assert found.evaluations > single[name].evaluations


def test_restarts_and_rows_do_not_change_what_a_polish_finds() -> None:
    attack = {"optimizer": lbfgs(5), "polish": second_order(), "restarts": 2}
    seen = observations()
    together = reconstruct(attack_of(**attack, rows=64), seen)
    for name, alone in reconstruct(attack_of(**attack, rows=1), seen[:1]).items():
        assert (alone.status, alone.steps) == (together[name].status, together[name].steps)
        torch.testing.assert_close(alone.inputs, together[name].inputs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("polish", [None, lbfgs(3)], ids=["one stage", "two stages"])
@pytest.mark.parametrize("rows", [1, 8])
def test_restarts_are_made_until_one_is_low_enough(
    polish: BatchedOptimizer | None, rows: int
) -> None:
    parts = {"optimizer": lbfgs(5), "polish": polish, "rows": rows}
    seen = observations()
    always = reconstruct(attack_of(restarts=3, **parts), seen)
    never = reconstruct(attack_of(restarts=1, **parts), seen)
    for level, wanted in ((0.0, always), (1e9, never)):
        found = reconstruct(attack_of(restarts=3, restart_above=level, **parts), seen)
        assert found.keys() == wanted.keys()
        for name, one in found.items():
            assert one.evaluations == wanted[name].evaluations
            torch.testing.assert_close(one.inputs, wanted[name].inputs, rtol=0, atol=1e-5)
    firsts = sorted(r.objective for r in never.values())
    between = sum(firsts) / 2  # the better victim needs no restart, the other one does
    some = reconstruct(attack_of(restarts=2, restart_above=between, **parts), seen)
    again = [n for n, r in some.items() if r.evaluations > never[n].evaluations]
    assert [never[n].objective for n in again] == firsts[1:]


def test_victims_without_a_gradient_are_answered_in_mixed_precision() -> None:
    seen = observations()
    tensors = {n: torch.zeros_like(t) for n, t in seen[0].tensors.items()}
    nothing = replace(seen[0], tensors=tensors)
    found = reconstruct(attack_of(precision="mixed"), [nothing, seen[1]])
    assert found["v0"].status is Status.NO_GRADIENT
    assert found["v1"].evaluations > 0


# ---- pixels in their box


@pytest.mark.parametrize("tied", [False, True])
def test_boxed_pixels_are_sigmoids(tied: bool) -> None:
    unknowns = Unknowns(SPEC, 2, 3, joint_labels=True, tied=tied, boxed=True)
    grey = torch.rand(2, 1, 8, 8).expand(2, 3, 8, 8) * 0.9 + 0.05
    scores = torch.randn(2, 3)
    z = unknowns.pack(SPEC.normalise(grey), scores)
    images, found = unknowns.unpack(z)
    torch.testing.assert_close(SPEC.denormalise(images), grey)
    assert found is not None
    assert torch.equal(found, scores)
    far, _ = unknowns.unpack(100 * torch.randn(z.shape))
    pixels = SPEC.denormalise(far)
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


def test_black_and_white_starts_keep_a_slope() -> None:
    unknowns = Unknowns(SPEC, 1, 3, joint_labels=False, boxed=True)
    for shade in (-2.0, 0.0, 1.0, 3.0):
        z = unknowns.pack(SPEC.normalise(torch.full((1, 3, 8, 8), shade)), torch.zeros(1, 3))
        pixel = z.sigmoid()
        assert (pixel * (1 - pixel)).min() > 0.25 / 21


# ---- what cannot work is refused before anything is computed


class Other:
    """A distance that is no sum of squares."""

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        return torch.stack([t.abs().sum() for t in dummy]).sum()


@pytest.mark.parametrize("place", ["optimizer", "polish"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distance": Other()}, r"attack\.distance: LevenbergMarquardt needs a sum of squares"),
        (
            {"priors": {"total_variation": TotalVariation(weight=0.1)}},
            r"attack\.priors: LevenbergMarquardt needs sums of squares",
        ),
    ],
)
def test_second_order_needs_sums_of_squares(
    place: str, changes: dict[str, Distance], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        attack_of(**{place: second_order()}, **changes)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("attack.precision=float16", "attack.precision=float16: choose float32, float64, mixed"),
        ("attack.pixels=clamped", "attack.pixels=clamped: choose free or sigmoid"),
        ("+attack.projections.box._target_=medpfl.attacks.projection.Box", "attack.projections"),
    ],
)
def test_settings_that_cannot_work(setting: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        experiment("attack=dlg", "n_images=1", setting)


def test_projections_are_made_for_free_pixels() -> None:
    with pytest.raises(ConfigurationError, match=r"attack\.pixels=sigmoid: projections"):
        experiment("attack=gradinv", "preprocess.size=64", "attack.pixels=sigmoid")


def test_the_option_is_second_order() -> None:
    attack = experiment("attack=second_order", "n_images=1").attack
    assert isinstance(attack, GradientMatching)
    assert attack.name == "second_order"
