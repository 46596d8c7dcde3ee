"""A model as a client receives it: its parameters, their layers, its architecture where known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from medpfl.types import ServerPayload


@dataclass(frozen=True)
class Layer:
    """A linear or convolutional layer.

    Args:
        name: of its weight.
        weight: `(K, D)`: a row for every output, with all that it looks at.
        bias: `(K,)`, or None without one.
        bias_name: its name.
        is_linear: whether the weight is a matrix, and no convolution's kernels.
        shape: of the weight itself.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    bias_name: str | None
    is_linear: bool
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """K."""
        return self.weight.shape[0]

    @property
    def inputs(self) -> int:
        """D."""
        return self.weight.shape[1]


@dataclass(frozen=True)
class Received:
    """What a client can look at before it trains.

    Args:
        parameters: `{name: P_i}` in the network's order, where the order is known.
        buffers: `{name: shape}`.
        model: the architecture, or None where there is none, as beside a file of weights.
        input_shape: ``(C, *S)`` of the client's images, or None where nobody says.
        in_order: whether the parameters' order is the network's: files keep none.
    """

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    model: nn.Module | None = None
    input_shape: tuple[int, ...] | None = None
    in_order: bool = True

    @classmethod
    def of_payload(
        cls, payload: ServerPayload, input_shape: tuple[int, ...] | None = None
    ) -> Received:
        """Return what a server has sent."""
        return cls(payload.parameters, payload.buffers, payload.model, input_shape)

    @classmethod
    def of_state(
        cls, state: Mapping[str, Tensor], input_shape: tuple[int, ...] | None = None
    ) -> Received:
        """Return what a file of weights holds; buffers are known by their names."""
        buffers = {n: t for n, t in state.items() if not t.is_floating_point() or is_statistic(n)}
        parameters = {n: t for n, t in state.items() if n not in buffers}
        return cls(parameters, buffers, None, input_shape, in_order=False)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every weight of two dimensions or more, in order; copies under a second name left out."""
        return tuple(self._layers())

    def _layers(self) -> Iterator[Layer]:
        for name, tensor in self.parameters.items():
            if tensor.dim() >= 2 and tensor.numel() and tensor.is_floating_point():
                bias = self._bias(name, tensor.shape[0])
                yield Layer(
                    name,
                    tensor.detach().reshape(tensor.shape[0], -1),
                    None if bias is None else self.parameters[bias].detach(),
                    bias,
                    tensor.dim() == 2,
                    tuple(tensor.shape),
                )

    def _bias(self, weight: str, rows: int) -> str | None:
        """Return the name of the bias that goes with a weight: the same but for one word."""
        for old, new in (("weights", "biases"), ("weight", "bias")):
            ahead, found, behind = weight.rpartition(old)
            name = f"{ahead}{new}{behind}"
            if found and name in self.parameters and self.parameters[name].shape == (rows,):
                return name
        return None


def is_statistic(name: str) -> bool:
    """Tell BatchNorm's statistics by their name."""
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
