"""Ranks of the original among images of the dataset: guesses are at chance, exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import experiment, seeded
from test_metrics_success import ROW
from torch import Tensor

from medpfl.metrics import Rank, identification, mse, ranks_of, ssim, summarise
from medpfl.metrics.identification import mrr_by_chance
from medpfl.metrics.line_up import LineUp

POOL = list(
    experiment("n_images=1", "preprocess.size=24", "dataset.per_class=3").data.images.sample()
)
LIKENESSES = ("correlation", "mse", "ssim")


def noisy(image: Tensor, scale: float, seed: int = 0) -> Tensor:
    return (image + scale * torch.randn(image.shape, generator=seeded(seed))).clamp(0, 1)


@pytest.mark.parametrize("by", LIKENESSES)
def test_a_guess_that_knows_nothing_has_every_rank_once(by):
    line_up = LineUp(POOL)
    for guess in (torch.stack(POOL).mean(0), torch.rand(POOL[0].shape, generator=seeded(1))):
        ranks = sorted(line_up.rank(image, guess, by).rank for image in POOL)
        assert ranks == list(range(1, len(POOL) + 1))
        found = identification([line_up.rank(image, guess, by) for image in POOL])
        assert found.top1 == pytest.approx(found.top1_chance) == 1 / len(POOL)
        assert found.mrr == pytest.approx(found.mrr_chance)
        assert found.at_chance


def test_a_rank_is_that_of_one_comparison_after_another():
    line_up, other = LineUp(POOL), noisy(POOL[3], 0.4)
    pairs = {
        "ssim": lambda a, b: ssim(a, b),
        "mse": lambda a, b: -mse(a, b),
        "correlation": lambda a, b: float(torch.corrcoef(torch.stack([a, b]).flatten(1))[0, 1]),
    }
    for by, likeness in pairs.items():
        values = [likeness(image, other) for image in POOL]
        for image, own in zip(POOL, values, strict=True):
            expected = Rank(1 + sum(value > own + 1e-9 for value in values), len(POOL))
            assert line_up.rank(image, other, by) == expected


def test_an_image_outside_the_line_up_and_one_under_two_names():
    line_up = LineUp([*POOL[1:], noisy(POOL[1], 1e-4)])
    assert line_up.rank(POOL[0], noisy(POOL[0], 0.3), "correlation") == Rank(1, len(POOL) + 1)
    assert line_up.rank(POOL[1], POOL[1], "mse") == Rank(1, len(POOL) - 1)
    assert LineUp([]).rank(POOL[0], POOL[1], "ssim") == Rank(1, 1)


def test_a_flat_guess_shares_all_places():
    flat = torch.full_like(POOL[0], 0.5)
    middle = (len(POOL) + 1) / 2
    assert LineUp(POOL).rank(POOL[2], flat, "correlation") == Rank(middle, len(POOL))


def test_a_summary_has_the_rates_and_their_chance():
    ranks = [1.0] * 6 + [2.0, 5.0]
    rows = [
        replace(ROW, capture_id=f"{n}", identification_rank=r, identification_candidates=10)
        for n, r in enumerate(ranks)
    ]
    found = summarise(rows)
    assert (found.n_identification, found.identification_top1) == (8, 0.75)
    assert found.identification_top1_low < 0.75 < found.identification_top1_high
    assert found.identification_mrr == pytest.approx((6 + 0.5 + 0.2) / 8)
    assert found.identification_mrr_chance == mrr_by_chance(10) == pytest.approx(0.292896825)
    assert not identification(ranks_of(rows)).at_chance
    assert summarise([ROW]).n_identification is None
    assert math.isnan(ROW.identification_rank)


def test_the_best_of_several_guesses_is_no_identification():
    drawn = torch.rand(4000, 3, 20, generator=seeded(5)).argsort(2).argsort(2)[:, :, 0] + 1
    best = drawn.amin(1).tolist()
    found = identification([Rank(float(rank), 20, guesses=3) for rank in best])
    # Boole's inequality is close here: 0.143 of independent guesses, at most 0.15.
    assert found.top1 == pytest.approx(1 - (19 / 20) ** 3, abs=0.02)
    assert found.top1_low < found.top1_chance == pytest.approx(0.15)
    assert found.mrr < found.mrr_chance < 2 * found.mrr
    assert found.at_chance
    assert mrr_by_chance(1) == mrr_by_chance(1, 7) == 1.0
    together = [
        replace(ROW, capture_id="a", identification_rank=1.0, identification_candidates=10)
    ] * 4
    assert {rank.guesses for rank in ranks_of(together)} == {4}
