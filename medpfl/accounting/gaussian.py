"""Releases of everything under Gaussian noise: exact, whatever epsilon."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import erfcx, log_ndtr, ndtr

_LOG_TINY = -745.0  # below, exp is zero


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Return delta(epsilon) of N(mu, 1) against N(0, 1).

    Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu): Balle and Wang 2018, Theorem 8. T
    releases of noise multiplier sigma are one of mu = sqrt(T) / sigma (Dong et al. 2022, Gaussian
    differential privacy).

    Args:
        epsilon: of either sign.
        mu: positive.
    """
    near, far = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    # Where Phi(-mu/2 - epsilon/mu) would underflow: far >= near, and e^epsilon is in the density.
    if near > 0:
        density = math.exp(max(-near * near / 2, _LOG_TINY)) / 2
        return density * float(erfcx(near / math.sqrt(2)) - erfcx(far / math.sqrt(2)))
    second = math.exp(epsilon + float(log_ndtr(-far))) if far < 0 else _second(near, far)
    return float(ndtr(-near)) - second


def gaussian_epsilon(delta: float, mu: float) -> float:
    """Return the smallest epsilon, at least 0, for which N(mu, 1) against N(0, 1) has this delta.

    Args:
        delta: within (0, 1).
        mu: positive.
    """
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    # epsilon = mu (y + mu/2): delta is at most Phi(-y), which is at most exp(-y^2 / 2).
    top = math.sqrt(2 * math.log(1 / delta)) + 1e-9
    near = brentq(lambda y: gaussian_delta(mu * (y + mu / 2), mu) - delta, -mu / 2, top, xtol=1e-13)
    return mu * (float(near) + mu / 2)


def _second(near: float, far: float) -> float:
    return math.exp(max(-near * near / 2, _LOG_TINY)) * float(erfcx(far / math.sqrt(2))) / 2
