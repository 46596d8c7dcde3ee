import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from medpfl.image_score import ImageScore
from medpfl.metrics import summarise, wilson

ROW = ImageScore(
    image_id="a/0",
    label=1,
    label_inferred=1,
    ssim=0.95,
    mse=0.01,
    psnr_db=20.0,
    success=True,
    gradient_norm=1.0,
    true_probability=0.5,
    objective=1e-8,
    steps=10,
    evaluations=12,
    seconds=2.0,
    status="converged",
    noise_scale=None,
    snr_db=None,
    ssim_paper=math.nan,
    ssim_zeros=0.1,
    mse_zeros=0.09,
    ssim_mean_image=0.3,
    mse_mean_image=0.02,
)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 300), share=st.floats(0, 1), confidence=st.sampled_from([0.5, 0.9, 0.95]))
def test_wilson_agrees_with_scipy(n, share, confidence):
    successes = round(n * share)
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    low, high = wilson(successes, n, confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0.0 <= low <= successes / n <= high <= 1.0


@pytest.mark.parametrize(
    ("successes", "low", "high"),
    [(47, 0.375, 0.567), (49, 0.394, 0.587), (76, 0.668, 0.833), (82, 0.733, 0.883)],
)
def test_wilson_of_the_published_rates(successes, low, high):
    assert wilson(successes, 100) == pytest.approx((low, high), abs=6e-4)


def test_wilson_touches_the_ends():
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0


@pytest.mark.parametrize("arguments", [(0, 0), (-1, 5), (6, 5), (1, 5, 0.0), (1, 5, 1.0)])
def test_wilson_refuses_what_is_no_rate(arguments):
    with pytest.raises(ValueError, match="need"):
        wilson(*arguments)


def test_summary_by_hand():
    rows = [
        replace(ROW, ssim=1.0, mse=0.0, psnr_db=math.inf, ssim_paper=0.98),
        ROW,
        replace(ROW, ssim=0.2, mse=0.1, psnr_db=10.0, success=False, status="stalled", seconds=4.0),
        replace(
            ROW,
            ssim=0.05,
            mse=0.09,
            psnr_db=12.0,
            success=False,
            status="no_gradient",
            gradient_norm=0.0,
            label_inferred=3,
            ssim_paper=0.5,
        ),
        replace(ROW, ssim=0.0, mse=0.2, psnr_db=6.0, success=False, status="non_finite"),
    ]
    summary = summarise(rows)
    assert (summary.n, summary.n_ok) == (5, 4)
    assert summary.asr == 0.4
    assert (summary.asr_low, summary.asr_high) == wilson(2, 5)
    assert (summary.zero_gradient_share, summary.asr_ceiling) == (0.2, 0.8)
    assert summary.ssim_mean == pytest.approx(0.44)
    assert summary.ssim_median == 0.2
    assert summary.mse_mean == pytest.approx(0.08)
    assert summary.psnr_db_mean == pytest.approx(12.0)
    assert summary.n_exact == 1
    assert summary.label_accuracy == 0.8
    assert summary.seconds_per_image == pytest.approx(2.4)
    assert summary.ssim_paper_mean == pytest.approx(0.74)
    assert summary.n_ssim_paper == 2
    assert summary.ssim_zeros_mean == pytest.approx(0.1)
    assert summary.ssim_mean_image_mean == pytest.approx(0.3)
    assert summary.mse_zeros_mean == pytest.approx(0.09)
    assert summary.mse_mean_image_mean == pytest.approx(0.02)
    assert summary.statuses == {"converged": 2, "no_gradient": 1, "non_finite": 1, "stalled": 1}


def test_a_mean_over_nothing_is_nan():
    summary = summarise([replace(ROW, psnr_db=math.inf)])
    assert math.isnan(summary.psnr_db_mean)
    assert math.isnan(summary.ssim_paper_mean)
    assert (summary.n_exact, summary.n_ssim_paper) == (1, 0)


def test_a_summary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="empty"):
        summarise([])
