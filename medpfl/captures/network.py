"""From the network that a manifest names, and the tensors beside it, to what the server sent."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from medpfl.captures.fields import first_line, shown
from medpfl.captures.manifest import Manifest
from medpfl.captures.tensors import as_float32
from medpfl.errors import DataError, MedpflError
from medpfl.models.base import ModelFactory
from medpfl.models.own import factory_of
from medpfl.settings.build import require_kind
from medpfl.types import ServerPayload

_NETWORKS = "medpfl.models."
_NAMED = 3

# What a constructor raises on settings that no check had foreseen: sizes that overflow, or memory
# that is not there.
_CANNOT_BUILD = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    ImportError,
    OmegaConfBaseException,
)


@dataclass(frozen=True)
class Network:
    """A network as its manifest names it, with the numbers of its constructor.

    Args:
        model: a module on the CPU.
        parameters: names and shapes.
        buffers: names and shapes of those that a state dict holds.
        stored: all that a state dict holds, in its order; a shared parameter under both names.
    """

    model: nn.Module
    parameters: Mapping[str, tuple[int, ...]]
    buffers: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, tuple[int, ...]]

    def parts(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Split tensors into parameters and buffers; others are left out."""
        return (
            {name: tensors[name] for name in self.parameters if name in tensors},
            {name: tensors[name] for name in self.buffers if name in tensors},
        )


def build_network(
    manifest: Manifest, place: str, trusted: Collection[str] = (), most: int | None = None
) -> Network:
    """Build the network that a manifest names.

    Args:
        manifest: of the capture.
        place: the manifest, for messages.
        trusted: classes beside those of ``medpfl.models`` that may be built, ``my_package.Net``.
        most: how many numbers it may hold, or None.

    Raises:
        DataError: it cannot be built, is larger, or names a class that is not trusted.
    """
    _check_reference(manifest.model, place, trusted)
    if str(manifest.model["_target_"]).startswith(_NETWORKS):
        with torch.device("meta"):  # no memory for a network that does not fit its own tensors
            sketch = _built(manifest, place)
        _check_sizes(sketch, manifest, place)
        numbers = sum(math.prod(shape) for shape in sketch.stored.values())
        if most is not None and numbers > most:
            raise DataError(
                f"{place}: the network that it names holds {numbers:,} numbers, more than the file "
                "of what the server sent: name the model, the shape and the classes that were "
                "federated"
            )
    network = _built(manifest, place)
    _check_sizes(network, manifest, place)
    return network


def targets_of(group: object) -> Iterator[str]:
    """Yield every ``_target_`` in a group."""
    if isinstance(group, Mapping):
        if "_target_" in group:
            yield str(group["_target_"])
        for value in group.values():
            yield from targets_of(value)
    elif isinstance(group, list | tuple):
        for value in group:
            yield from targets_of(value)


def payload_of(
    manifest: Manifest, network: Network, tensors: Mapping[str, Tensor], place: str
) -> ServerPayload:
    """Return what the server sent.

    Args:
        manifest: of the capture.
        network: that it names.
        tensors: parameters and buffers, as a state dict.
        place: the tensors' file, for messages.

    Raises:
        DataError: they are not those of the network.
    """
    check_names(tensors, network.stored, place)
    # Old files lack BatchNorm's counters, which a fixed momentum never reads.
    missing = [
        name
        for name in {**network.parameters, **network.buffers}
        if name not in tensors and not name.endswith("num_batches_tracked")
    ]
    if missing:
        raise DataError(
            f"{place}: lacks {_first_few(missing)} of the network that the manifest names: save "
            "all that the server sent"
        )
    state = network.model.state_dict()
    for name in {**network.parameters, **network.buffers}:
        if name in tensors:
            state[name] = as_its_kind(tensors[name], state[name], name, place)
    network.model.load_state_dict(state)
    return ServerPayload(
        model=network.model,
        parameters={n: p.detach() for n, p in network.model.named_parameters()},
        buffers={n: b.detach() for n, b in network.model.named_buffers()},
        batch_norm=manifest.batch_norm,
    )


def check_names(
    tensors: Mapping[str, Tensor], known: Mapping[str, tuple[int, ...]], place: str
) -> None:
    """Refuse tensors that the network does not have, or has in another shape.

    Raises:
        DataError: names them.
    """
    foreign = [name for name in tensors if name not in known]
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} for {known[name]}"
        for name in tensors
        if name in known and tuple(tensors[name].shape) != known[name]
    ]
    kinds = {"unknown to it": foreign, "of another shape": misshapen}
    faults = [f"{kind}: {_first_few(names)}" for kind, names in kinds.items() if names]
    if faults:
        raise DataError(
            f"{place}: does not fit the network that the manifest names; {'; '.join(faults)}. "
            "Name the model, the classes and the channels that were federated"
        )


def as_its_kind(given: Tensor, own: Tensor, name: str, place: str) -> Tensor:
    """Return a tensor as the network's own: float32, or a counter's integers.

    Raises:
        DataError: one is a counter and the other is not.
    """
    if given.is_floating_point() != own.is_floating_point():
        kinds = ["floating-point numbers", "whole numbers"]
        is_, must = kinds if given.is_floating_point() else kinds[::-1]
        raise DataError(f"{place}: {name} holds {is_}, and the network has {must} there")
    return as_float32(given, name, place) if own.is_floating_point() else given


def _check_reference(group: Mapping[str, object], place: str, trusted: Collection[str]) -> None:
    """Refuse what would run foreign code, read other files, or look into the environment."""
    for target in targets_of(group):
        if target not in trusted and not _is_own_network(target):
            raise DataError(
                f"{place}: model names a class that is not medpfl's: {shown(target)}. Whoever "
                "wrote this file could make it run any program. If it is your own, say that you "
                "trust it"
            )
    for key, value in _leaves(group):
        if isinstance(value, str) and ("${" in value or value == "???"):
            raise DataError(f"{place}: model: {shown(value)}: write the value itself")
        if key == "weights" and value is not None:
            raise DataError(
                f"{place}: model.weights must be null: what the server sent is in the capture"
            )
        if key.startswith("_") and key != "_target_":
            raise DataError(f"{place}: model: {shown(key)} is for configurations: leave it out")


def _is_own_network(target: str) -> bool:
    module, _, name = target.rpartition(".")
    if not f"{module}.".startswith(_NETWORKS) or not all(
        p.isidentifier() for p in target.split(".")
    ):
        return False
    try:
        found = getattr(import_module(module), name, None)
    except ImportError:
        return False
    return inspect.isclass(found) and f"{found.__module__}.".startswith(_NETWORKS)


def _leaves(group: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(group, Mapping):
        for name, value in group.items():
            yield from _leaves(value, str(name))
            if isinstance(value, Mapping | list):
                yield str(name), None
    elif isinstance(group, list | tuple):
        for value in group:
            yield from _leaves(value, key)
    else:
        yield key, group


def _built(manifest: Manifest, place: str) -> Network:
    try:
        config = OmegaConf.create({"model": dict(manifest.model)})
        factory = factory_of(config.model)
        require_kind("model", factory, ModelFactory)
        model = factory.build(manifest.spec, torch.Generator().manual_seed(0))
    except MedpflError as error:
        raise DataError(f"{place}: {error}") from error
    except _CANNOT_BUILD as error:
        raise DataError(
            f"{place}: model: the network cannot be built ({first_line(error)}). Name "
            "the model, the shape and the classes that were federated"
        ) from error
    stored = model.state_dict()
    return Network(
        model,
        {name: tuple(p.shape) for name, p in model.named_parameters()},
        {name: tuple(b.shape) for name, b in model.named_buffers() if name in stored},
        {name: tuple(tensor.shape) for name, tensor in stored.items()},
    )


def _check_sizes(network: Network, manifest: Manifest, place: str) -> None:
    """Compare the network with the shapes that the manifest states, before any memory is taken."""
    known = network.stored
    for name, (shape, _) in manifest.update_tensors.items():
        if known.get(name) != shape:
            has = "has none" if name not in known else f"has {known[name]}"
            raise DataError(
                f"{place}: tensors.{name} is {shape}, and the network that the manifest names "
                f"{has}. Name the model, the classes and the channels that were federated"
            )


def _first_few(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
