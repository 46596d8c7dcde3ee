"""What a run's summary holds of each measure of one's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from medpfl.image_score import ImageScore
from medpfl.metrics.measures.columns import columns_of, names_in


@dataclass(frozen=True, kw_only=True)
class MeasureMeans:
    """The means of a measure, each over the images where it is finite; NaN where it is nowhere.

    Args:
        n: images where it is finite for the reconstruction.
        mean: of the reconstructions.
        zeros_mean: of black images.
        mean_image_mean: of the mean image.
    """

    n: int
    mean: float
    zeros_mean: float
    mean_image_mean: float


def means_of(scores: Sequence[ImageScore]) -> dict[str, MeasureMeans]:
    """Return the means of every measure that an image has, by the measure's name."""
    columns = dict.fromkeys(column for score in scores for column in score.measures)
    return {name: _means(name, scores) for name in names_in(columns)}


def _means(name: str, scores: Sequence[ImageScore]) -> MeasureMeans:
    own, zeros, mean_image = (_finite(column, scores) for column in columns_of(name))
    return MeasureMeans(
        n=len(own),
        mean=_mean(own),
        zeros_mean=_mean(zeros),
        mean_image_mean=_mean(mean_image),
    )


def _finite(column: str, scores: Sequence[ImageScore]) -> list[float]:
    values = (score.measures.get(column, math.nan) for score in scores)
    return [value for value in values if math.isfinite(value)]


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan
