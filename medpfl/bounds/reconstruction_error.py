"""How far any unbiased attacker is from an image's pixels, by the Renyi privacy of the releases.

Worst case as reconstruction robustness is, in the unit of an error: it follows from how much the
releases of two images can differ that differ in one pixel alone, from black to white
(Hammersley-Chapman-Robbins). Attackers with a prior are biased, and may be nearer.
"""

from __future__ import annotations

import math

from medpfl.bounds.reconstruction_robustness import PureEpsilon
from medpfl.settings.hints import check_value
from medpfl.settings.ranges import NoiseMultiplier, Steps


def from_renyi(*, epsilon: float) -> float:
    """Return 1 / (4 (e^epsilon - 1)), the least mean squared error a pixel, pixels in [0, 1].

    Guo et al. 2022 (arXiv 2201.12383), Theorem 1, of an unbiased attacker on a mechanism with
    (2, epsilon)-Renyi privacy of one image in place of another.

    Raises:
        ConfigurationError: epsilon negative.
    """
    check_value("bound.epsilon", epsilon, PureEpsilon)
    if epsilon == 0:
        return math.inf
    return 0.25 / math.expm1(epsilon) if epsilon < 700 else 0.0


def gaussian(*, noise_multiplier: float, releases: int) -> float:
    """Return `from_renyi` of Gaussian noise on releases of everything, one image for another.

    Another image moves a release by up to 2C, so that epsilon is 4 T / sigma^2 (Mironov 2017,
    Corollary 3, at order 2).

    Args:
        noise_multiplier: sigma, the standard deviation over C.
        releases: T.

    Raises:
        ConfigurationError: a value out of range.
    """
    check_value("bound.noise_multiplier", noise_multiplier, NoiseMultiplier)
    check_value("bound.releases", releases, Steps)
    return from_renyi(epsilon=4 * releases / noise_multiplier**2)
