"""Which parts of a defense an attack can match through, of one update and of a sum of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from medpfl.attacks.adaptation.noise import NoiseFacts
from medpfl.types import DefenseFacts, Observation

# What makes the sum; the attack knows of it by `Observation.aggregate`.
_MAKES_SUMS = "secure_aggregation"


def matched_through(observation: Observation) -> tuple[DefenseFacts, ...]:
    """Return the parts that an attack can match through, in the client's order, as far as known.

    In a mean over clients each part has acted on one client's update before the sum, and none can
    be undone there. Gaussian noise of one scale adds up to Gaussian noise on the mean, smaller as a
    mean of independent errors is (`Aggregate.averaging`): where it is the only part, it is known.
    """
    defense, aggregate = observation.defense or (), observation.aggregate
    if aggregate is None:
        return defense
    own = [facts for facts in defense if facts.name != _MAKES_SUMS]
    if len(own) != 1 or not isinstance(own[0], NoiseFacts):
        return ()
    noise: Any = own[0]
    if noise.law != "gaussian" or noise.relative_to is not None:
        return ()
    return (dataclasses.replace(noise, scale=noise.scale * aggregate.averaging),)
