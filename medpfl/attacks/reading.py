"""An update as the attacker reads it: in the unit of a gradient, with how it came about."""

from __future__ import annotations

from dataclasses import replace

from medpfl.training import LocalTraining, UpdateMap
from medpfl.types import Observation

_ONE_GRADIENT = LocalTraining(algorithm="fedsgd")
# Each step rounds every weight by up to half a unit in its last place, 2^-24 of it or down to half
# of that; this is the root mean square.
_WEIGHT_ROUNDING = 0.385 * 2.0**-24


def training_of(observation: Observation) -> LocalTraining:
    """Return what the client is taken to have done; of what is withheld, the simplest.

    Nothing known of local training is one gradient of all images. An unknown order is that of the
    images as the attacker numbers them: in the first epoch, any order is.
    """
    training = observation.local_training
    if training is None or observation.num_examples is None:
        return _ONE_GRADIENT
    return training if training.order is not None else training.in_turn(observation.num_examples)


def update_map_of(observation: Observation) -> UpdateMap:
    """Return the function from the client's images to its update, in the unit of a gradient."""
    return UpdateMap.of(training_of(observation))


def has_size(observation: Observation) -> bool:
    """Say whether an update, in the unit of a gradient, has its size, and not its direction alone.

    Args:
        observation: as `as_gradient` returns it.
    """
    return observation.local_training is not None or observation.weights_rounding == 0


def unit_of(observation: Observation) -> float:
    """Return how much of the update, as it was sent, one unit of a gradient is; positive.

    Learning rate times steps of a delta; 1 of a gradient, and where these are withheld.
    """
    update = update_map_of(observation)
    return update.lr * update.steps


def as_gradient(observation: Observation) -> Observation:
    """Return the update as the mean gradient along the client's way.

    A delta is divided by minus the learning rate and the number of steps. Where these are withheld,
    its sign alone is turned: then nothing but its direction is known.
    """
    if observation.kind == "gradient":
        return observation
    update, scale = update_map_of(observation), -unit_of(observation)
    tensors = {name: tensor / scale for name, tensor in observation.tensors.items()}
    rounding = _WEIGHT_ROUNDING * update.steps**0.5 / abs(scale)
    return replace(observation, kind="gradient", tensors=tensors, weights_rounding=rounding)
