"""Intervals of means, for numbers that are far from normal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 5000
FEWEST = 5
"""Fewer values than these resample to a handful of means, whose spread says little."""


def bootstrap_mean(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean; the same one every time.

    Attacks tend to solve or to diverge, so that a mean of SSIMs is nearly a rate: an interval that
    assumes a normal distribution of the values would be wrong.

    Args:
        values: finite numbers.
        confidence: coverage, in (0, 1).

    Returns:
        The lower and the upper end; NaN twice for fewer than `FEWEST` values.

    Raises:
        ValueError: a value is not finite.

    Source: Efron 1979.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not np.isfinite(sample).all():
        raise ValueError("values must be finite: leave the undefined ones out, and count them")
    if len(sample) < FEWEST:
        return math.nan, math.nan
    drawn = bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        batch=500,
        random_state=np.random.default_rng(0),
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
