"""Invert a sigmoid CNN layer by layer, from the last to the first (R-GAP: Zhu and Blaschko 2021).

Let a be the input of a convolution, W its weights, u what it gives before the sigmoid, and d the
gradient of the loss with respect to u. Once the layer above is inverted, u and d are known, and a
is the solution of two sets of *linear* equations:

    conv(a, W) = u - bias              the forward pass,
    d correlated with a = dL/dW        the weight gradient that the client sent.

The first set has a matrix that depends on the network alone. In the second, every channel of a has
the same matrix, so its normal matrix is one block, repeated. Both are small enough for a Cholesky
factorisation in float64; the image falls out of the first layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv3d_input

# Added to the normal matrix, relative to its mean diagonal: below the client's float32 rounding.
_DAMPING = 1e-13
# Weight of the gradient equations against the forward ones. The sent gradient is exact to float32
# rounding; what the forward equations ask for carries the errors of the layers above, magnified by
# the inverse sigmoid. Measured on dlg_cnn: relative error of the image 3e-2 at weight 1, 3e-4 at
# 10, 2e-4 at 100 and above.
_GRADIENT_WEIGHT = 100.0
_REFINEMENTS = 2
# By the axes of a weight, two more than those of an image.
_CONVOLVE = {4: functional.conv2d, 5: functional.conv3d}
_PLACE = {4: functional.conv_transpose2d, 5: functional.conv_transpose3d}
_CARRY_BACK = {4: conv2d_input, 5: conv3d_input}
OPEN_INTERVAL = 1e-9
"""How far from 0 and 1 the outputs of a sigmoid are taken for."""


Convolution = nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class ConvolutionInverse:
    """Solves for the input of one convolution; holds what depends on the network alone.

    Args:
        layer: the convolution.
        weight: its weight, `(C_out, C_in, *k)` float64.
        bias: its bias, `(C_out,)` float64.
        shape: `(C_in, *S)` of its input.
        forward_normal: `(n, n)`, n the input's entries: the normal matrix of the forward equations.
    """

    layer: Convolution
    weight: Tensor
    bias: Tensor
    shape: Sequence[int]
    forward_normal: Tensor

    @classmethod
    def prepare(
        cls, layer: Convolution, weight: Tensor, bias: Tensor, shape: Sequence[int]
    ) -> ConvolutionInverse:
        """Compute the network's part of the equations; `shape` is that of the layer's input."""
        weight, bias = weight.double(), bias.double()
        matrix = convolution_matrix(layer, weight, shape)
        return cls(layer, weight, bias, shape, matrix.T @ matrix)

    def windows(self, delta: Tensor) -> Tensor:
        """Return the weight-gradient equations of any one input channel, `(C_out k.., pixels)`.

        Row (o, j) holds, where pixel p lies at place j of a window, what `delta` `(C_out, *S')`
        has for output channel o of that window.
        """
        kernel, sides = self.weight.shape[2:], self.shape[1:]
        places = kernel.numel()
        at = torch.eye(places, dtype=delta.dtype, device=delta.device).reshape(1, places, *kernel)
        padding, axes = numeric_padding(self.layer), range(len(kernel))
        spans = [
            (delta.shape[1 + a] - 1) * self.layer.stride[a] - 2 * padding[a] + kernel[a]
            for a in axes
        ]
        placed = _PLACE[self.weight.ndim](
            delta.unsqueeze(1),
            at,
            stride=self.layer.stride,
            padding=padding,
            output_padding=[side - span for side, span in zip(sides, spans, strict=True)],
        )
        return placed.flatten(2).flatten(0, 1)

    def solve(self, output: Tensor, above: Tensor, weight_gradient: Tensor) -> tuple[Tensor, float]:
        """Return the layer's input and the relative residual of its equations.

        Args:
            output: `(C_out, *S')`: the sigmoid of what the convolution gives.
            above: `(C_out, *S')`: gradient of the loss with respect to `output`.
            weight_gradient: `(C_out, C_in, *k)`.
        """
        output = output.clamp(OPEN_INTERVAL, 1 - OPEN_INTERVAL)
        wanted_output = output.logit() - self.bias.reshape(-1, *[1] * (output.ndim - 1))
        delta = above * output * (1 - output)
        system = _Equations.balanced(self, delta)
        wanted = (wanted_output, weight_gradient.double() * system.balance)
        factor = system.factor()
        solution = torch.zeros(self.shape, dtype=torch.float64, device=delta.device)
        for _ in range(1 + _REFINEMENTS):
            error = tuple(w - a for w, a in zip(wanted, system.apply(solution), strict=True))
            right = system.transposed(*error).reshape(-1, 1)
            solution = solution + torch.cholesky_solve(right, factor).reshape(self.shape)
        error = tuple(w - a for w, a in zip(wanted, system.apply(solution), strict=True))
        return solution, _norm(*error) / max(_norm(*wanted), 1e-300)

    def gradient_below(self, output: Tensor, above: Tensor) -> Tensor:
        """Return the gradient of the loss with respect to the layer's input, `(C_in, *S)`."""
        delta = above * output * (1 - output)
        return carried_back(self.layer, self.weight, delta.unsqueeze(0), self.shape).squeeze(0)


@dataclass(frozen=True)
class _Equations:
    """Both sets of equations for one layer and one update.

    Args:
        inverse: the layer.
        windows: `(C_out k.., pixels)`: the weight-gradient equations of any one channel.
        balance: factor on these equations that gives them `_GRADIENT_WEIGHT` times the weight.
    """

    inverse: ConvolutionInverse
    windows: Tensor
    balance: float

    @classmethod
    def balanced(cls, inverse: ConvolutionInverse, delta: Tensor) -> _Equations:
        windows = inverse.windows(delta)
        forward = inverse.forward_normal.diagonal().sum()
        backward = windows.square().sum() * inverse.shape[0]
        balance = _GRADIENT_WEIGHT * float((forward / backward.clamp_min(1e-300)).sqrt())
        return cls(inverse, windows * balance, balance)

    def factor(self) -> Tensor:
        """Return the Cholesky factor of the normal matrix, `(n, n)`."""
        normal = self.inverse.forward_normal.clone()
        block, pixels = self.windows.T @ self.windows, self.windows.shape[1]
        for first in range(0, len(normal), pixels):
            normal[first : first + pixels, first : first + pixels] += block
        diagonal = normal.diagonal()
        diagonal += _DAMPING * diagonal.mean()
        factor: Tensor = torch.linalg.cholesky(normal)
        return factor

    def apply(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what both sets of equations give for a layer input `(C_in, *S)`."""
        layer, weight = self.inverse.layer, self.inverse.weight
        forward = convolved(layer, inputs.unsqueeze(0), weight).squeeze(0)
        per_channel = self.windows @ inputs.flatten(1).T  # (C_out k.., C_in)
        return forward, per_channel.reshape(len(weight), *weight.shape[2:], -1).movedim(-1, 1)

    def transposed(self, forward: Tensor, backward: Tensor) -> Tensor:
        """Return the transposed equations applied to one error of each set, `(C_in, *S)`."""
        inverse = self.inverse
        first = carried_back(inverse.layer, inverse.weight, forward.unsqueeze(0), inverse.shape)
        columns = backward.movedim(1, -1).flatten(0, -2)
        return first.squeeze(0) + (columns.T @ self.windows).reshape(inverse.shape)


def convolved(
    layer: Convolution, inputs: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return what a convolution of other numbers gives, `(N, C_out, *S')` for `(N, C_in, *S)`."""
    convolve = _CONVOLVE[weight.ndim]
    return convolve(inputs, weight, bias, stride=layer.stride, padding=layer.padding)


def stands_alone(
    layer: Convolution, inputs: Sequence[int], outputs: Sequence[int], *, most: int
) -> bool:
    """Say whether a layer has equations enough for its input, and no more unknowns than `most`.

    Args:
        layer: the convolution.
        inputs: `(C_in, *S)`.
        outputs: `(C_out, *S')`.
        most: unknowns.
    """
    unknowns, pixels = math.prod(inputs), math.prod(inputs[1:])
    of_gradient = min(pixels, outputs[0] * math.prod(layer.kernel_size)) * inputs[0]
    return unknowns <= min(most, math.prod(outputs) + of_gradient)


def convolution_matrix(layer: Convolution, weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a convolution without its bias as a matrix, `(C_out S', C_in S)`.

    Written down entry by entry: to convolve one unit image after another takes ten times as long.

    Args:
        layer: the convolution.
        weight: its weight, `(C_out, C_in, *k)`.
        shape: `(C_in, *S)` of its input.
    """
    kernel, sides, padding = weight.shape[2:], shape[1:], numeric_padding(layer)
    places = [
        (side + 2 * p - k) // step + 1
        for side, p, k, step in zip(sides, padding, kernel, layer.stride, strict=True)
    ]
    outputs, inputs = math.prod(places), math.prod(sides)
    matrix = weight.new_zeros(len(weight), outputs, weight.shape[1], inputs)
    numbers = torch.arange(outputs).reshape(places), torch.arange(inputs).reshape(list(sides))
    for place, at in enumerate(itertools.product(*map(range, kernel))):
        spans = [
            _reached(*axis) for axis in zip(at, padding, layer.stride, places, sides, strict=True)
        ]
        rows, columns = (
            number[tuple(span[end] for span in spans)].flatten()
            for end, number in enumerate(numbers)
        )
        # Advanced indices that are apart come first: one entry a pair of places.
        matrix[:, rows, :, columns] = weight.flatten(2)[:, :, place]
    return matrix.reshape(len(weight) * outputs, -1)


def _reached(at: int, padding: int, step: int, places: int, side: int) -> tuple[slice, slice]:
    """Return which windows have place `at` of theirs inside the image along an axis, and where."""
    first = max(0, -((at - padding) // step))
    last = min(places, (side - 1 + padding - at) // step + 1)
    begin = first * step + at - padding
    return slice(first, last), slice(begin, begin + max(0, last - first) * step, step)


def carried_back(
    layer: Convolution, weight: Tensor, values: Tensor, shape: Sequence[int]
) -> Tensor:
    """Apply the transposed convolution; the result has the spatial size of the layer's input.

    Args:
        layer: the convolution.
        weight: its weight.
        values: `(N, C_out, *S')`.
        shape: `(C_in, *S)`.
    """
    size = [len(values), *shape]
    carry_back = _CARRY_BACK[weight.ndim]
    result: Tensor = carry_back(  # type: ignore[no-untyped-call]
        size, weight, values, stride=layer.stride, padding=layer.padding
    )
    return result


def numeric_padding(layer: Convolution) -> tuple[int, ...]:
    """Return a convolution's padding a side; ValueError where it is given by name."""
    if isinstance(layer.padding, str):
        raise ValueError(f"padding={layer.padding} has no closed form: give it in pixels")
    return layer.padding


def _norm(*parts: Tensor) -> float:
    return float(torch.stack([p.square().sum() for p in parts]).sum().sqrt())
