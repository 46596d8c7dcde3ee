"""The layer that malicious servers plant: rows that look at whole images, ahead of the network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from medpfl.types import ServerPayload

# A parameter of more entries is sent in several, so that no temporary copy is as large as all.
_LARGEST = 2**27


class Rows(nn.Module):
    """Add the mean of K rows' responses to every entry: x + gain mean_k a(<w_k, x> + reach b_k).

    Every row that is on passes the same gradient back to its weights, a_i x_i of image i: what
    tells images apart is which rows they switch on.

    Args:
        entries: D of what a row looks at.
        blocks: rows of each parameter.
        gain: of the mean.
        reach: of the biases; a bias that moves in large steps against its own size loses nothing
            to the rounding of weights.
        sparse: whether a row is on where its response is between 0 and 1, and not wherever it is
            positive.
    """

    def __init__(
        self, entries: int, blocks: Sequence[int], *, gain: float, reach: float, sparse: bool
    ) -> None:
        super().__init__()
        self.gain, self.reach, self.sparse = gain, reach, sparse
        self.count = sum(blocks)
        self.weights = nn.ParameterList([torch.empty(rows, entries) for rows in blocks])
        self.biases = nn.ParameterList([torch.empty(rows) for rows in blocks])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the network behind gets, of the shape of the inputs."""
        flat = inputs.flatten(1)
        total = torch.zeros_like(flat[:, 0])
        for weight, bias in zip(self.weights, self.biases, strict=True):
            response = functional.linear(flat, weight, self.reach * bias)
            total = total + self._activation(response).sum(1)
        mean = self.gain / self.count * total
        return inputs + mean.reshape(-1, *(1,) * (inputs.ndim - 1))

    def _activation(self, response: Tensor) -> Tensor:
        return response.clamp(0, 1) if self.sparse else response.relu()


def blocks_of(rows: int, entries: int) -> tuple[int, ...]:
    """Return how many rows each parameter holds."""
    most = max(1, _LARGEST // entries)
    return tuple(min(most, rows - first) for first in range(0, rows, most))


def shape_at(payload: ServerPayload, place: str | None, shape: tuple[int, ...]) -> torch.Size:
    """Return the shape of what comes to a place of the network.

    Args:
        payload: the network.
        place: a module's name; None is ahead of the network.
        shape: `(C, *S)` of its inputs.
    """
    return features_at(payload, place, torch.zeros(1, *shape)).shape[1:]


def features_at(payload: ServerPayload, place: str | None, inputs_norm: Tensor) -> Tensor:
    """Return what comes to a place of the network, of images in its input space."""
    if place is None:
        return inputs_norm
    model, seen = payload.model, list[Tensor]()
    handle = model.get_submodule(place).register_forward_pre_hook(
        lambda module, given: seen.append(given[0])
    )
    try:
        with torch.no_grad():
            model.train(payload.training)(inputs_norm.to(_device_of(payload)))
    finally:
        handle.remove()
    return seen[0]


def planted(
    payload: ServerPayload, rows: Rows, place: str | None
) -> tuple[ServerPayload, tuple[str, ...], tuple[str, ...]]:
    """Return a payload with rows ahead of one of its modules, and their parameters' names.

    Args:
        payload: the global model; not changed, and its numbers are shared.
        rows: what is planted.
        place: a module's name; None is ahead of the whole network.
    """
    network = _sharing(payload)
    if place is None:
        model: nn.Module = nn.Sequential()
        model.add_module("rows", rows)
        model.add_module("network", network)
        inside = "rows"
    else:
        above, _, own = place.rpartition(".")
        parent = network.get_submodule(above)
        both = nn.Sequential()
        both.add_module("rows", rows)
        both.add_module("network", parent.get_submodule(own))
        parent.add_module(own, both)
        model, inside = network, f"{place}.rows"
    found = replace(
        payload,
        model=model,
        parameters={n: p.detach() for n, p in model.named_parameters()},
        buffers={n: b.detach() for n, b in model.named_buffers()},
    )
    names = range(len(rows.weights))
    return (
        found,
        tuple(f"{inside}.weights.{n}" for n in names),
        tuple(f"{inside}.biases.{n}" for n in names),
    )


def _sharing(payload: ServerPayload) -> nn.Module:
    """Copy the architecture, with the payload's own numbers."""
    kept: dict[int, Tensor] = {}
    for name, parameter in payload.model.named_parameters():
        kept[id(parameter)] = nn.Parameter(payload.parameters[name], parameter.requires_grad)
    for name, buffer in payload.model.named_buffers():
        kept[id(buffer)] = payload.buffers[name]
    return copy.deepcopy(payload.model, dict(kept))


def fill(rows: Rows, made: Callable[[int, int], tuple[Tensor, Tensor]]) -> None:
    """Set the rows' numbers, block by block.

    Args:
        rows: changed.
        made: from the first row of a block and the one after its last to weights `(k, D)`, which
            may be a view that is expanded, and biases `(k,)` as they act.
    """
    with torch.no_grad():
        for first, last, weight, bias in _blocks(rows):
            made_weight, made_bias = made(first, last)
            weight.copy_(made_weight)
            bias.copy_(made_bias / rows.reach)


def _blocks(rows: Rows) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    first = 0
    for weight, bias in zip(rows.weights, rows.biases, strict=True):
        yield first, first + len(weight), weight, bias
        first += len(weight)


def _device_of(payload: ServerPayload) -> torch.device:
    return next(iter(payload.parameters.values())).device
