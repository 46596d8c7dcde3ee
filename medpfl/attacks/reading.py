"""An update as the attacker reads it: in the unit of a gradient, with how it came about."""

from __future__ import annotations

from dataclasses import replace

from medpfl.training import LocalTraining, UpdateMap
from medpfl.types import Observation

_UNKNOWN = LocalTraining(algorithm="fedsgd")
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
        return _UNKNOWN
    return training if training.order is not None else training.in_turn(observation.num_examples)


def clients_of(observation: Observation) -> tuple[tuple[LocalTraining, int], ...]:
    """Return what each client is taken to have done, see `training_of`, and its number of images.

    The images of several clients are numbered one client after another. Where the clients' sizes
    are withheld, or what they did, the images of all count as those of one.
    """
    aggregate, training = observation.aggregate, training_of(observation)
    if aggregate is None or aggregate.sizes is None or observation.local_training is None:
        return ((training, observation.num_examples or 1),)
    orders = aggregate.orders or (None,) * aggregate.clients
    alike = replace(training, order=None)
    return tuple(
        (alike.in_turn(size) if order is None else replace(alike, order=order), size)
        for size, order in zip(aggregate.sizes, orders, strict=True)
    )


def knows_order(observation: Observation) -> bool:
    """Say whether it is known which of its images each client takes for each of its steps."""
    training, aggregate = observation.local_training, observation.aggregate
    if training is None or not training.shuffle or training.order is not None:
        return True
    return aggregate is not None and aggregate.orders is not None


def update_map_of(observation: Observation) -> UpdateMap:
    """Return the function from the clients' images to the update, in the unit of a gradient."""
    clients = clients_of(observation)
    if len(clients) == 1:
        return UpdateMap.of(clients[0][0])
    update = UpdateMap.of_clients(*zip(*clients, strict=True))
    images = sum(size for _, size in clients)
    if update.is_one_gradient(images) and not observation.payload.training:
        return UpdateMap(lr=update.lr)  # the same mean over all images, and one pass
    return update


def expected_of(observation: Observation) -> int:
    """Return how many images a step of the client is taken to have, in the mean if it draws them.

    Raises:
        ValueError: the number of examples is withheld.
    """
    if observation.num_examples is None:
        raise ValueError("the number of examples is withheld: call ThreatModel.require first")
    return training_of(observation).expected(observation.num_examples)


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
    return update_map_of(observation).unit


def as_gradient(observation: Observation) -> Observation:
    """Return the update as the mean gradient along the client's way.

    A delta is divided by minus the learning rate and the number of steps. Where these are withheld,
    its sign alone is turned: then nothing but its direction is known.
    """
    if observation.kind == "gradient":
        return observation
    update, scale = update_map_of(observation), -unit_of(observation)
    tensors = {name: tensor / scale for name, tensor in observation.tensors.items()}
    aggregate, steps = observation.aggregate, update.unit / update.lr
    rounding = _WEIGHT_ROUNDING * steps**0.5 / abs(scale)
    if aggregate is not None:
        rounding *= aggregate.averaging
        aggregate = replace(aggregate, step=aggregate.step / abs(scale))
    return replace(
        observation,
        kind="gradient",
        tensors=tensors,
        weights_rounding=rounding,
        aggregate=aggregate,
    )
