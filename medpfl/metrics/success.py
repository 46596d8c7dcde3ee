"""Success rates with intervals, and one summary of a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

from medpfl.image_score import DEFENSE_COLUMNS, ImageScore
from medpfl.metrics.bounded import BoundSummary, beaten, bounds_of
from medpfl.metrics.cautions import cautions
from medpfl.metrics.grades import Grading
from medpfl.metrics.identification import identification, ranks_of
from medpfl.metrics.measures.means import MeasureMeans, means_of
from medpfl.metrics.rates import is_zero_gradient, wilson
from medpfl.metrics.recovery import ReadoutSummary, readouts_of
from medpfl.outcomes import Grade, Status
from medpfl.source import Described


@dataclass(frozen=True)
class DefenseSummary:
    """What clients did against the attack, and what it cost.

    Args:
        parts: what each part of the defense does, in their order.
        noise: that it adds, or None without.
        privacy: why epsilon is what it is.
        unit: what is hidden: one ``image``, or all images of a ``client``.
        epsilon_round: of one round of training; None where there is none, or it is infinite.
        epsilon_attacked: of training and the attacked updates; None where it is infinite.
        candidates: for an image, of which `rero` is about.
        guarantee: all this in lines.
        means: means over the images of the columns that the defense has in ``metrics.csv``.
    """

    parts: Sequence[str]
    noise: str | None
    privacy: str
    unit: str
    epsilon_round: float | None
    epsilon_attacked: float | None
    candidates: int
    guarantee: Sequence[str]
    means: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """What a run measured, over all attacked images, failed ones included.

    Args:
        n: images attacked; every mean is over those whose truth is known, unless its description
            says otherwise.
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
        exact: images of this grade; None, like all that follow from grades, where none were given.
        diagnostic: images of this grade.
        recognisable: images of this grade.
        nothing: images of this grade.
        leaked: share of the images that are at least recognisable.
        leaked_low: lower end of the 95 % Wilson interval of `leaked`.
        leaked_high: upper end of the 95 % Wilson interval of `leaked`.
        leaked_mean_image: the same share for the mean image, a guess that no attack was needed for.
        exact_from: the SSIM from which an image is exact.
        diagnostic_from: the SSIM from which an image is diagnostic.
        unrelated_ssim: the SSIM that one in a hundred pairs of unrelated images exceeds.
        unrelated_pairs: pairs that this was read off.
        others: images that a recognisable one is told from.
        noise_scale_mean: mean scale of the noise that a defense added; None without noise.
        snr_db_mean: mean of the finite signal-to-noise ratios of the updates; None without noise.
        unsolved: how many of the images below the threshold ended with each status.
        cautions: what keeps these numbers from saying what they seem to, a sentence each.
        measures: the means of one's own measures, by name.
        n_judged: images whose truth is known; rates, intervals and grades are over these.
        unjudged: how many of the other images ended with each status.
        objective_median: median of the finite objectives.
        unexplained_median: median of what is left of the objective, relative to a blank image's,
            over all images for which the attack tells; NaN if for none.
        agreement_median: median SSIM between the two best restarts, over the `n_agreement` images
            where two can be compared; NaN if nowhere.
        n_agreement: images in `agreement_median`.
        n_identification: images whose original was ranked among others of the dataset, see
            `medpfl.metrics.identification`; None, like what follows, where none was.
        identification_top1: share of them whose original came first.
        identification_top1_low: lower end of its 95 % Wilson interval.
        identification_top1_high: upper end.
        identification_top1_chance: what a guess reaches that does not depend on the image.
        identification_mrr: mean reciprocal rank.
        identification_mrr_low: lower end of its 95 % bootstrap interval.
        identification_mrr_high: upper end.
        identification_mrr_chance: what the same guess reaches.
        epsilon: of differential privacy, infinite where the defense guarantees nothing; None
            without a defense, or where nobody knows. Of all that clients send in training, or of
            the attacked updates where there is no training.
        delta: the probability with which epsilon may fail; None where it is infinite.
        accountant: ``pld``, ``rdp`` or ``exact``; ``none`` where epsilon is infinite.
        rero: how probably any attack on training and the attacked updates picks the right one of
            `DefenseSummary.candidates` at most; 1 where the defense guarantees nothing.
        defense: what else there is to say of the defense; None without one.
        bound_mse: mean over the bounded images of the least mean squared error of any attacker, on
            average over images like these; None where no such bound applies.
        bound_psnr_db: the same in decibels: what no attack exceeds on average.
        attack_psnr_db: the attack's mean squared error over the same images in decibels; not the
            mean of the images' own.
        bounds: what else bounds say, and why some are left out; None where none are asked for.
        readout: what was read out of a malicious server's model; None of searches.
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
    exact: int | None = None
    diagnostic: int | None = None
    recognisable: int | None = None
    nothing: int | None = None
    leaked: float | None = None
    leaked_low: float | None = None
    leaked_high: float | None = None
    leaked_mean_image: float | None = None
    exact_from: float | None = None
    diagnostic_from: float | None = None
    unrelated_ssim: float | None = None
    unrelated_pairs: int | None = None
    others: int | None = None
    noise_scale_mean: float | None = None
    snr_db_mean: float | None = None
    unsolved: Mapping[str, int] = field(default_factory=dict)
    cautions: Sequence[str] = ()
    measures: Mapping[str, MeasureMeans] = field(default_factory=dict)
    n_judged: int = 0
    unjudged: Mapping[str, int] = field(default_factory=dict)
    objective_median: float = math.nan
    unexplained_median: float = math.nan
    agreement_median: float = math.nan
    n_agreement: int = 0
    n_identification: int | None = None
    identification_top1: float | None = None
    identification_top1_low: float | None = None
    identification_top1_high: float | None = None
    identification_top1_chance: float | None = None
    identification_mrr: float | None = None
    identification_mrr_low: float | None = None
    identification_mrr_high: float | None = None
    identification_mrr_chance: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    accountant: str | None = None
    rero: float | None = None
    defense: DefenseSummary | None = None
    bound_mse: float | None = None
    bound_psnr_db: float | None = None
    attack_psnr_db: float | None = None
    bounds: BoundSummary | None = None
    readout: ReadoutSummary | None = None


def summarise(
    scores: Sequence[ImageScore],
    grading: Grading | None = None,
    described: Described | None = None,
    bounds_note: str | None = None,
) -> Summary:
    """Summarise the rows of ``metrics.csv``.

    Args:
        scores: the rows.
        grading: what the rows were graded with, for its thresholds.
        described: where the updates came from, for their defense.
        bounds_note: why bounds are left out, or some of them.

    Raises:
        ValueError: there are no rows.
    """
    n = len(scores)
    if n == 0:
        raise ValueError("scores is empty; a summary needs at least one image")
    judged = [s for s in scores if s.judged]
    asr, asr_low, asr_high = _rate(sum(s.success for s in judged), len(judged))
    zero_gradients = sum(is_zero_gradient(s.gradient_norm) for s in judged)
    with_gradient = len(judged) - zero_gradients
    right = sum(s.label == s.label_inferred for s in judged)
    return Summary(
        n=n,
        n_judged=len(judged),
        n_ok=sum(s.status != Status.NON_FINITE for s in scores),
        asr=asr,
        asr_low=asr_low,
        asr_high=asr_high,
        asr_ceiling=_rate(with_gradient, len(judged))[0],
        zero_gradient_share=_rate(zero_gradients, len(judged))[0],
        ssim_mean=_mean_or_nan(s.ssim for s in scores),
        ssim_median=median(s.ssim for s in judged) if judged else math.nan,
        mse_mean=_mean_or_nan(s.mse for s in scores),
        psnr_db_mean=_mean_or_nan(s.psnr_db for s in scores if math.isfinite(s.psnr_db)),
        label_accuracy=_rate(right, len(judged))[0],
        seconds_per_image=fmean(s.seconds for s in scores),
        ssim_paper_mean=_mean_or_nan(s.ssim_paper for s in scores),
        ssim_zeros_mean=_mean_or_nan(s.ssim_zeros for s in scores),
        ssim_mean_image_mean=_mean_or_nan(s.ssim_mean_image for s in scores),
        mse_zeros_mean=_mean_or_nan(s.mse_zeros for s in scores),
        mse_mean_image_mean=_mean_or_nan(s.mse_mean_image for s in scores),
        statuses=_statuses(scores),
        n_exact=sum(s.psnr_db == math.inf for s in scores),
        n_ssim_paper=sum(not math.isnan(s.ssim_paper) for s in scores),
        ssim_paper_cpl_mean=_mean_or_nan(s.ssim_paper_cpl for s in scores),
        ssim_paper_dlg_mean=_mean_or_nan(s.ssim_paper_dlg for s in scores),
        ssim_paper_gradinv_mean=_mean_or_nan(s.ssim_paper_gradinv for s in scores),
        ssim_oracle_mean=_mean_or_nan(s.ssim_oracle for s in scores),
        mse_oracle_mean=_mean_or_nan(s.mse_oracle for s in scores),
        noise_scale_mean=_mean_or_none(s.noise_scale for s in scores),
        snr_db_mean=_mean_or_none(s.snr_db for s in scores),
        unsolved=_statuses(s for s in judged if not s.success),
        unjudged=_statuses(s for s in scores if not s.judged),
        objective_median=_median(s.objective for s in scores),
        unexplained_median=_median(s.unexplained for s in scores),
        agreement_median=_median(s.agreement for s in scores),
        n_agreement=sum(math.isfinite(s.agreement) for s in scores),
        cautions=[
            *_unaware(judged, described),
            *cautions(scores, grading),
            *filter(None, [beaten(scores)]),
            *_stopped(described),
        ],
        measures=means_of(scores),
        readout=readouts_of(scores),
        **_grades(judged, grading),
        **_identification(judged),
        **_defense(scores, described),
        **bounds_of(scores, bounds_note),
    )


def _defense(scores: Sequence[ImageScore], described: Described | None) -> dict[str, Any]:
    """Return the fields of `Summary` about a defense; none where there is none, or none known."""
    if described is None or described.privacy is None:
        return {}
    privacy = described.privacy
    kept = {n: [s.defense[n] for s in scores if n in s.defense] for n in DEFENSE_COLUMNS}
    return {
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "accountant": privacy.accountant,
        "rero": privacy.rero,
        "defense": DefenseSummary(
            parts=described.defense.splitlines(),
            noise=described.noise,
            privacy=privacy.reason,
            unit=privacy.unit,
            epsilon_round=privacy.epsilon_round,
            epsilon_attacked=_finite(privacy.epsilon_attacked),
            candidates=privacy.candidates,
            guarantee=list(privacy.describe()),
            means={name: fmean(values) for name, values in kept.items() if values},
        ),
    }


def _unaware(judged: Sequence[ImageScore], described: Described | None) -> list[str]:
    """Return what images that stay below the threshold do not show of a defense."""
    if described is None or described.unaware is None or all(s.success for s in judged):
        return []
    return [described.unaware]


def _stopped(described: Described | None) -> list[str]:
    return [] if described is None or described.stopped is None else [described.stopped]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _grades(scores: Sequence[ImageScore], grading: Grading | None) -> dict[str, Any]:
    """Return the fields of `Summary` that follow from grades; none where an image has none."""
    if not scores or not all(s.grade for s in scores):
        return {}
    n = len(scores)
    counts = Counter(s.grade for s in scores)
    leaked = n - counts[Grade.NOTHING]
    low, high = wilson(leaked, n)
    found: dict[str, Any] = {str(grade): counts[grade] for grade in Grade}
    found |= {"leaked": leaked / n, "leaked_low": low, "leaked_high": high}
    guessed = sum(s.grade_mean_image not in ("", Grade.NOTHING) for s in scores)
    found["leaked_mean_image"] = guessed / n
    if grading is not None:
        found |= {
            "exact_from": grading.exact,
            "diagnostic_from": grading.diagnostic,
            "unrelated_ssim": grading.unrelated,
            "unrelated_pairs": grading.pairs,
            "others": grading.others,
        }
    return found


def _identification(scores: Sequence[ImageScore]) -> dict[str, Any]:
    """Return the fields of `Summary` that follow from ranks; none where no image has one."""
    found = identification(ranks_of(scores))
    if found is None:
        return {}
    return {
        "n_identification": found.n,
        **{f"identification_{k}": value for k, value in asdict(found).items() if k != "n"},
    }


def _rate(count: int, n: int) -> tuple[float, float, float]:
    """Return a rate and the ends of its interval; NaN where nothing was counted."""
    return (count / n, *wilson(count, n)) if n else (math.nan, math.nan, math.nan)


def _statuses(scores: Iterable[ImageScore]) -> dict[str, int]:
    return dict(sorted(Counter(str(s.status) for s in scores).items()))


def _mean_or_nan(values: Iterable[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return fmean(kept) if kept else math.nan


def _median(values: Iterable[float]) -> float:
    """Return the median of the finite values; NaN if there is none."""
    kept = [value for value in values if math.isfinite(value)]
    return median(kept) if kept else math.nan


def _mean_or_none(values: Iterable[float | None]) -> float | None:
    kept = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(kept) if kept else None
