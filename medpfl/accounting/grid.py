"""How finely privacy losses are told apart: as finely as one release asks, as coarsely as many do.

Losses are rounded so that epsilon can only become larger; the grid decides by how much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from medpfl.accounting.mechanism import Mechanism

_FINEST = 1e-4  # dp-accounting's own
_PER_DEVIATION = 15  # cells in a standard deviation of one release's loss
_CELLS, _MOST_CELLS = 1e5, 1e6
_TAILS = 10.0  # standard deviations; dp-accounting cuts the noise where e^-50 of it is left
_TAIL_OF_SUM = 14.0  # ln 1 / delta


def loss_interval(counted: Iterable[tuple[Mechanism, int]]) -> float:
    """Return the width of a grid of privacy losses.

    Rounding adds up to a quarter of the squared width to a release's variance: the width is at
    most a fifteenth of its standard deviation (0.1 % of epsilon), unless the losses then need more
    than a million cells.

    Args:
        counted: each mechanism and how often it releases.
    """
    deviations, span = [], 0.0
    for mechanism, count in counted:
        mean, deviation, largest = _loss(mechanism)
        deviations.append(deviation)
        span += count * mean + deviation * math.sqrt(2 * count * _TAIL_OF_SUM) + largest
    finest = min(deviations) / _PER_DEVIATION
    width = max(min(_FINEST, finest), min(finest, span / _CELLS))
    return max(width, span / _MOST_CELLS)


def _loss(mechanism: Mechanism) -> tuple[float, float, float]:
    """Return upper estimates of a loss's mean and deviation, and about its largest value."""
    q, noise = mechanism.sample_rate, mechanism.noise_multiplier / mechanism.moves
    if mechanism.law == "laplace":
        whole = 1 / noise
        return q * whole, math.sqrt(q) * whole, _sampled(whole, q)
    drift = 1 / (2 * noise**2)
    chi = q * math.sqrt(math.expm1(min(2 * drift, 700)))
    deviation = min(chi, math.sqrt(q) * (drift + 1 / noise))
    return min(chi**2 / 2, q * drift), deviation, _sampled(drift + _TAILS / noise, q)


def _sampled(loss: float, q: float) -> float:
    """Return log(1 + q (e^loss - 1)), the loss of a sampled release."""
    return math.log(q) + loss if loss > 700 else math.log1p(q * math.expm1(loss))
