"""What several plain values describe together: the kind of data, and how a client trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace

from medpfl.captures.fields import Fields, is_whole
from medpfl.errors import ConfigurationError, DataError
from medpfl.training import Batches, LocalTraining
from medpfl.types import DataSpec

SPEC = ("shape", "num_classes", "mean", "std", "greyscale")
MOST_IMAGES = 1_000_000
_MOST_CLASSES = 1_000_000
_MOST_PIXELS = 2**28


def data_spec(values: Mapping[str, object], place: str) -> DataSpec:
    """Return what the plain values of a `DataSpec` describe.

    Args:
        values: its fields.
        place: where they stand, for messages.

    Raises:
        DataError: one is missing, unknown, or cannot be.
    """
    data = Fields(values, place, "data.")
    data.require(SPEC)
    return spec_in(data)


def local_training_of(values: Mapping[str, object], place: str) -> LocalTraining:
    """Return what the settings of a `LocalTraining` describe; those left out are its own defaults.

    Raises:
        DataError: one is unknown, or cannot be.
    """
    defaults = asdict(LocalTraining())
    return training_in(Fields({**defaults, **values}, place, "local_training."))


def spec_in(data: Fields) -> DataSpec:
    """Return the kind of data that an object of a file describes."""
    shape = data.wholes("shape", 1, _MOST_PIXELS)
    if not 2 <= len(shape) <= 4 or math.prod(shape) > _MOST_PIXELS:
        raise data.wrong("shape", f"channels, then 1 to 3 sizes, at most {_MOST_PIXELS:,} numbers")
    mean, std = data.numbers("mean"), data.numbers("std")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != shape[0]:
            raise data.wrong(name, f"a list of {shape[0]} numbers, one a channel")
    if min(std) <= 0:
        raise data.wrong("std", "a list of positive numbers")
    return DataSpec(
        shape=shape,
        num_classes=data.whole("num_classes", 2, _MOST_CLASSES),
        mean=mean,
        std=std,
        greyscale=data.truth("greyscale"),
    )


def training_in(given: Fields) -> LocalTraining:
    """Return how a client trains, as an object of a file describes it."""
    # Clients that say nothing of it shuffle, epoch by epoch.
    given = replace(given, values={"shuffle": True, "sampling": "epochs", **given.values})
    given.require(field.name for field in fields(LocalTraining))
    settings = {key: value for key, value in given.values.items() if key != "order"}
    order = given.maybe("order", lambda key: order_in(given, key))
    try:
        return LocalTraining(**settings, order=order)  # type: ignore[arg-type]
    except ConfigurationError as error:
        said = str(error).replace("federation.local", given.above.rstrip("."))
        raise DataError(f"{given.place}: {said}") from error


def order_in(given: Fields, name: str) -> Batches:
    """Return the images of each step, as a list of lists of a file says them."""

    def is_batch(value: object) -> bool:
        return isinstance(value, list) and all(is_whole(v, 0, MOST_IMAGES) for v in value)

    batches = given.items(name, is_batch, "lists of image numbers, one list a step")
    return tuple(tuple(batch) for batch in batches)  # type: ignore[arg-type]
