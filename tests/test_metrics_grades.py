"""Grades: read against other images of the dataset, so that guesses earn nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import experiment, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics_success import ROW
from torch import Tensor

from medpfl.data.pairs import unrelated_pairs
from medpfl.metrics import calibrate, line_up_size, ssim, summarise
from medpfl.metrics.cautions import cautions
from medpfl.metrics.line_up import LineUp
from medpfl.outcomes import Grade
from medpfl.runner import grading_of
from medpfl.source import Described
from medpfl.threat import ThreatModel
from medpfl.types import DefenseFacts

PHANTOM = experiment("n_images=1", "preprocess.size=24", "dataset.per_class=4")
POOL = list(PHANTOM.data.images.sample())


def noisy(image: Tensor, scale: float, seed: int = 0) -> Tensor:
    return (image + scale * torch.randn(image.shape, generator=seeded(seed))).clamp(0, 1)


@pytest.mark.parametrize("shape", [(1, 11, 11), (3, 17, 12), (1, 12, 11, 13)])
def test_a_line_up_measures_the_same_ssim(shape):
    images = [torch.rand(shape, generator=seeded(k)) for k in range(4)]
    image = noisy(images[2], 0.1)
    expected = [ssim(other, image) for other in images]
    assert LineUp(images).similarities(image) == pytest.approx(expected, abs=1e-10)


def test_noise_hides_the_ssim_and_not_the_picture():
    grading = grading_of(PHANTOM)
    pictures = [noisy(image, 0.15, seed) for seed, image in enumerate(POOL)]
    values = [ssim(a, b) for a, b in zip(POOL, pictures, strict=True)]
    assert sorted(values)[-3] < grading.unrelated
    grades = [grading.grade(a, b) for a, b in zip(POOL, pictures, strict=True)]
    assert grades.count(Grade.RECOGNISABLE) >= len(POOL) - 1


def test_guesses_are_singled_out_no_more_often_than_by_chance():
    grading = grading_of(PHANTOM)
    mean_image = torch.stack(POOL).mean(0)
    guesses = [mean_image, torch.zeros_like(mean_image), torch.rand(mean_image.shape)]
    guesses += POOL[:3]
    for guess in guesses:
        # One image is nearest to whatever is handed in; the same picture is exact for itself.
        assert sum(grading.grade(image, guess) is Grade.RECOGNISABLE for image in POOL) <= 1
    assert sum(grading.grade(image, mean_image) is Grade.NOTHING for image in POOL) >= 23


def test_grades_go_by_thresholds_from_the_top():
    grading = calibrate(POOL, threshold=0.9, seed=0)
    assert grading.diagnostic == 0.9
    assert grading.exact == 0.99
    image = POOL[0]
    found = [grading.grade(image, noisy(image, scale)) for scale in (0.0, 0.001, 0.02, 0.2)]
    assert found == [Grade.EXACT, Grade.EXACT, Grade.DIAGNOSTIC, Grade.RECOGNISABLE]
    assert grading.grade(image, noisy(image, 0.2), informed=False) is Grade.NOTHING


def test_diagnostic_lies_above_what_unrelated_images_share():
    smooth = [torch.full((1, 16, 16), 0.5) + 0.004 * k * POOL[k][:1, :16, :16] for k in range(8)]
    grading = calibrate(smooth, threshold=0.5, seed=0)
    assert 0.5 < grading.unrelated == grading.diagnostic
    assert grading.grade(smooth[0], smooth[1]) in (Grade.NOTHING, Grade.EXACT)


def test_one_image_under_two_names_is_no_pair_and_no_rival():
    twice = [*POOL[:6], POOL[0], noisy(POOL[0], 1e-4)]
    grading = calibrate(twice, threshold=0.9, seed=0)
    assert grading.pairs == math.comb(6, 2) + 2 * 5  # each twin with the five others
    assert grading.unrelated < 0.99
    assert grading.grade(POOL[0], noisy(POOL[0], 0.2)) is Grade.RECOGNISABLE


@pytest.mark.parametrize("pool", [[], POOL[:1], [POOL[0], POOL[0]]])
def test_without_another_image_nothing_below_diagnostic_is_graded(pool):
    grading = calibrate(pool, threshold=0.9, seed=0)
    assert grading.pairs == 0
    assert math.isnan(grading.unrelated)
    assert grading.grade(POOL[0], POOL[0]) is Grade.EXACT
    assert grading.grade(POOL[0], noisy(POOL[0], 0.2)) is None
    assert "no other image" in " ".join(cautions([ROW], grading))


def test_a_calibration_depends_on_the_data_alone():
    other = experiment("n_images=3", "preprocess.size=24", "dataset.per_class=4", "attack=dlg")
    first, second = grading_of(PHANTOM), grading_of(other)
    assert (first.unrelated, first.pairs) == (second.unrelated, second.pairs)
    assert first.pairs > 100


def test_large_images_are_calibrated_on_fewer():
    assert line_up_size((3, 32, 32)) == 100
    assert 20 < line_up_size((3, 224, 224)) < 60


@settings(max_examples=30, deadline=None)
@given(total=st.integers(2, 9), seed=st.integers(0, 99))
def test_no_image_is_paired_with_itself(total, seed):
    pairs = list(unrelated_pairs(total, 40, seeded(seed)))
    assert len(pairs) == 40
    assert all(a != b and {a, b} <= set(range(total)) for a, b in pairs)


# Summaries and cautions ---------------------------------------------------------------------------


def graded(*grades: str) -> list:
    solved = ("exact", "diagnostic")
    return [
        replace(ROW, grade=g, grade_mean_image="nothing", success=g in solved, ssim=0.5)
        for g in grades
    ]


def test_a_summary_counts_grades_with_an_interval():
    grading = calibrate(POOL, threshold=0.9, seed=0)
    rows = graded("exact", "diagnostic", "recognisable", "nothing")
    found = summarise(rows, grading)
    assert (found.exact, found.diagnostic, found.recognisable, found.nothing) == (1, 1, 1, 1)
    assert (found.leaked, found.leaked_mean_image, found.asr) == (0.75, 0.0, 0.5)
    assert found.leaked_low < 0.75 < found.leaked_high
    assert (found.exact_from, found.diagnostic_from) == (0.99, 0.9)
    assert (found.unrelated_pairs, found.others) == (grading.pairs, len(POOL) - 1)


def test_rows_of_older_records_have_no_grades():
    assert summarise([ROW, *graded("exact")]).leaked is None


def says(words: str, rows: list, grading=None) -> bool:
    return any(words in sentence for sentence in cautions(rows, grading))


def test_each_caution_is_heard_where_it_holds_and_nowhere_else():
    good = [replace(ROW, status="stalled", grade="exact")] * 60
    failed = replace(ROW, success=False, ssim=0.2, grade="nothing", status="stalled")
    assert cautions(good) == ()
    assert says("1 of 61 images ran out", [*good, replace(failed, status="out_of_steps")])
    assert cautions([*good, replace(ROW, status="out_of_steps", grade="exact")]) == ()
    assert says("broke down on 2 of 62", [*good, *[replace(failed, status="non_finite")] * 2])
    assert says("1 of 61 gradients are tiny", [*good, replace(failed, gradient_norm=1e-33)])
    assert not says("tiny", [*good, replace(failed, gradient_norm=0.0)])
    left_open = replace(failed, status="undetermined", determined=0.04)
    assert says("it determines 4 % of the unknowns (median)", [*good, left_open])
    assert says("rounding of a float32", [*good, replace(left_open, closed_form=True)])
    assert says("Lower attack.optimizer", [*good, replace(left_open, closed_form=False)])
    unsent = replace(left_open, closed_form=False, defense={"share_sent": 0.01})
    assert says("did not send the other entries", [*good, unsent])
    assert not says("Lower attack.optimizer", [*good, unsent])
    assert says("1 of 61 images came to rest", [*good, replace(failed, closed_form=False)])
    assert not says("came to rest", [*good, replace(failed, closed_form=None)])
    assert says("recognisable all the same", [*good, replace(failed, grade="recognisable")])
    assert says("3 images say little", good[:3])
    few = calibrate(POOL[:5], threshold=0.9, seed=0)
    assert says("told from only 4 other images", good, few)
    assert cautions(good, calibrate(POOL, threshold=0.9, seed=0)) == ()


def test_a_defense_that_the_attacker_is_not_told_of_is_said_first_where_images_are_missed():
    defense = (DefenseFacts(name="topk"),)
    unaware = ThreatModel(knows=["num_examples"]).unaware(defense)
    assert "use topk" in unaware
    assert "threat.knows=[num_examples,defense]" in unaware
    told = Described(model="m", defense="topk", noise=None, federation=(), unaware=unaware)
    missed = replace(ROW, success=False, ssim=0.2, grade="nothing", status="out_of_steps")
    assert summarise([ROW, missed], None, told).cautions[0] == unaware
    assert unaware not in summarise([ROW], None, told).cautions
    for threat in (ThreatModel(knows=["defense"]), ThreatModel(aggregation="secure")):
        assert threat.unaware(defense) is None
    assert ThreatModel().unaware(()) is None
