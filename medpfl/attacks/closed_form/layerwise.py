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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

# Added to the normal matrix, relative to its mean diagonal: below the client's float32 rounding.
_DAMPING = 1e-13
# Weight of the gradient equations against the forward ones. The sent gradient is exact to float32
# rounding; what the forward equations ask for carries the errors of the layers above, magnified by
# the inverse sigmoid. Measured on dlg_cnn: relative error of the image 3e-2 at weight 1, 3e-4 at
# 10, 2e-4 at 100 and above.
_GRADIENT_WEIGHT = 100.0
_REFINEMENTS = 2
_OPEN_INTERVAL = 1e-9


@dataclass(frozen=True)
class ConvolutionInverse:
    """Solves for the input of one convolution; holds what depends on the network alone.

    Args:
        layer: the convolution.
        weight: its weight, `(C_out, C_in, k, k)` float64.
        bias: its bias, `(C_out,)` float64.
        shape: `(C_in, H, W)` of its input.
        forward_normal: `(n, n)` with n = C_in H W: the normal matrix of the forward equations.
        patches: `(H W, k k, L)`: which pixel of one channel lies where in each of the L windows.
    """

    layer: nn.Conv2d
    weight: Tensor
    bias: Tensor
    shape: Sequence[int]
    forward_normal: Tensor
    patches: Tensor

    @classmethod
    def prepare(
        cls, layer: nn.Conv2d, weight: Tensor, bias: Tensor, shape: Sequence[int]
    ) -> ConvolutionInverse:
        """Compute the network's part of the equations; `shape` is that of the layer's input."""
        weight, bias = weight.double(), bias.double()
        n, pixels = torch.Size(shape).numel(), shape[1] * shape[2]
        basis = torch.eye(n, dtype=torch.float64, device=weight.device).reshape(n, *shape)
        image = functional.conv2d(basis, weight, stride=layer.stride, padding=layer.padding)
        normal = _transposed(layer, weight, image, shape).reshape(n, n)
        single = torch.eye(pixels, dtype=torch.float64, device=weight.device)
        patches = functional.unfold(
            single.reshape(pixels, 1, *shape[1:]),
            layer.kernel_size,
            padding=numeric_padding(layer),
            stride=layer.stride,
        )
        return cls(layer, weight, bias, shape, normal, patches)

    def solve(self, output: Tensor, above: Tensor, weight_gradient: Tensor) -> tuple[Tensor, float]:
        """Return the layer's input and the relative residual of its equations.

        Args:
            output: `(C_out, H', W')`: the sigmoid of what the convolution gives.
            above: `(C_out, H', W')`: gradient of the loss with respect to `output`.
            weight_gradient: `(C_out, C_in, k, k)`.
        """
        output = output.clamp(_OPEN_INTERVAL, 1 - _OPEN_INTERVAL)
        wanted_output = output.logit() - self.bias.reshape(-1, 1, 1)
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
        """Return the gradient of the loss with respect to the layer's input, `(C_in, H, W)`."""
        delta = above * output * (1 - output)
        return _transposed(self.layer, self.weight, delta.unsqueeze(0), self.shape).squeeze(0)


@dataclass(frozen=True)
class _Equations:
    """Both sets of equations for one layer and one update.

    Args:
        inverse: the layer.
        windows: `(C_out k k, H W)`: the weight-gradient equations of any one channel.
        balance: factor on these equations that gives them `_GRADIENT_WEIGHT` times the weight.
    """

    inverse: ConvolutionInverse
    windows: Tensor
    balance: float

    @classmethod
    def balanced(cls, inverse: ConvolutionInverse, delta: Tensor) -> _Equations:
        windows = torch.einsum("nkl,ol->okn", inverse.patches, delta.flatten(1)).flatten(0, 1)
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
        """Return what both sets of equations give for a layer input `(C_in, H, W)`."""
        layer, weight = self.inverse.layer, self.inverse.weight
        forward = functional.conv2d(
            inputs.unsqueeze(0), weight, stride=layer.stride, padding=layer.padding
        ).squeeze(0)
        per_channel = self.windows @ inputs.flatten(1).T  # (C_out k k, C_in)
        out, _, k, _ = weight.shape
        return forward, per_channel.reshape(out, k, k, -1).permute(0, 3, 1, 2)

    def transposed(self, forward: Tensor, backward: Tensor) -> Tensor:
        """Return the transposed equations applied to one error of each set, `(C_in, H, W)`."""
        inverse = self.inverse
        first = _transposed(inverse.layer, inverse.weight, forward.unsqueeze(0), inverse.shape)
        columns = backward.permute(0, 2, 3, 1).flatten(0, 2)
        return first.squeeze(0) + (columns.T @ self.windows).reshape(inverse.shape)


def _transposed(layer: nn.Conv2d, weight: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Apply the transposed convolution; the result has the spatial size of the layer's input."""
    size = [len(values), *shape]
    result: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
        size, weight, values, stride=layer.stride, padding=layer.padding
    )
    return result


def numeric_padding(layer: nn.Conv2d) -> tuple[int, ...]:
    """Return a convolution's padding a side; ValueError where it is given by name."""
    if isinstance(layer.padding, str):
        raise ValueError(f"padding={layer.padding} has no closed form: give it in pixels")
    return layer.padding


def _norm(*parts: Tensor) -> float:
    return float(torch.stack([p.square().sum() for p in parts]).sum().sqrt())
