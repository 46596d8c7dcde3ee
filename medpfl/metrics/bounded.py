"""What no attack exceeds beside what the attack reached, over the images of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from medpfl.bounds.columns import BOUND_COLUMNS
from medpfl.image_score import ImageScore
from medpfl.metrics.image_quality import psnr_db_of

_OFTEN = 3.0


@dataclass(frozen=True)
class BoundSummary:
    """The bounds of a run's updates.

    Args:
        n: images that they are over.
        means: means over these images of the columns that bounds have in ``metrics.csv``; of
            ``bound_psnr_db``, what the mean error is in decibels.
        attack_mse: the attack's mean squared error over the same images; None without any.
        note: why bounds are left out, or some of them; None where they are not.
    """

    n: int
    means: Mapping[str, float]
    attack_mse: float | None
    note: str | None


def bounds_of(scores: Sequence[ImageScore], note: str | None = None) -> dict[str, Any]:
    """Return the fields of `Summary` about bounds; none where no image has one and nobody says why.

    The errors of bounds are not independent from image to image, so that they are averaged.

    Args:
        scores: rows of ``metrics.csv``.
        note: why bounds are left out, or some of them.
    """
    bounded = [s for s in scores if s.judged and s.bounds]
    if not bounded and note is None:
        return {}
    kept = {n: [s.bounds[n] for s in bounded if n in s.bounds] for n in BOUND_COLUMNS}
    means = {name: fmean(values) for name, values in kept.items() if values}
    attack = fmean(s.mse for s in bounded) if bounded else None
    found: dict[str, Any] = {
        "attack_psnr_db": None if attack is None else psnr_db_of(attack),
        "bounds": BoundSummary(n=len(bounded), means=means, attack_mse=attack, note=note),
    }
    if "bound_mse" in means:
        means["bound_psnr_db"] = psnr_db_of(means["bound_mse"])
        found |= {"bound_mse": means["bound_mse"], "bound_psnr_db": means["bound_psnr_db"]}
    return found


def beaten(scores: Sequence[ImageScore]) -> str | None:
    """Return a caution where the attack is nearer than the bound on average; else None."""
    pairs = [
        (s.mse, s.bounds["bound_mse"], s.bounds["bound_mse_error"])
        for s in scores
        if s.judged and "bound_mse" in s.bounds
    ]
    if len(pairs) < 2:
        return None
    apart = [mse - bound for mse, bound, _ in pairs]
    mean = fmean(apart)
    scatter = math.sqrt(fmean((x - mean) ** 2 for x in apart) / (len(apart) - 1))
    if mean >= -_OFTEN * (scatter + fmean(error for _, _, error in pairs)):
        return None
    return (
        "the attack is nearer to these images than the bound allows on average: they are easier "
        "than the held-out images, or the attack knows more of them than their covariance"
    )
