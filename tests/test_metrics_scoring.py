import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers import capture_of
from hypothesis import given, settings
from hypothesis import strategies as st

from medpfl.errors import ConfigurationError
from medpfl.metrics import (
    PaperCPL,
    PaperDLG,
    PaperGradInv,
    Scorer,
    match,
    mse,
    ssim,
    ssim_over_steps,
    ssim_per_image,
)
from medpfl.outcomes import Status
from medpfl.seeding import generator
from medpfl.types import DataSpec, Reconstruction, Trace, Truth, UpdateFacts

SPEC = DataSpec(shape=(1, 16, 16), num_classes=4, mean=(0.5,), std=(0.25,))
MEAN_IMAGE = torch.full((1, 16, 16), 0.5)


def images(*shape, seed=0):
    return torch.rand(shape, generator=generator(seed, "images", *shape))


def victim_of(n, shape=(1, 16, 16)):
    ids = tuple(f"class/{k}" for k in range(n))
    return Truth(inputs=images(n, *shape), labels=torch.arange(n) % 4, ids=ids)


def scores_of(victim, reconstruction, facts, *, mean_image=MEAN_IMAGE, scorer=None):
    capture = capture_of(victim, facts, SPEC)
    return (scorer or Scorer()).judge(capture, reconstruction, mean_image).scores


def reconstruction_of(inputs, labels, **changes):
    base = Reconstruction(
        capture_id="v",
        inputs=inputs,
        labels=labels,
        objective=1e-9,
        status=Status.CONVERGED,
        steps=20,
        evaluations=25,
        seconds=6.0,
    )
    return replace(base, **changes)


def facts_of(n):
    return UpdateFacts(
        gradient_norm=2.5,
        true_probability=torch.linspace(0.1, 0.9, n),
        noise_scale=None,
        snr_db=None,
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 4))
def test_matching_is_the_best_one_to_one_pairing(seed, n):
    x, y = images(n, 1, 2, 2, seed=seed), images(n, 1, 2, 2, seed=seed + 1)
    order = match(x, y).tolist()
    assert sorted(order) == list(range(n))

    def total(pairing):
        return sum(mse(x[i], y[j]) for i, j in enumerate(pairing))

    best = min(total(pairing) for pairing in itertools.permutations(range(n)))
    assert total(order) == pytest.approx(best)


def test_matching_gives_no_perfect_reconstruction_away():
    """At the lowest squared error the dark image gets it, which fits the white one so badly."""
    bright = 0.6 + 0.2 * images(1, 3, 16, 16)
    originals = torch.cat([bright, 0.3 * bright])
    found = torch.cat([bright, torch.ones_like(bright)])
    kept, swapped = (
        sum(mse(o, f) for o, f in zip(originals, pair, strict=True))
        for pair in (found, found.flip(0))
    )
    assert swapped < kept
    assert match(originals, found).tolist() == [0, 1]


def test_matching_undoes_a_permutation():
    x = images(5, 1, 4, 4)
    shuffle = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(x[shuffle][match(x, x[shuffle])], x)


def test_one_good_reconstruction_counts_once():
    victim = victim_of(2)
    both_the_first = victim.inputs[[0, 0]]
    scores = scores_of(victim, reconstruction_of(both_the_first, victim.labels), facts_of(2))
    assert [score.success for score in scores] == [True, False]


def test_matching_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="same shape"):
        match(images(2, 1, 4, 4), images(2, 1, 4, 5))
    with pytest.raises(ValueError, match="finite"):
        match(images(2, 1, 4, 4), images(2, 1, 4, 4) * math.nan)


def test_row_of_a_single_image():
    victim = victim_of(1)
    guess = (victim.inputs + 0.01).clamp(0, 1)
    (score,) = (
        Scorer(paper=PaperCPL())
        .judge(
            capture_of(victim, replace(facts_of(1), noise_scale=0.1, snr_db=3.0), SPEC),
            reconstruction_of(guess, victim.labels),
            MEAN_IMAGE,
        )
        .scores
    )
    x = victim.inputs[0]
    assert score.image_id == "class/0"
    assert (score.label, score.label_inferred) == (0, 0)
    assert score.ssim == ssim(x, guess[0])
    assert score.mse == mse(x, guess[0])
    assert score.psnr_db == pytest.approx(-10 * math.log10(score.mse))
    assert score.success is True
    assert score.gradient_norm == 2.5
    assert score.true_probability == pytest.approx(0.1)
    assert (score.objective, score.steps, score.evaluations) == (1e-9, 20, 25)
    assert (score.seconds, score.status) == (6.0, "converged")
    assert (score.noise_scale, score.snr_db) == (0.1, 3.0)
    assert score.ssim_paper == PaperCPL()(x, guess[0], SPEC)
    assert score.ssim_zeros == ssim(x, torch.zeros_like(x))
    assert score.mse_zeros == pytest.approx(float(x.double().square().mean()))
    assert score.ssim_mean_image == ssim(x, MEAN_IMAGE)
    assert score.mse_mean_image == mse(x, MEAN_IMAGE)


def test_rows_follow_the_victim_and_labels_the_matched_image():
    victim = victim_of(3)
    shuffle = torch.tensor([2, 0, 1])
    scores = (
        Scorer()
        .judge(
            capture_of(victim, facts_of(3), SPEC),
            reconstruction_of(victim.inputs[shuffle], victim.labels[shuffle]),
            MEAN_IMAGE,
        )
        .scores
    )
    assert [score.image_id for score in scores] == list(victim.ids)
    assert [score.label_inferred for score in scores] == [0, 1, 2]
    assert all(score.mse == 0 and score.psnr_db == math.inf for score in scores)
    assert [score.true_probability for score in scores] == pytest.approx([0.1, 0.5, 0.9])
    assert [score.seconds for score in scores] == [2.0, 2.0, 2.0]
    assert all(math.isnan(score.ssim_paper) for score in scores)


def test_every_published_protocol_has_its_column_in_every_run():
    victim = victim_of(1)
    guess = (victim.inputs * 0.8).clamp(0, 1)
    rest = (victim, reconstruction_of(guess, victim.labels), facts_of(1))
    x = victim.inputs[0]
    for paper in (None, PaperCPL()):
        (score,) = scores_of(*rest, scorer=Scorer(paper=paper))
        assert score.ssim_paper_cpl == PaperCPL()(x, guess[0], SPEC)
        assert score.ssim_paper_dlg == PaperDLG()(x, guess[0], SPEC)
        assert score.ssim_paper_gradinv == PaperGradInv()(x, guess[0], SPEC)
        assert math.isnan(score.ssim_oracle)
        assert math.isnan(score.mse_oracle)


def test_the_oracle_picks_the_best_iterate_and_changes_nothing_else():
    victim = victim_of(2)
    x = victim.inputs
    far, near = (0.3 * x).flip(0), torch.stack([x[1], 0.9 * x[0]])
    # The first image comes closest at the second step, the other one at the first.
    steps = [torch.stack([far[0], x[0] * 0.5]), torch.stack([near[0] * 0.6, x[0] * 0.9]), far]
    steps[0][0] = x[1]
    trace = Trace(steps=torch.arange(3), objective=torch.zeros(3), inputs=torch.stack(steps))
    handed_in = reconstruction_of(far, victim.labels, trace=trace)
    with_trace = scores_of(victim, handed_in, facts_of(2))
    without = (
        Scorer()
        .judge(capture_of(victim, facts_of(2), SPEC), replace(handed_in, trace=None), MEAN_IMAGE)
        .scores
    )
    assert [s.mse_oracle for s in with_trace] == [
        pytest.approx(mse(x[0], 0.9 * x[0])),
        pytest.approx(0.0, abs=1e-12),
    ]
    assert with_trace[1].ssim_oracle == pytest.approx(1.0)
    assert [s.ssim for s in with_trace] == [s.ssim for s in without]
    assert [s.success for s in with_trace] == [s.success for s in without]


def test_scores_volumes():
    victim = victim_of(1, shape=(1, 12, 13, 14))
    (score,) = (
        Scorer()
        .judge(
            capture_of(victim, facts_of(1), SPEC),
            reconstruction_of(victim.inputs, victim.labels),
            torch.zeros(1, 12, 13, 14),
        )
        .scores
    )
    assert score.ssim == pytest.approx(1.0)
    assert score.ssim_zeros == score.ssim_mean_image


def test_success_starts_at_the_threshold():
    victim = victim_of(1)
    guess = reconstruction_of((victim.inputs + 0.2).clamp(0, 1), victim.labels)
    value = ssim(victim.inputs[0], guess.inputs[0])
    rest = (victim, guess, facts_of(1))
    assert scores_of(*rest, scorer=Scorer(threshold=value))[0].success
    above = math.nextafter(value, 2)
    assert not scores_of(*rest, scorer=Scorer(threshold=above))[0].success


@pytest.mark.parametrize("threshold", [-1.0, 1.1, math.nan])
def test_impossible_thresholds_are_refused(threshold):
    with pytest.raises(ConfigurationError, match=r"metrics\.threshold"):
        Scorer(threshold=threshold)


def test_what_does_not_fit_together_is_refused():
    victim = victim_of(2)
    good = reconstruction_of(victim.inputs, victim.labels)
    with pytest.raises(ValueError, match=r"reconstruction\.labels holds 1 images"):
        scores_of(victim, replace(good, labels=victim.labels[:1]), facts_of(2))
    with pytest.raises(ValueError, match=r"facts\.true_probability holds 3 images"):
        scores_of(victim, good, facts_of(3))
    with pytest.raises(ValueError, match="finite"):
        scores_of(victim, replace(good, inputs=victim.inputs * math.inf), facts_of(2))


def test_ssim_over_steps_follows_the_final_pairing():
    victim = victim_of(2)
    swapped = victim.inputs.flip(0)
    inputs = torch.stack([victim.inputs, torch.lerp(victim.inputs, swapped, 0.8), swapped])
    trace = Trace(steps=torch.arange(3), objective=torch.zeros(3).double(), inputs=inputs)
    curve = ssim_over_steps(victim, trace, torch.tensor([1, 0]))
    expected = [ssim_per_image(victim.inputs, step.flip(0)).mean().item() for step in inputs]
    assert curve.dtype == torch.float64
    assert curve.tolist() == expected
    # At the first step each image sits in the other's place: bad, though a rematch would say 1.
    assert curve[0] < 0.5
    assert curve[2] == pytest.approx(1.0)


def test_ssim_over_no_steps_is_empty():
    empty = torch.empty(0)
    trace = Trace(steps=empty.long(), objective=empty, inputs=torch.empty(0, 1, 1, 16, 16))
    assert ssim_over_steps(victim_of(1), trace, torch.tensor([0])).shape == (0,)
