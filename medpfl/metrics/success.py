"""Success rates with intervals, and one summary of a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median

from medpfl.types import ImageScore, Status

_SMALLEST_NORMAL_FLOAT32 = 2.0**-126


@dataclass(frozen=True)
class Summary:
    """What a run measured, over all attacked images, failed ones included.

    Args:
        n: images attacked; every mean is over these unless its description says otherwise.
        n_ok: images whose attack stayed finite.
        asr: attack success rate, the share of images with an SSIM at or above the threshold.
        asr_low: lower end of the 95 % Wilson interval of `asr`.
        asr_high: upper end of the 95 % Wilson interval of `asr`.
        asr_ceiling: the share of images whose gradient is not zero: what an attack that measures
            squared errors in float32 can reach at best.
        zero_gradient_share: the share of images whose gradient is zero, see `is_zero_gradient`.
        ssim_mean: mean SSIM.
        ssim_median: median SSIM; attacks tend to solve or diverge, and a mean hides that.
        mse_mean: mean squared error.
        psnr_db_mean: mean over the images with a finite PSNR; NaN if there is none.
        label_accuracy: share of images whose inferred label is the true one.
        seconds_per_image: mean seconds.
        ssim_paper_mean: mean of the published protocol's SSIM over the `n_ssim_paper` images
            where it is defined; NaN if there is none.
        ssim_zeros_mean: mean SSIM of a black image.
        ssim_mean_image_mean: mean SSIM of the mean image.
        mse_zeros_mean: mean squared error of a black image.
        mse_mean_image_mean: mean squared error of the mean image.
        statuses: how many images ended with each status.
        n_exact: images reproduced exactly (infinite PSNR), left out of `psnr_db_mean`.
        n_ssim_paper: images in `ssim_paper_mean`.
        ssim_paper_cpl_mean: mean of `PaperCPL` where it is defined, NaN if nowhere.
        ssim_paper_dlg_mean: mean of `PaperDLG`.
        ssim_paper_gradinv_mean: mean of `PaperGradInv`.
        ssim_oracle_mean: mean SSIM of the iterates chosen with the truth, over the images that
            left a trace; NaN if none did.
        mse_oracle_mean: mean squared error of the same.
    """

    n: int
    n_ok: int
    asr: float
    asr_low: float
    asr_high: float
    asr_ceiling: float
    zero_gradient_share: float
    ssim_mean: float
    ssim_median: float
    mse_mean: float
    psnr_db_mean: float
    label_accuracy: float
    seconds_per_image: float
    ssim_paper_mean: float
    ssim_zeros_mean: float
    ssim_mean_image_mean: float
    mse_zeros_mean: float
    mse_mean_image_mean: float
    statuses: Mapping[str, int]
    n_exact: int
    n_ssim_paper: int
    ssim_paper_cpl_mean: float
    ssim_paper_dlg_mean: float
    ssim_paper_gradinv_mean: float
    ssim_oracle_mean: float
    mse_oracle_mean: float


def summarise(scores: Sequence[ImageScore]) -> Summary:
    """Summarise the rows of ``metrics.csv``.

    Raises:
        ValueError: there are no rows.
    """
    n = len(scores)
    if n == 0:
        raise ValueError("scores is empty; a summary needs at least one image")
    successes = sum(s.success for s in scores)
    asr_low, asr_high = wilson(successes, n)
    zero_gradients = sum(is_zero_gradient(s.gradient_norm) for s in scores)
    return Summary(
        n=n,
        n_ok=sum(s.status != Status.NON_FINITE for s in scores),
        asr=successes / n,
        asr_low=asr_low,
        asr_high=asr_high,
        asr_ceiling=(n - zero_gradients) / n,
        zero_gradient_share=zero_gradients / n,
        ssim_mean=fmean(s.ssim for s in scores),
        ssim_median=median(s.ssim for s in scores),
        mse_mean=fmean(s.mse for s in scores),
        psnr_db_mean=_mean_or_nan(s.psnr_db for s in scores if math.isfinite(s.psnr_db)),
        label_accuracy=sum(s.label == s.label_inferred for s in scores) / n,
        seconds_per_image=fmean(s.seconds for s in scores),
        ssim_paper_mean=_mean_or_nan(s.ssim_paper for s in scores),
        ssim_zeros_mean=fmean(s.ssim_zeros for s in scores),
        ssim_mean_image_mean=fmean(s.ssim_mean_image for s in scores),
        mse_zeros_mean=fmean(s.mse_zeros for s in scores),
        mse_mean_image_mean=fmean(s.mse_mean_image for s in scores),
        statuses=dict(sorted(Counter(str(s.status) for s in scores).items())),
        n_exact=sum(s.psnr_db == math.inf for s in scores),
        n_ssim_paper=sum(not math.isnan(s.ssim_paper) for s in scores),
        ssim_paper_cpl_mean=_mean_or_nan(s.ssim_paper_cpl for s in scores),
        ssim_paper_dlg_mean=_mean_or_nan(s.ssim_paper_dlg for s in scores),
        ssim_paper_gradinv_mean=_mean_or_nan(s.ssim_paper_gradinv for s in scores),
        ssim_oracle_mean=_mean_or_nan(s.ssim_oracle for s in scores),
        mse_oracle_mean=_mean_or_nan(s.mse_oracle for s in scores),
    )


def is_zero_gradient(norm: float) -> bool:
    """Tell whether a gradient's norm is zero in float32, the precision of clients and papers.

    A norm below 1e-19 has a square that float32 cannot hold: whoever sums squares sees exactly
    zero. Entries of such a gradient may still differ from zero, and an attack that does not square
    them in float32 can use them.
    """
    return norm * norm < _SMALLEST_NORMAL_FLOAT32


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a success rate.

    Args:
        successes: between 0 and n.
        n: trials, at least 1.
        confidence: coverage, in (0, 1).

    Returns:
        The lower and the upper end, in [0, 1].

    Raises:
        ValueError: an argument is out of its range.

    Source: Wilson 1927; Brown et al. 2001, Eq. 4.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes} of n={n}: need n >= 1 and 0 <= successes <= n")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence}: need a number between 0 and 1")
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    rate = successes / n
    centre = rate + z**2 / (2 * n)
    half_width = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # At the two ends the interval touches 0 or 1 exactly, and rounding must not miss it.
    low = 0.0 if successes == 0 else (centre - half_width) / scale
    high = 1.0 if successes == n else (centre + half_width) / scale
    return low, high


def _mean_or_nan(values: Iterable[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return fmean(kept) if kept else math.nan
