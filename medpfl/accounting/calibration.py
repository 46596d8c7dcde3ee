"""How much noise an epsilon takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from scipy.optimize import brentq

from medpfl.accounting.epsilon import Accountant, epsilon
from medpfl.accounting.gaussian import gaussian_epsilon
from medpfl.accounting.mechanism import Mechanism
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import check_value
from medpfl.settings.ranges import Budget

_LEAST, _MOST = 1e-3, 1e6
_TOLERANCE = 1e-5  # of the multiplier's logarithm


def noise_multiplier_for(
    target_epsilon: float,
    *,
    delta: float,
    mechanism: Mechanism,
    steps: int,
    accountant: Accountant = "pld",
) -> float:
    """Return the smallest noise multiplier whose releases stay within an epsilon.

    Args:
        target_epsilon: what all releases together may cost.
        delta: the probability with which epsilon may fail.
        mechanism: one release; its own noise multiplier does not matter.
        steps: number of releases.
        accountant: see `medpfl.accounting.epsilon`.

    Returns:
        A multiplier that is at most 1e-5 of itself too large, and never too small.

    Raises:
        ConfigurationError: a value out of range, or no multiplier up to 1e6 is enough.
    """
    check_value("accounting.target_epsilon", target_epsilon, Budget)

    @lru_cache
    def excess(log_noise: float) -> float:
        noisy = replace(mechanism, noise_multiplier=_within(math.exp(log_noise)))
        spent = epsilon({noisy: steps}, delta=delta, accountant=accountant)
        return _log_over(spent, target_epsilon)

    def roughly(log_noise: float) -> float:
        mu = _central_limit(mechanism, math.exp(log_noise), steps)
        return _log_over(gaussian_epsilon(delta, mu), target_epsilon)

    start = _solve(roughly, 0.0, math.log(2))
    found = _solve(excess, start or 0.0, math.log(1.05))
    if found is None:
        raise ConfigurationError(
            f"accounting.target_epsilon={target_epsilon:g}: no noise multiplier up to {_MOST:g} "
            "reaches it; ask for a larger epsilon, or fewer releases"
        )
    return _within(math.exp(found))


def _solve(excess: Callable[[float], float], start: float, step: float) -> float | None:
    """Return the least place with no excess, to the tolerance and never below; None: nowhere.

    Args:
        excess: falls with the logarithm of the noise multiplier.
        start: where to look first.
        step: how far to go from there at first; it doubles.
    """
    low, high = math.log(_LEAST), math.log(_MOST)
    enough, width = start, step
    while excess(enough) > 0:
        if enough >= high:
            return None
        enough, width = min(enough + width, high), 2 * width
    too_little, width = enough, step
    while excess(too_little) <= 0:
        if too_little <= low:
            return low
        enough, too_little = too_little, max(too_little - width, low)
        width *= 2
    found = float(brentq(excess, too_little, enough, xtol=_TOLERANCE / 4))
    while excess(found) > 0:
        found += _TOLERANCE / 4
    return found


def _central_limit(mechanism: Mechanism, noise: float, steps: int) -> float:
    """Return mu of the Gaussian that many releases tend to: near, but no bound.

    q sqrt(T (e^(1/sigma^2) - 1)): Bu et al. 2020, "Deep learning with Gaussian differential
    privacy".
    """
    sigma, q = noise / mechanism.moves, mechanism.sample_rate
    if q == 1:
        return math.sqrt(steps) / sigma
    return q * math.sqrt(steps * math.expm1(min(1 / sigma**2, 700)))


def _log_over(spent: float, target: float) -> float:
    return math.log(max(spent, 1e-300)) - math.log(target)


def _within(noise: float) -> float:
    return min(max(noise, _LEAST), _MOST)
