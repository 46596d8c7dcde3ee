"""Signs of a reconstruction that need no truth: cases whose values are known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers import context, observe, payload_of, seeded, spec_of, victim_of
from torch import Tensor

from medpfl.attacks import GradientMatching
from medpfl.attacks.distances import SquaredError
from medpfl.attacks.labels import Joint, Known
from medpfl.attacks.priors import OutOfRange
from medpfl.attacks.stages import Key
from medpfl.attacks.starts import Normal, Smooth, Start
from medpfl.attacks.victim_rows import VictimRows
from medpfl.image_score import ImageScore
from medpfl.metrics import ssim, summarise
from medpfl.metrics.signs import grain, signs_of
from medpfl.optim import LBFGS, Adam
from medpfl.optim.scheduler import Outcome
from medpfl.outcomes import Status
from medpfl.report.victim_file import VictimRecord, load_victim, save_victim
from medpfl.training import UpdateMap
from medpfl.types import DataSpec, Observation, Reconstruction

SPEC = spec_of(3, 16, 16)
NEW = ("unexplained", "agreement", "grain")
LATER = ("identification_rank", "identification_candidates")


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=seeded(seed))


def handed_in(inputs: Tensor, **changes: object) -> Reconstruction:
    found = Reconstruction(
        capture_id="v",
        inputs=inputs,
        labels=torch.zeros(len(inputs), dtype=torch.int64),
        objective=0.5,
        status=Status.CONVERGED,
        steps=1,
        evaluations=1,
        seconds=1.0,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


# How grainy an image is.


def test_a_ramp_has_no_grain_a_chessboard_all_and_noise_between() -> None:
    ramp = torch.arange(32.0).expand(2, 32, 32) / 32
    squares = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    noise = torch.randn((1, 256, 256), generator=seeded())
    assert grain(ramp) == 0
    assert grain(squares.float().unsqueeze(0)) == 2
    assert grain(noise) == pytest.approx(math.sqrt(3), rel=0.01)


def test_grain_knows_neither_contrast_nor_brightness() -> None:
    picture = image(3, 12, 13).double()
    assert grain(0.1 * picture + 0.4) == pytest.approx(grain(picture), rel=1e-9)


def test_volumes_have_grain_along_three_axes() -> None:
    flat = image(1, 1, 9, 9).repeat(1, 9, 1, 1)
    assert grain(flat) == pytest.approx(grain(flat[:, 0]), rel=1e-9)
    assert grain(image(1, 9, 9, 9)) > 1.5


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 2, 2), (1, 1, 1)])
def test_an_image_without_differences_has_no_number(shape: tuple[int, ...]) -> None:
    assert math.isnan(grain(torch.full(shape, 0.5)))


def test_nor_has_one_too_small_for_second_differences() -> None:
    assert math.isnan(grain(image(3, 2, 2)))


# How alike two restarts are.


def test_agreement_is_the_ssim_of_each_image_with_its_match() -> None:
    inputs = image(2, 3, 16, 16)
    near = (0.8 * inputs).clamp(0, 1)
    found = signs_of(handed_in(inputs, runner_up=near.flip(0)))
    wanted = [ssim(one, other) for one, other in zip(inputs, near, strict=True)]
    assert [signs.agreement for signs in found] == wanted
    assert 0.5 < min(wanted) < max(wanted) < 1


@pytest.mark.parametrize("side", [10, 16])
def test_what_cannot_be_compared_has_no_agreement(side: int) -> None:
    inputs = image(2, 3, side, side)
    other = None if side == 16 else inputs
    assert all(math.isnan(s.agreement) for s in signs_of(handed_in(inputs, runner_up=other)))


def test_restarts_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        signs_of(handed_in(image(2, 3, 16, 16), runner_up=image(1, 3, 16, 16)))


# What the engine hands in.


class Grey(Normal):
    """Every restart begins in the same."""

    def __call__(
        self, observation: Observation, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        return torch.zeros(shape)


class Broken(Normal):
    """No objective is finite but that of the first start drawn."""

    def __call__(
        self, observation: Observation, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        first = super().__call__(observation, shape, generator)
        drawn.append(first)
        return first if len(drawn) == 1 else torch.full(shape, math.nan)


drawn: list[Tensor] = []


@pytest.fixture(autouse=True)
def nothing_drawn() -> Iterator[None]:
    drawn.clear()
    yield
    drawn.clear()


def attack_of(**changes: object) -> GradientMatching:
    parts: dict[str, object] = {
        "name": "test",
        "start": Smooth(),
        "labels": Known(),
        "distance": SquaredError(),
        "optimizer": LBFGS(max_steps=2, max_iter=3),
        "restarts": 3,
        "precision": "float64",
        "trace_points": 0,
    }
    return GradientMatching(**{**parts, **changes})  # type: ignore[arg-type]


def seen_of(labels: tuple[int, ...] = (1,), spec: DataSpec = SPEC) -> Observation:
    return observe(payload_of("dlg_cnn", spec), spec, victim_of(spec, labels))


def ended(
    classes: tuple[int, ...] = (1,), **changes: object
) -> tuple[Reconstruction, list[Outcome[Key]]]:
    """Return what is handed in, and how each restart has ended, best first."""
    outcomes: list[Outcome[Key]] = []
    original = VictimRows.reconstruction

    def watched(self: VictimRows, given: list[Outcome[Key]], *rest: object, **more: object):  # type: ignore[no-untyped-def]
        outcomes.extend(given)
        return original(self, given, *rest, **more)  # type: ignore[arg-type]

    with patch.object(VictimRows, "reconstruction", watched):
        (found,) = attack_of(**changes).reconstruct(iter([seen_of(classes)]), context())
    return found, sorted(outcomes, key=lambda o: (math.isnan(o.objective), o.objective))


def pixels(outcome: Outcome[Key], like: Tensor) -> Tensor:
    return outcome.z.float().reshape(like.shape).clamp(0, 1)


@pytest.mark.parametrize("labels", [(1,), (0, 2)])
def test_the_second_best_restart_is_handed_in_beside_the_best(labels: tuple[int, ...]) -> None:
    found, (best, second, third) = ended(labels)
    assert best.objective < second.objective < third.objective
    assert found.objective == best.objective
    assert torch.equal(found.inputs, pixels(best, found.inputs))
    assert found.runner_up is not None
    assert torch.equal(found.runner_up, pixels(second, found.inputs))
    assert len(signs_of(found)) == len(labels)
    assert all(-1 < signs.agreement < 1 for signs in signs_of(found))


@pytest.mark.parametrize(
    "changes",
    [
        {"restarts": 1},
        {"start": Grey()},
        {"start": Broken()},
        {"group_consistency": 0.1, "optimizer": Adam(lr=0.01, max_steps=2)},
        {"restart_above": 1e9},
    ],
    ids=["one restart", "one start", "one finite", "pulled together", "one suffices"],
)
def test_restarts_that_say_nothing_of_each_other_are_not_compared(
    changes: dict[str, object],
) -> None:
    found, _ = ended(**changes)
    assert math.isfinite(found.objective)
    assert found.runner_up is None


def test_restarts_made_one_after_another_are_compared_where_none_sufficed() -> None:
    at_once, _ = ended()
    in_turn, outcomes = ended(restart_above=0.0)
    assert len(outcomes) == 3
    assert at_once.runner_up is not None
    assert in_turn.runner_up is not None
    torch.testing.assert_close(in_turn.runner_up, at_once.runner_up)
    above = (outcomes[0].objective + outcomes[1].objective) / 2
    sufficed, _ = ended(restart_above=above)
    assert sufficed.objective <= above
    assert sufficed.runner_up is None


@pytest.mark.parametrize("start", [Normal(), Smooth()])
@pytest.mark.parametrize("channels", ["free", "tied"])
@pytest.mark.parametrize("boxed", ["free", "sigmoid"])
def test_unexplained_is_relative_to_an_image_of_the_same_brightness(
    start: Start, channels: str, boxed: str
) -> None:
    spec = replace(SPEC, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    seen = seen_of((0, 2), spec)
    attack = attack_of(start=start, channels=channels, pixels=boxed, restarts=1)
    (found,) = attack.reconstruct(iter([seen]), context())
    brightness = found.inputs.double().mean((2, 3), keepdim=True)
    if channels == "tied":
        brightness = brightness.mean(1, keepdim=True)
    if boxed == "sigmoid":
        brightness = brightness.clamp(0.0125, 1 - 0.0125)
    blank = brightness.float().expand_as(found.inputs)
    left = observe(
        seen.payload, spec, replace(victim_of(spec, [0, 2]), inputs=blank), capture_id="blank"
    )
    pairs = ((left.tensors[n].double() - t.double()) for n, t in seen.tensors.items())
    wanted = found.objective / float(sum(d.square().sum() for d in pairs))
    assert found.unexplained == pytest.approx(wanted, rel=1e-3)


def test_labels_that_are_unknowns_are_those_that_were_found() -> None:
    found, (best, *_) = ended((0, 2), labels=Joint())
    seen = seen_of((0, 2))
    scores = best.z[found.inputs.numel() :].reshape(2, -1)
    blank = found.inputs.double().mean((2, 3), keepdim=True).expand_as(found.inputs)
    sent = {name: p.double() for name, p in seen.payload.parameters.items()}
    left = UpdateMap()(seen.payload.forward(), sent, blank, scores.softmax(1))
    distance = sum((left[n] - t.double()).square().sum() for n, t in seen.tensors.items())
    assert found.unexplained == pytest.approx(found.objective / float(distance), rel=1e-4)


def test_an_exact_hit_leaves_nothing_unexplained_and_a_blank_image_all() -> None:
    settings = {"distance": SquaredError(), "priors": {"box": OutOfRange(weight=1.0)}}
    search = LBFGS(max_steps=200, line_search="strong_wolfe", objective_below=1e-5)
    found, _ = ended(optimizer=search, restarts=1, **settings)
    assert found.objective <= 1e-5
    assert found.unexplained < 1e-4
    blank, _ = ended(start=Grey(), optimizer=Adam(lr=1e-12, max_steps=1), restarts=1, **settings)
    assert blank.unexplained == pytest.approx(1, rel=1e-6)


def test_an_attack_that_breaks_down_says_nothing() -> None:
    drawn.append(torch.zeros(1))
    found, _ = ended(start=Broken(), restarts=2)
    assert found.status is Status.NON_FINITE
    assert math.isnan(found.unexplained)
    assert found.runner_up is None


# The record.


def test_older_rows_have_no_signs(tmp_path: Path) -> None:
    given = {name: 1.0 for name in ImageScore.fixed_columns() if name not in NEW}
    texts = dict.fromkeys(("capture_id", "image_id", "status", "grade", "grade_mean_image"), "a")
    score = ImageScore(**{**given, **texts})  # type: ignore[arg-type]
    picture = image(1, 3, 16, 16)
    path = tmp_path / "v.npz"
    save_victim(path, VictimRecord(picture, picture, (score,), None, None))
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    (row,) = json.loads(str(kept["scores"]))
    older = json.dumps([{name: value for name, value in row.items() if name not in NEW}])
    np.savez(path, **{**kept, "scores": np.array(older)})
    (read,) = load_victim(path).scores
    assert repr(read) == repr(score)
    assert all(math.isnan(getattr(read, name)) for name in NEW)
    summary = summarise([read])
    assert math.isnan(summary.unexplained_median)
    assert math.isnan(summary.agreement_median)
    assert summary.n_agreement == 0


def test_columns_come_after_those_of_before() -> None:
    assert ImageScore.fixed_columns()[-6:] == ("grade_mean_image", *NEW, *LATER)


def test_medians_are_over_the_images_that_have_the_sign() -> None:
    given = {name: 1.0 for name in ImageScore.fixed_columns() if name not in NEW}
    one = ImageScore(**given)  # type: ignore[arg-type]
    signs = ((0.1, 0.9), (0.3, math.nan), (math.nan, 0.5), (0.8, math.nan))
    summary = summarise([replace(one, unexplained=u, agreement=a) for u, a in signs])
    assert summary.unexplained_median == pytest.approx(0.3)
    assert summary.agreement_median == pytest.approx(0.7)
    assert summary.n_agreement == 2
