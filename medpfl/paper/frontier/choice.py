"""Which points are worth having: what protects, what is dominated, and what costs least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from medpfl.paper.frontier.points import Point

LARGEST_ASR = 0.05
"""From this success rate on, a defense does not keep images safe."""


class Verdict(StrEnum):
    """Whether a point keeps images safe from both attackers."""

    SAFE = "safe"
    LIKELY = "perhaps safe"
    LEAKS = "leaks"
    UNKNOWN = "not known"


def verdict(point: Point) -> Verdict:
    """Say whether a point keeps ASR under 5 % and identification at chance, under both attackers.

    It is safe where the ASR's interval ends below 5 %, and perhaps so where only the rate does.
    Identification is at chance where no interval lies above it: with few images that is soon said.
    """
    if point.naive is None or point.adaptive is None:
        return Verdict.UNKNOWN
    attacks = point.attacks
    if any(a.identification is None for a in attacks):
        return Verdict.UNKNOWN
    named = any(a.identification is not None and not a.identification.at_chance for a in attacks)
    if named or any(a.asr.value >= LARGEST_ASR for a in attacks):
        return Verdict.LEAKS
    sure = all(a.asr.high < LARGEST_ASR for a in attacks)
    return Verdict.SAFE if sure else Verdict.LIKELY


def cheapest(points: Sequence[Point]) -> Point | None:
    """Return the point of highest balanced accuracy among those that keep images safe.

    None where none does. Points whose utility is not known do not count.
    """
    safe = [
        point
        for point in points
        if verdict(point) in (Verdict.SAFE, Verdict.LIKELY) and math.isfinite(point.accuracy.value)
    ]
    return max(safe, key=lambda point: point.accuracy.value, default=None)


def dominating(point: Point, points: Sequence[Point]) -> Point | None:
    """Return a point that is no worse in accuracy, ASR and identification, and better in one.

    The best of them by accuracy, which is then not dominated itself unless by its equal in all
    three; None where there is none. Means are compared: intervals may overlap.
    """
    own = _worth(point)
    better = [other for other in points if _beats(_worth(other), own)]
    return max(better, key=lambda other: other.accuracy.value, default=None)


@dataclass(frozen=True)
class Corner:
    """A place on the efficient frontier."""

    leakage: float
    utility: float


def efficient(corners: Sequence[Corner]) -> list[Corner]:
    """Return the corners that no other beats, by leakage: less of it and no less utility.

    Args:
        corners: in any order; those with a NaN are left out.
    """
    known = [c for c in corners if math.isfinite(c.leakage) and math.isfinite(c.utility)]
    kept: list[Corner] = []
    for corner in sorted(known, key=lambda c: (c.leakage, -c.utility)):
        if not kept or corner.utility > kept[-1].utility:
            kept.append(corner)
    return kept


def _worth(point: Point) -> tuple[float, float, float]:
    """Return what is to be large: accuracy, and the negatives of what leaks."""
    return point.accuracy.value, -point.asr, -point.mrr


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
