"""Rates with their intervals, and what counts as no gradient."""

from __future__ import annotations

import math
from statistics import NormalDist

_SMALLEST_NORMAL_FLOAT32 = 2.0**-126


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
