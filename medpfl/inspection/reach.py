"""How loud a layer's biases act: its code may multiply them by a number that no weight tells.

A server that keeps thresholds small in the file, and large in the code that it sends with it, hides
how far they spread. With the architecture at hand, a client can tell: adding s to every bias of a
layer and adding t x to every row of its weights, x being the layer's input, move all responses by
s and by t |x|^2, and so whatever comes out in that proportion, for a plain layer.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from medpfl.inspection.received import Layer, Received

PLAIN = 1.0
_PROBES = 8


def reach_of(received: Received, layer: Layer) -> float:
    """Return what a linear layer's biases are multiplied by; 1 where it cannot be told.

    Args:
        received: the model.
        layer: one of its layers.
    """
    model, shape = received.model, received.input_shape
    if model is None or shape is None or layer.bias_name is None or not layer.is_linear:
        return PLAIN
    was_training = model.training
    model.eval()
    try:
        for number in range(_PROBES):
            found = _reach(received, model, layer, _probe(number, shape, layer.weight.device))
            if found is not None:
                return found
    except (NotImplementedError, RuntimeError):  # of layers without a forward derivative
        return PLAIN
    finally:
        model.train(was_training)
    return PLAIN


def _probe(number: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return pixels as they are, or as they are normalised: some row must be on for them."""
    stream = torch.Generator().manual_seed(number)
    pixels = torch.rand(1, *shape, generator=stream).to(device)
    return pixels if number % 2 == 0 else (pixels - 0.5) * 12**0.5


def _reach(received: Received, model: nn.Module, layer: Layer, probe: Tensor) -> float | None:
    inputs = _input_of(_owner(model, layer.name), model, received, probe)
    if inputs is None or inputs.numel() != layer.inputs:
        return None
    row = inputs.reshape(1, -1).expand_as(layer.weight)
    by_bias = _moved(model, received, layer, probe, None)
    by_rows = _moved(model, received, layer, probe, row)
    size = float(by_rows.square().sum())
    if not size:
        return None
    found = float((by_bias * by_rows).sum()) / size * float(inputs.square().sum())
    return found if math.isfinite(found) and found > 0 else None


def _owner(model: nn.Module, weight: str) -> nn.Module:
    """Return the module that computes with a weight: lists of parameters do not."""
    path = weight.rpartition(".")[0]
    while isinstance(model.get_submodule(path), nn.ParameterList | nn.ParameterDict):
        path = path.rpartition(".")[0]
    return model.get_submodule(path)


def _input_of(
    owner: nn.Module, model: nn.Module, received: Received, probe: Tensor
) -> Tensor | None:
    seen: list[Tensor] = []
    handle = owner.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        with torch.no_grad():
            functional_call(model, _state(received), (probe,))
    finally:
        handle.remove()
    return seen[0].detach() if seen else None


def _moved(
    model: nn.Module, received: Received, layer: Layer, probe: Tensor, rows: Tensor | None
) -> Tensor:
    """Return how the output moves with the biases, or with the rows where these are given."""
    moving = layer.bias_name if rows is None else layer.name
    start = received.parameters[str(moving)].detach()
    along = torch.ones_like(start) if rows is None else rows.reshape(start.shape)

    def output(tensor: Tensor) -> Tensor:
        found: Tensor = functional_call(model, {**_state(received), str(moving): tensor}, (probe,))
        return found

    with warnings.catch_warnings():
        # torch loads its forward derivatives by a way that it has itself given up
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        moved: Tensor = jvp(output, (start,), (along,))[1]
    return moved


def _state(received: Received) -> dict[str, Tensor]:
    tensors = {**received.parameters, **received.buffers}
    return {name: tensor.detach() for name, tensor in tensors.items()}
