"""How many images an attack recovered, as a function of what that means, beside three guesses.

One loose threshold can call a black image a success. So the share is given as a curve, and the
guesses go through the same curve: a black image, the mean of the update's own images (which takes
the truth), and the mean image of the dataset.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from medpfl.image_score import ImageScore
from medpfl.metrics.image_quality import psnr_db_of
from medpfl.metrics.rates import wilson

ATTACK = "attack"
GUESSES: Mapping[str, str] = {
    "zeros": "zeros",
    "batch_mean": "batch_mean",
    "dataset_mean": "mean_image",
}
"""Guesses by name, with how their columns end."""

THRESHOLDS: Mapping[str, tuple[str, float]] = {
    "psnr_30": ("psnr_db", 30.0),
    "psnr_40": ("psnr_db", 40.0),
    "ssim_90": ("ssim", 0.9),
}
"""What counts as recovered: above this value of this measure."""


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """The share of the images above a threshold.

    Args:
        share: of the attack; an image that no reconstruction was left for is none of them.
        low: lower end of its 95 % Wilson interval.
        high: upper end.
        zeros: of black images.
        batch_mean: of the mean of each update's own images.
        dataset_mean: of the mean image.
    """

    share: float
    low: float
    high: float
    zeros: float
    batch_mean: float
    dataset_mean: float


@dataclass(frozen=True, kw_only=True)
class ReadoutSummary:
    """What was read out of the updates of a run.

    Args:
        n: true images.
        matched: of these, that a read-out was left for.
        readouts: images that were read out in all.
        recovered: by `THRESHOLDS`.
        precision: share of the read-outs that show a true image of their own at more than 30 dB;
            None without any.
        precision_low: lower end of its 95 % Wilson interval.
        precision_high: upper end.
        expected_share: of the images that the server expects to isolate, mean over the images; None
            where that is not known.
        mic_protocol: share of the images that MIC calls reconstructed, see `medpfl.metrics.mic`.
        mic_protocol_low: lower end of its 95 % Wilson interval.
        mic_protocol_high: upper end.
    """

    n: int
    matched: int
    readouts: int
    recovered: Mapping[str, Recovered]
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    expected_share: float | None
    mic_protocol: float
    mic_protocol_low: float
    mic_protocol_high: float


def values_of(scores: Sequence[ImageScore], guess: str, measure: str) -> list[float]:
    """Return a measure of every image, for the attack or a guess.

    Args:
        scores: rows of ``metrics.csv``, judged.
        guess: ``attack``, or one of `GUESSES`.
        measure: ``mse``, ``psnr_db`` or ``ssim``.

    Returns:
        A value an image; of one without a reconstruction the worst there is, and NaN where a guess
        is not known.
    """
    column = "ssim" if measure == "ssim" else "mse"
    if guess == ATTACK:
        worst = -math.inf if measure == "ssim" else math.inf
        found = [getattr(s, column) if s.matched else worst for s in scores]
    else:
        name = f"{column}_{GUESSES[guess]}"
        found = [getattr(s, name, s.readout.get(name, math.nan)) for s in scores]
    return [psnr_db_of(v) if measure == "psnr_db" else v for v in found]


def readouts_of(scores: Sequence[ImageScore]) -> ReadoutSummary | None:
    """Summarise the read-outs of a run; None where there are none of known images."""
    read = [s for s in scores if s.judged and s.readout]
    if not read:
        return None
    n = len(read)
    handed_in = sum({s.capture_id: int(s.readout["readouts"]) for s in read}.values())
    good = sum(v > 30 for v in values_of(read, ATTACK, "psnr_db"))
    precise = (good / handed_in, *wilson(good, handed_in)) if handed_in else (None,) * 3
    rebuilt = sum(s.readout["mic_protocol"] == 1 for s in read)
    low, high = wilson(rebuilt, n)
    shares = [s.readout["expected_share"] for s in read]
    known = [share for share in shares if math.isfinite(share)]
    return ReadoutSummary(
        n=n,
        matched=sum(s.matched for s in read),
        readouts=handed_in,
        recovered={name: _recovered(read, *what) for name, what in THRESHOLDS.items()},
        precision=precise[0],
        precision_low=precise[1],
        precision_high=precise[2],
        expected_share=fmean(known) if known else None,
        mic_protocol=rebuilt / n,
        mic_protocol_low=low,
        mic_protocol_high=high,
    )


def _recovered(scores: Sequence[ImageScore], measure: str, threshold: float) -> Recovered:
    n = len(scores)
    counts = {
        guess: sum(v > threshold for v in values_of(scores, guess, measure))
        for guess in (ATTACK, *GUESSES)
    }
    low, high = wilson(counts[ATTACK], n)
    guessed: dict[str, Any] = {guess: counts[guess] / n for guess in GUESSES}
    return Recovered(share=counts[ATTACK] / n, low=low, high=high, **guessed)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The share of images that are better than each of T thresholds.

    Args:
        measure: ``mse``, of which less is better, ``psnr_db`` or ``ssim``.
        thresholds: T, ascending.
        shares: T of the attack, by ``attack``, and T of each guess, by `GUESSES`.
        low: T lower ends of the attack's 95 % Wilson intervals.
        high: T upper ends.
    """

    measure: str
    thresholds: Sequence[float]
    shares: Mapping[str, Sequence[float]]
    low: Sequence[float]
    high: Sequence[float]


GRIDS: Mapping[str, tuple[float, ...]] = {
    "mse": tuple(10 ** (k / 10) for k in range(-80, 1)),
    "psnr_db": tuple(float(k) for k in range(81)),
    "ssim": (*(k / 100 for k in range(100)), 0.995, 0.999),
}
"""The thresholds of a curve, by measure."""


def curves_of(scores: Sequence[ImageScore]) -> tuple[Curve, ...]:
    """Return a curve for each measure of `GRIDS`, over all these images.

    Args:
        scores: rows of ``metrics.csv``, judged; at least one.
    """
    return tuple(_curve(scores, measure, grid) for measure, grid in GRIDS.items())


def _curve(scores: Sequence[ImageScore], measure: str, grid: Sequence[float]) -> Curve:
    n = len(scores)
    counts = {}
    for guess in (ATTACK, *GUESSES):
        values = values_of(scores, guess, measure)
        better = operator.lt if measure == "mse" else operator.gt
        counts[guess] = [sum(better(v, threshold) for v in values) for threshold in grid]
    ends = [wilson(count, n) for count in counts[ATTACK]]
    return Curve(
        measure=measure,
        thresholds=grid,
        shares={guess: [c / n for c in found] for guess, found in counts.items()},
        low=[low for low, _ in ends],
        high=[high for _, high in ends],
    )
