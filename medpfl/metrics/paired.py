"""Tests of two attacks on the same images."""

from __future__ import annotations

from scipy.stats import binomtest


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of equal success rates, exact at any number of images.

    Images that both or neither rebuilt say nothing; of the others, under equal rates, each falls
    to A or to B with probability one half.

    Args:
        only_a: images that A alone rebuilt, at least 0.
        only_b: images that B alone rebuilt, at least 0.

    Raises:
        ValueError: a count is negative.

    Source: McNemar 1947.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"only_a={only_a}, only_b={only_b}: counts cannot be negative")
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)
