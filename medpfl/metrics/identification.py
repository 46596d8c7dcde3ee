"""Whom a reconstruction points to: the rank of its original among images of the dataset.

It takes no threshold, and its chance level is exact. A guess that does not depend on the image,
whatever it shows, is nearest to one candidate, second nearest to another, and so on: over all
candidates as the original its ranks are 1 to k, each once. So it comes first one time in k, and its
mean reciprocal rank is H(k) / k. Where N images are behind an update, they are matched to its N
reconstructions with the truth: of N guesses the best may count, and chance is at most what the best
of them reaches (Boole's inequality: N times as often among the first r).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from medpfl.image_score import ImageScore
from medpfl.metrics.bootstrap import bootstrap_mean
from medpfl.metrics.rates import wilson


@dataclass(frozen=True)
class Rank:
    """Where the original of one reconstruction stands.

    Args:
        rank: from 1, the image that the reconstruction is most like; the mean over the places that
            equally similar images share.
        candidates: images that it is ranked among, the original included.
        guesses: reconstructions of its update, one of which was matched to it.
    """

    rank: float
    candidates: int
    guesses: int = 1


@dataclass(frozen=True, kw_only=True)
class Identification:
    """Ranks of many reconstructions, with 95 % intervals.

    Args:
        n: images that were ranked.
        top1: share of them whose original comes first, alone.
        top1_low: lower end of its Wilson interval.
        top1_high: upper end.
        top1_chance: what a guess reaches that does not depend on the image.
        mrr: mean reciprocal rank.
        mrr_low: lower end of its bootstrap interval; NaN for fewer than five images.
        mrr_high: upper end.
        mrr_chance: what the same guess reaches.
    """

    n: int
    top1: float
    top1_low: float
    top1_high: float
    top1_chance: float
    mrr: float
    mrr_low: float
    mrr_high: float
    mrr_chance: float

    @property
    def at_chance(self) -> bool:
        """Whether neither number is above chance by more than its interval."""
        above = self.mrr_low > self.mrr_chance  # False where there is no interval
        return not above and self.top1_low <= self.top1_chance


def identification(ranks: Sequence[Rank]) -> Identification | None:
    """Summarise ranks; None where there are none."""
    n = len(ranks)
    if n == 0:
        return None
    first = sum(r.rank == 1 for r in ranks)
    low, high = wilson(first, n)
    reciprocal = [1 / r.rank for r in ranks]
    mrr_low, mrr_high = bootstrap_mean(reciprocal)
    return Identification(
        n=n,
        top1=first / n,
        top1_low=low,
        top1_high=high,
        top1_chance=fmean(min(1.0, r.guesses / r.candidates) for r in ranks),
        mrr=fmean(reciprocal),
        mrr_low=mrr_low,
        mrr_high=mrr_high,
        mrr_chance=fmean(mrr_by_chance(r.candidates, r.guesses) for r in ranks),
    )


def ranks_of(scores: Sequence[ImageScore]) -> list[Rank]:
    """Return the ranks in rows of ``metrics.csv`` of one run, of the images that have one."""
    behind = Counter(s.capture_id for s in scores)
    return [
        Rank(
            s.identification_rank,
            int(s.identification_candidates),
            # Read-outs may be more than the images, or fewer.
            int(s.readout.get("readouts", behind[s.capture_id])),
        )
        for s in scores
        if math.isfinite(s.identification_rank) and s.identification_candidates
    ]


def mrr_by_chance(candidates: int, guesses: int = 1) -> float:
    """Return what the mean reciprocal rank of a guess is, or is at most for the best of several.

    With P(r) the probability of a rank of r or better, it is the sum of P(r) / r (r + 1) over
    r < k, and of 1 / k. Of one guess P(r) = r / k, and the sum is the k-th harmonic number over k.
    """
    k = candidates
    within = (min(1.0, guesses * r / k) for r in range(1, k))
    return math.fsum([*(p / (r * (r + 1)) for r, p in enumerate(within, start=1)), 1 / k])
