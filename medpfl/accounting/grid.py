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


def loss_interval(counted: Iterable[tuple[Mechanism, int]]) -> float:
    """Return the width of a grid of privacy losses.

    Rounding adds up to a quarter of the squared width to a release's variance: the width is at
    most a fifteenth of its standard deviation (0.1 % of epsilon), unless the losses then need more
    than a million cells, or what all releases add is below 1e-4 anyway.

    Args:
        counted: each mechanism and how often it releases.
    """
    deviations, total, variance, largest = [], 0, 0.0, 0.0
    for mechanism, count in counted:
        deviation, most = _loss(mechanism)
        deviations.append(deviation)
        total, variance = total + count, variance + count * deviation**2
        largest = max(largest, most)
    finest = min(deviations) / _PER_DEVIATION
    span = 2 * _TAILS * math.sqrt(variance) + largest
    width = max(min(_FINEST, finest), min(finest, span / _CELLS))
    return max(width, span / _MOST_CELLS, _FINEST / math.sqrt(total))


def _loss(mechanism: Mechanism) -> tuple[float, float]:
    """Return an upper estimate of a loss's deviation, and about its largest value."""
    q, noise = mechanism.sample_rate, mechanism.noise_multiplier / mechanism.moves
    if mechanism.law == "laplace":
        return math.sqrt(q) / noise, sampled_loss(1 / noise, q)
    drift = 1 / (2 * noise**2)
    chi = q * math.sqrt(math.expm1(min(2 * drift, 700)))
    deviation = min(chi, math.sqrt(q) * (drift + 1 / noise))
    return deviation, sampled_loss(drift + _TAILS / noise, q)


def sampled_loss(loss: float, q: float) -> float:
    """Return log(1 + q (e^loss - 1)), the loss of a sampled release."""
    return math.log(q) + loss if loss > 700 else math.log1p(q * math.expm1(loss))
