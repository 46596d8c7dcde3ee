"""Reconstruction robustness: how often any attacker can at most be right about an image.

A mechanism is robust with gamma where no attacker, whatever it knows of the other images, the
network and the code, finds the image (or comes as near as it counts) with a probability above
gamma, if without the release it would with kappa at best (Balle, Cherubin and Hayes 2022,
Definition 2). For one of `n` equally likely candidates kappa is 1 / n.

Whoever finds the image could also tell releases with it from releases without it. So gamma is at
most the power of the best test at level kappa of "it is not there" against "it is" (Hayes,
Mahloujifar and Balle 2023; Kaissis et al. 2023), and what is added here is that the power follows
from the privacy profile, `from_profile`.

The contribution of the image is clipped to norm C; `noise_multiplier` is the noise's scale over C.
The bounds compare with a release without it, C away, so that they hold for either notion of
neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from scipy.optimize import minimize_scalar
from scipy.special import ndtr, ndtri

from medpfl.accounting import Mechanism, profile
from medpfl.settings.hints import check_value
from medpfl.settings.ranges import NoiseMultiplier, Range, Steps

Kappa = Annotated[float, Range(0, 1, "()")]
"""The chance of a guess."""
PureEpsilon = Annotated[float, Range(0, 1e18)]
"""Epsilon at delta 0."""

_LOWEST = -40.0  # e^-40 kappa + delta is 1 there, to the last digit
_STARTS = 60


def pure_dp(*, epsilon: float, kappa: float) -> float:
    """Return min(1, kappa e^epsilon): any epsilon-DP mechanism (Balle et al. 2022).

    Raises:
        ConfigurationError: epsilon negative, or kappa outside (0, 1).
    """
    check_value("bound.epsilon", epsilon, PureEpsilon)
    check_value("bound.kappa", kappa, Kappa)
    return math.exp(min(0.0, math.log(kappa) + epsilon))


def gaussian(*, noise_multiplier: float, releases: int, kappa: float) -> float:
    """Return Phi(Phi^-1(kappa) + sqrt(T) / sigma): Gaussian noise on T releases of everything.

    Kaissis et al. 2023 (arXiv 2307.03928); it is the power of the Neyman-Pearson test between
    N(mu, 1) and N(0, 1), and T releases are one of mu = sqrt(T) / sigma.

    Args:
        noise_multiplier: sigma, the standard deviation over C.
        releases: T.
        kappa: the chance of a guess.

    Raises:
        ConfigurationError: a value out of range.
    """
    check_value("bound.noise_multiplier", noise_multiplier, NoiseMultiplier)
    check_value("bound.releases", releases, Steps)
    check_value("bound.kappa", kappa, Kappa)
    return float(ndtr(ndtri(kappa) + math.sqrt(releases) / noise_multiplier))


def laplace(*, epsilon: float, kappa: float) -> float:
    """Return the bound of one release under Laplace noise of scale b: epsilon = C1 / b.

    Three pieces: e^epsilon kappa below kappa = e^-epsilon / 2, then 1 - e^-epsilon / (4 kappa) up
    to 1/2, then 1 - e^-epsilon (1 - kappa). Kaissis et al. 2023 (arXiv 2307.03928).

    Raises:
        ConfigurationError: epsilon negative, or kappa outside (0, 1).
    """
    check_value("bound.epsilon", epsilon, PureEpsilon)
    check_value("bound.kappa", kappa, Kappa)
    shrunk = math.exp(-epsilon)
    if kappa < shrunk / 2:
        return kappa / shrunk
    if kappa <= 0.5:
        return 1 - shrunk / (4 * kappa)
    return 1 - shrunk * (1 - kappa)


def subsampled_gaussian(
    *, noise_multiplier: float, sample_rate: float, steps: int, kappa: float
) -> float:
    """Return the bound of DP-SGD: T releases of Poisson samples under Gaussian noise.

    The pair to tell apart is (1 - q) N(0, sigma^2) + q N(1, sigma^2) from N(0, sigma^2), T times
    (Hayes et al. 2023, arXiv 2302.07225); `monte_carlo` draws it, this reads it off the privacy
    loss distribution.

    Args:
        noise_multiplier: sigma, the standard deviation over C.
        sample_rate: q.
        steps: T.
        kappa: the chance of a guess.

    Raises:
        ConfigurationError: a value out of range.
    """
    noise = Mechanism(noise_multiplier=noise_multiplier, sample_rate=sample_rate)
    return from_profile(profile({noise: steps}, presence=True), kappa=kappa)


def from_profile(delta: Callable[[float], float], *, kappa: float) -> float:
    """Return the least e^epsilon kappa + delta(epsilon) over epsilon, at most 1.

    P(E) is at most e^epsilon Q(E) + delta(epsilon) for every event E and every epsilon, and the
    best epsilon is the log-likelihood ratio at which the best test of level kappa is cut: the
    minimum is its power. Any epsilon gives a bound, so an inexact minimum errs to the safe side.

    Args:
        delta: the privacy profile, epsilon -> delta, for epsilon of either sign.
        kappa: the chance of a guess.

    Raises:
        ConfigurationError: kappa outside (0, 1).
    """
    check_value("bound.kappa", kappa, Kappa)

    def power(epsilon: float) -> float:
        return math.exp(epsilon) * kappa + delta(epsilon)

    # gamma is at most 1, so that epsilon is at most ln 1 / kappa; convex in e^epsilon.
    width = (-math.log(kappa) - _LOWEST) / _STARTS
    starts = [_LOWEST + width * step for step in range(_STARTS + 1)]
    best = min(starts, key=power)
    found = minimize_scalar(power, bounds=(best - width, best + width), method="bounded")
    return min(1.0, power(best), float(found.fun))
