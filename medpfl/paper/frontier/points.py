"""From the jobs of a sweep to points: one setting of one defense, over its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from medpfl.metrics.identification import Identification, Rank, identification
from medpfl.metrics.rates import wilson
from medpfl.outcomes import Status
from medpfl.paper.frontier.attacks import Attacked
from medpfl.paper.results import Estimate, mean_of

NAIVE, ADAPTIVE = "naive", "adaptive"
"""Kinds of attackers: without and with knowledge of the defense."""

_THRESHOLD = 0.9
_BOUND, _PSNR = "bound_psnr_db", "psnr_db"


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """What one attacker got at one point, all seeds' images pooled.

    Args:
        attacker: its name, as in ``conf/paper/attacker``.
        asr: success rate, with its Wilson interval.
        ssim: mean SSIM, with its bootstrap interval.
        identification: ranks of the originals; None where there were no others.
        psnr_db: mean peak signal-to-noise ratio where it is finite.
        cut_short: images below the threshold whose attack ran out of steps: not beaten there.
        guessed: share of the images whose SSIM with the mean image, which takes no update, is at
            least 0.9: there the success rate says nothing.
        bound_psnr_db: mean of what no attack exceeds on these updates; of no image where there is
            no bound.
    """

    attacker: str
    asr: Estimate
    ssim: Estimate
    identification: Identification | None
    psnr_db: Estimate
    cut_short: int
    guessed: float
    bound_psnr_db: Estimate

    @property
    def top1(self) -> Estimate:
        """How often the original came first, with its Wilson interval."""
        i = self.identification
        nan = math.nan
        return (
            Estimate(nan, nan, nan, 0)
            if i is None
            else Estimate(i.top1, i.top1_low, i.top1_high, i.n)
        )


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of a defense.

    Args:
        name: as in ``conf/paper/defense``.
        defense: the curve that it lies on.
        setting: its strength in words.
        accuracy: balanced accuracy after training under the defense: the seeds' mean, and their
            lowest and highest.
        auc: macro AUC, likewise.
        naive: what the strongest attacker got that does not know the defense; None where no job of
            such an attacker is complete.
        adaptive: of the strongest that does.
        epsilon: of differential privacy, the seeds' largest; infinite where nothing is guaranteed,
            None without a defense.
        rero: what reconstruction robustness allows at most, the seeds' largest; None without.
        bytes_sent: mean over the attacked updates; NaN where nobody counted.
    """

    name: str
    defense: str
    setting: str
    accuracy: Estimate
    auc: Estimate
    naive: Leakage | None
    adaptive: Leakage | None
    epsilon: float | None = None
    rero: float | None = None
    bytes_sent: float = math.nan

    @property
    def attacks(self) -> tuple[Leakage, ...]:
        """The attacks that there are, naive first."""
        return tuple(a for a in (self.naive, self.adaptive) if a is not None)

    @property
    def asr(self) -> float:
        """The higher success rate of the two: whoever knows the defense may also ignore it."""
        return max((a.asr.value for a in self.attacks), default=math.nan)

    @property
    def mrr(self) -> float:
        """The higher mean reciprocal rank of the two."""
        found = [a.identification.mrr for a in self.attacks if a.identification is not None]
        return max(found, default=math.nan)


def points_of(jobs: Sequence[Attacked]) -> list[Point]:
    """Return the points of one dataset's complete jobs, in the order of the sweep."""
    names = dict.fromkeys(job.point for job in jobs)
    return [_point([job for job in jobs if job.point == name]) for name in names]


def _point(jobs: Sequence[Attacked]) -> Point:
    first = jobs[0]
    # Every attacker's job trains anew, and to the same network: a seed counts once.
    trained = {job.seed: job.utility for job in jobs if job.utility is not None}
    sent = [float(job.scores["bytes_sent"].mean()) for job in jobs if "bytes_sent" in job.scores]
    return Point(
        name=first.point,
        defense=first.defense,
        setting=first.setting,
        accuracy=spread(u.balanced_accuracy for u in trained.values()),
        auc=spread(u.auc for u in trained.values()),
        naive=_strongest(jobs, NAIVE),
        adaptive=_strongest(jobs, ADAPTIVE),
        epsilon=_largest(jobs, "epsilon"),
        rero=_largest(jobs, "rero"),
        bytes_sent=fmean(sent) if sent else math.nan,
    )


def _strongest(jobs: Sequence[Attacked], kind: str) -> Leakage | None:
    """Return the leakage of the attacker of a kind that rebuilt most: the defender's worst case."""
    own = [job for job in jobs if job.kind == kind]
    found = [
        leakage(name, [job.scores for job in own if job.attacker == name])
        for name in dict.fromkeys(job.attacker for job in own)
    ]
    return max(found, key=lambda one: (one.asr.value, one.ssim.value), default=None)


def leakage(attacker: str, tables: Sequence[pd.DataFrame]) -> Leakage:
    """Return what an attacker got, from its jobs' ``metrics.csv``, one a seed.

    Args:
        attacker: its name.
        tables: at least one, with at least an image each.
    """
    scores = pd.concat(tables, ignore_index=True)
    success = scores["success"].astype(bool)
    n, hits = len(scores), int(success.sum())
    bound = scores.get(_BOUND, ())
    return Leakage(
        attacker=attacker,
        asr=Estimate(hits / n, *wilson(hits, n), n),
        ssim=mean_of(scores["ssim"]),
        identification=identification([rank for own in tables for rank in _ranks(own)]),
        psnr_db=mean_of(scores[_PSNR]),
        cut_short=int((~success & (scores["status"] == str(Status.OUT_OF_STEPS))).sum()),
        guessed=float((scores["ssim_mean_image"] >= _THRESHOLD).mean()),
        bound_psnr_db=mean_of(bound),
    )


def spread(values: Iterable[float]) -> Estimate:
    """Return the mean of the seeds' finite values, with the lowest and the highest of them."""
    kept = [value for value in values if math.isfinite(value)]
    if not kept:
        return Estimate(math.nan, math.nan, math.nan, 0)
    return Estimate(fmean(kept), min(kept), max(kept), len(kept))


def _ranks(scores: pd.DataFrame) -> list[Rank]:
    """Return the ranks of one job's images, where it has any."""
    if "identification_rank" not in scores:  # of a record from before there were ranks
        return []
    behind = scores["capture_id"].fillna("").value_counts()
    ranked = scores[scores["identification_rank"].notna()].fillna({"capture_id": ""})
    columns = ("identification_rank", "identification_candidates", "capture_id")
    return [
        Rank(float(rank), int(candidates), int(behind[update]))
        for rank, candidates, update in zip(*(ranked[c] for c in columns), strict=True)
    ]


def _largest(jobs: Iterable[Attacked], key: str) -> float | None:
    """Return the largest of a number of the jobs' summaries, which may be the word ``inf``."""
    summaries: Iterable[Mapping[str, Any]] = (job.summary for job in jobs)
    told = [summary.get(key) for summary in summaries]
    return max((float(value) for value in told if value is not None), default=None)
