"""The layer that malicious servers plant: rows that look at whole images, ahead of the network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn import functional

from medpfl._near import did_you_mean
from medpfl.errors import ConfigurationError
from medpfl.types import ServerPayload

# A parameter of more entries is sent in several, so that no temporary copy is as large as all.
_LARGEST = 2**27


class Ahead(nn.Module):
    """Measure for rows that are zero themselves: (<w, x> - e_k) s_k for each of K rows.

    Numbers that are zero move by exactly what they are told to, however little: a difference of
    float32 weights holds their gradient to the last bit. What measures is no parameter: clients do
    not train it.

    Args:
        query: w, `(D,)`.
        edges: e, `(K,)`.
        scales: s, `(K,)`.
    """

    def __init__(self, query: Tensor, edges: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("query", query)
        self.register_buffer("edges", edges)
        self.register_buffer("scales", scales)

    query: Tensor
    edges: Tensor
    scales: Tensor

    def forward(self, flat: Tensor) -> Tensor:
        """Return `(n, K)` of inputs `(n, D)`."""
        return (functional.linear(flat, self.query[None]) - self.edges) * self.scales


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
        sparse: whether a row is on where its response is between 0 and `top`, and not wherever it
            is positive.
        top: see `sparse`.
        ahead: added to the responses of all rows; None: rows measure themselves.
        clients: that have columns and biases of their own: of a client's images, `own` brings
            every entry to its columns, as convolutions whose kernels are the identity for one
            client and zero for the others. Only who is sent another `own` uses others.
    """

    own: Tensor | None

    def __init__(
        self,
        entries: int,
        blocks: Sequence[int],
        *,
        gain: float,
        reach: float,
        sparse: bool,
        top: float = 1.0,
        ahead: Ahead | None = None,
        clients: int = 1,
    ) -> None:
        super().__init__()
        self.register_buffer("own", torch.eye(clients)[0] if clients > 1 else None)
        self.ahead = ahead
        self.gain, self.reach, self.sparse, self.top = gain, reach, sparse, top
        self.count = sum(blocks)
        many = (clients,) if clients > 1 else ()
        self.weights = nn.ParameterList([torch.empty(k, clients * entries) for k in blocks])
        self.biases = nn.ParameterList([torch.empty(k, *many) for k in blocks])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the network behind gets, of the shape of the inputs."""
        flat = inputs.flatten(1)
        total = torch.zeros_like(flat[:, 0])
        blocks = [len(bias) for bias in self.biases]
        measured = [0.0] * len(blocks) if self.ahead is None else self.ahead(flat).split(blocks, 1)
        if self.own is not None:
            flat = (self.own[:, None] * flat[:, None]).flatten(1)
        for weight, bias, before in zip(self.weights, self.biases, measured, strict=True):
            at = bias if self.own is None else bias @ self.own
            response = functional.linear(flat, weight, self.reach * at) + before
            total = total + self._activation(response).sum(1)
        mean = self.gain / self.count * total
        return inputs + mean.reshape(-1, *(1,) * (inputs.ndim - 1))

    def _activation(self, response: Tensor) -> Tensor:
        return response.clamp(0, self.top) if self.sparse else response.relu()


def of_client(payload: ServerPayload, weights: str, place: int) -> ServerPayload:
    """Return what one of several clients is sent: the same, but for whose columns it uses.

    Args:
        payload: with rows for several clients.
        weights: name of a parameter of these rows.
        place: the client's, counted from 0.
    """
    name = f"{weights.rpartition('weights')[0]}own"
    own = torch.zeros_like(payload.buffers[name])
    own[place] = 1
    return replace(payload, buffers={**payload.buffers, name: own})


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
    seen = list[Tensor]()
    module = module_at(payload.network(), place)
    handle = module.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        with torch.no_grad():
            payload.forward()(payload.parameters, inputs_norm.to(_device_of(payload)))
    finally:
        handle.remove()
    if not seen or not isinstance(seen[0], Tensor):
        raise ConfigurationError(
            f"server.place={place}: nothing that rows could look at comes to this module; choose "
            "one that the network calls on its features, or null"
        )
    return seen[0]


def module_at(network: nn.Module, place: str) -> nn.Module:
    """Return a module of a network.

    Raises:
        ConfigurationError: there is none of this name.
    """
    modules: dict[str, nn.Module] = {n: module for n, module in network.named_modules() if n}
    if place not in modules:
        known = ", ".join(list(modules)[:20])
        raise ConfigurationError(
            f"server.place={place}: the network has no such module"
            f"{did_you_mean(place, modules)} Choose from {known}, or null"
        )
    return modules[place]


def loudness(payload: ServerPayload, place: str | None, inputs_norm: Tensor) -> float:
    """Return how steeply the loss changes, at most, with a number added to all features at a place.

    Over the images and all labels that they may have.

    Args:
        payload: the network.
        place: a module's name; None is ahead of the network.
        inputs_norm: `(A, C, *S)` in the network's input space.
    """
    inputs_norm = inputs_norm.to(_device_of(payload))
    forward = payload.forward(training=False)

    def logits(moved: Tensor) -> Tensor:
        if place is None:
            return forward(payload.parameters, inputs_norm + moved)
        module = module_at(payload.network(training=False), place)
        handle = module.register_forward_pre_hook(lambda module, given: (given[0] + moved,))
        try:
            return forward(payload.parameters, inputs_norm)
        finally:
            handle.remove()

    with torch.no_grad(), warnings.catch_warnings():
        # Of torch's own making: it loads its rules with a compiler that it has deprecated.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        zero = inputs_norm.new_zeros(())
        values, slopes, *_ = jvp(logits, (zero,), (torch.ones_like(zero),))
    mean = (values.softmax(1) * slopes).sum(1, keepdim=True)
    return float((mean - slopes).abs().max())


def planted(
    payload: ServerPayload, rows: Rows, place: str | None
) -> tuple[ServerPayload, tuple[str, ...], tuple[str, ...]]:
    """Return a payload with rows ahead of one of its modules, and their parameters' names.

    Args:
        payload: the global model; not changed, and its numbers are shared.
        rows: what is planted.
        place: a module's name; None is ahead of the whole network.
    """
    network, rows = _sharing(payload), rows.to(_device_of(payload))
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
        both.add_module("network", module_at(network, place))
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
