"""What a manifest says of an update that is the mean over several clients."""

from __future__ import annotations

from collections import Counter

from medpfl.aggregates import Aggregate
from medpfl.captures.fields import Fields
from medpfl.captures.parts import MOST_IMAGES, order_in
from medpfl.errors import DataError
from medpfl.training import Batches, LocalTraining

_NAMES = ("clients", "step", "sizes", "orders")
_MOST_CLIENTS = 1_000_000


def aggregate_in(top: Fields, name: str) -> Aggregate:
    """Return what an object of a file says of a mean over clients.

    Raises:
        DataError: a value is missing, unknown, or cannot be.
    """
    given = top.inner(name, _NAMES)
    aggregate = Aggregate(
        clients=given.whole("clients", 1, _MOST_CLIENTS),
        step=given.number("step", 0),
        sizes=given.maybe("sizes", lambda key: given.wholes(key, 1, MOST_IMAGES)),
        orders=given.maybe("orders", lambda key: _orders(given, key)),
    )
    for key, listed in (("sizes", aggregate.sizes), ("orders", aggregate.orders)):
        if listed is not None and len(listed) != aggregate.clients:
            raise given.wrong(key, f"null, or a list of {aggregate.clients} entries, one a client")
    return aggregate


def _orders(given: Fields, name: str) -> tuple[Batches, ...]:
    def is_list(value: object) -> bool:
        return isinstance(value, list)

    orders = given.items(name, is_list, "orders as in local_training, one a client")
    place, above = given.place, f"{given.above}{name}."
    return tuple(
        order_in(Fields({f"{n}": order}, place, above), f"{n}") for n, order in enumerate(orders)
    )


def check_aggregate(
    aggregate: Aggregate, training: LocalTraining | None, count: int | None, place: str
) -> None:
    """Refuse a mean over clients that contradicts the number of images or the local training.

    Raises:
        DataError: says which.
    """
    sizes, orders = aggregate.sizes, aggregate.orders
    if sizes is not None and sum(sizes) != count:
        raise DataError(
            f"{place}: aggregate.sizes tells of {sum(sizes)} images, and num_examples of {count}"
        )
    if training is not None and training.order is not None:
        raise DataError(
            f"{place}: local_training.order is one client's: give aggregate.orders, one a client"
        )
    if orders is None:
        return
    if sizes is None or training is None:
        raise DataError(f"{place}: aggregate.orders goes with aggregate.sizes and local_training")
    for client, (order, size) in enumerate(zip(orders, sizes, strict=True)):
        check_order(training, order, size, f"aggregate.orders of client {client}", place)


def check_order(training: LocalTraining, order: Batches, count: int, name: str, place: str) -> None:
    """Refuse an order that is none of so many images under such training.

    Raises:
        DataError: says what it must be.
    """
    if training.sampling == "poisson":
        _check_samples(order, count, training.steps(count), name, place)
        return
    size, steps = min(training.batch_size or count, count), training.steps(count)
    taken = Counter(i for batch in order for i in batch)
    fits = (
        len(order) == steps
        and all(0 < len(batch) <= size for batch in order)
        and taken == dict.fromkeys(range(count), training.epochs)
    )
    if not fits:
        raise DataError(
            f"{place}: {name} must take each of the {count} images, numbered from 0, "
            f"{training.epochs} times in {steps} steps of at most {size}: that is what epochs, "
            "batch_size and num_examples say. Correct these, or give null for the order"
        )


def images_of(training: LocalTraining | None) -> int | None:
    """Return how many images an order tells of; None where it need not tell of all."""
    if training is None or training.order is None or training.sampling == "poisson":
        return None
    return len({i for batch in training.order for i in batch})


def _check_samples(order: Batches, count: int, steps: int, name: str, place: str) -> None:
    whole = all(len(set(batch)) == len(batch) and max(batch, default=0) < count for batch in order)
    if len(order) != steps or not whole:
        raise DataError(
            f"{place}: {name} must be {steps} samples of the {count} images, numbered from 0, no "
            "image twice in one: that is what epochs, batch_size and num_examples say. Correct "
            "these, or give null for the order"
        )
