"""Invert the lowest layers of a sigmoid CNN together, where one has too many unknowns.

Strides make a network narrow at its end and wide at its start. Of a volume of 32 voxels a side the
second layer of dlg_cnn reads 49,152 numbers, and its own equations are 24,144: by itself it cannot
be inverted. But these numbers are made from 32,768 voxels. Here the voxels are the unknowns, and
what they must explain are the output of the highest of these layers, known from those above it, and
the weight gradients of all of them.

Each equation is divided by the size of what it sums, which leaves the Jacobian's singular values
within some two orders of magnitude; so Gauss-Newton steps by conjugate gradients get through, with
products of convolutions alone. Equations may still be fewer than voxels. Then two things that are
true of images decide: no voxel is blacker than black or whiter than white (the air around a patient
is black, which makes up for many equations), and energy falls with frequency (`natural`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight, conv3d_weight

from medpfl.attacks.closed_form.layerwise import (
    OPEN_INTERVAL,
    Convolution,
    carried_back,
    convolved,
    numeric_padding,
)
from medpfl.attacks.closed_form.steps import grey, likely_unknowns, outside, solve
from medpfl.attacks.determination import LEAST_DETERMINED
from medpfl.attacks.unknowns import Unknowns
from medpfl.types import DataSpec

_WEIGHT_GRADIENT = {4: conv2d_weight, 5: conv3d_weight}
# A product takes a twentieth of a second there, and the whole a minute.
_MOST_UNKNOWNS = 40_000
_PRODUCTS = 100
_DAMPING = 2e-3
# The relative residual that the rounding of a float32 client leaves at the least.
_SOLVED = 1e-6
# The sigmoid's slope at zero: how much of what a weight moves reaches the next layer, at most.
_SLOPE = 0.25
# An equation whose window is all but empty is not blown up: it holds rounding.
_LEAST_SIZE = 0.03
# The lower layers' equations bend: what they sum moves with the image, and a grey one's is taken.
_BENT = 4.0


@dataclass(frozen=True)
class Layer:
    """A convolution, its sigmoid after it, and what the client sent of it.

    Args:
        layer: the convolution.
        weight: `(C_out, C_in, *k)` float64.
        bias: `(C_out,)` float64.
        weight_gradient: as `weight`, float64.
        bias_gradient: `(C_out,)` float64.
    """

    layer: Convolution
    weight: Tensor
    bias: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor

    def before(self, inputs: Tensor) -> Tensor:
        """Return what the convolution gives before the sigmoid, `(1, C_out, *S')`."""
        return convolved(self.layer, inputs, self.weight, self.bias)

    def gradient(self, inputs: Tensor, delta: Tensor) -> Tensor:
        """Return the weight's gradient where the loss's by the convolution's output is `delta`."""
        gradient: Tensor = _WEIGHT_GRADIENT[self.weight.ndim](  # type: ignore[no-untyped-call]
            inputs,
            self.weight.shape,
            delta,
            stride=self.layer.stride,
            padding=numeric_padding(self.layer),
        )
        return gradient


@dataclass(frozen=True)
class LowerEquations:
    """What an image must explain of the lowest layers.

    Args:
        layers: in running order, the first one reads the image.
        output: `(1, C, *S)` float64, what the last of them gives after its sigmoid.
        delta: `(1, C, *S)`, the loss's gradient before that sigmoid.
        unknowns: how a vector is read as the image.
        sizes: of each layer's weight gradient, `(C_out, 1, ...)`: what its entries sum at most.
    """

    layers: Sequence[Layer]
    output: Tensor
    delta: Tensor
    unknowns: Unknowns
    sizes: Sequence[Tensor]

    @classmethod
    def of(
        cls, layers: Sequence[Layer], output: Tensor, above: Tensor, spec: DataSpec, *, tied: bool
    ) -> LowerEquations:
        """Set the equations up.

        Args:
            layers: see above.
            output: `(C, *S)` of the last layer.
            above: `(C, *S)`, the loss's gradient by `output`.
            spec: the kind of data.
            tied: whether all channels of a pixel are one unknown.
        """
        output = output.clamp(OPEN_INTERVAL, 1 - OPEN_INTERVAL).unsqueeze(0)
        delta = above.unsqueeze(0) * output * (1 - output)
        unknowns = likely_unknowns(spec, tied=tied)
        equations = cls(layers, output, delta, unknowns, ())
        _, deltas = equations._through(grey(unknowns))
        return replace(equations, sizes=equations._sizes(deltas))

    @property
    def count(self) -> int:
        """How many equations there are."""
        sent = sum(x.weight_gradient.numel() + x.bias_gradient.numel() for x in self.layers)
        return sent + self.output.numel()

    @property
    def most_determined(self) -> float:
        """The share of the unknowns that so many equations determine at most; NaN where all."""
        share = self.count / self.unknowns.count
        return share if share < 1 else math.nan

    @property
    def suit(self) -> bool:
        """Say whether the image can be found in reasonable time, and for the larger part."""
        unknowns = self.unknowns.count
        return unknowns <= _MOST_UNKNOWNS and self.count >= LEAST_DETERMINED * unknowns

    def residual(self, z: Tensor) -> Tensor:
        """Return what an image, a vector `(D,)`, leaves unexplained, `(R,)`."""
        inputs, deltas = self._through(self.unknowns.unpack(z)[0])
        return torch.cat([self._features(inputs[-1]), *self._sent(inputs, deltas)])

    @property
    def blank(self) -> float:
        """The norm of what was sent and is known, each equation divided by its size."""
        parts = [x.weight_gradient / s for x, s in zip(self.layers, self.sizes, strict=True)]
        return float(torch.cat([p.flatten() for p in parts]).norm())

    def _features(self, inputs: Tensor) -> Tensor:
        """Compare before the last sigmoid, in linear equations; its slope is their weight."""
        top = self.layers[-1]
        rows = top.weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (inputs.ndim - 2))
        slope = self.output * (1 - self.output) / (_SLOPE * rows)
        left: Tensor = (top.before(inputs) - self.output.logit()) * slope
        return left.flatten()

    def _sent(self, inputs: Sequence[Tensor], deltas: Sequence[Tensor]) -> list[Tensor]:
        left = []
        for layer, given, delta, size in zip(self.layers, inputs, deltas, self.sizes, strict=True):
            left.append(((layer.gradient(given, delta) - layer.weight_gradient) / size).flatten())
            biases = delta.flatten(2).sum(2).squeeze(0) - layer.bias_gradient
            left.append(biases / size.flatten(1).amax(1))
        return left

    def _sizes(self, deltas: Sequence[Tensor]) -> list[Tensor]:
        """Return the norms of the weight gradients' equations, `(C_out, 1, *k)` a layer."""
        inputs = [self.unknowns.spec.shape[1:], *(given.shape[2:] for given in deltas)]
        sizes = []
        for layer, delta, sides in zip(self.layers, deltas, inputs[:-1], strict=True):
            squares = delta.square()
            whole = squares.flatten(2).sum(2).reshape(-1, *[1] * (delta.ndim - 1))
            one = replace(layer, weight=layer.weight[:, :1])
            windows = one.gradient(delta.new_ones(1, 1, *sides), squares)
            least = _LEAST_SIZE**2 * whole
            bent = 1.0 if layer is self.layers[-1] else _BENT
            sizes.append(bent * torch.maximum(windows, least).clamp_min(1e-300).sqrt())
        return sizes

    def _through(self, inputs_norm: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return each layer's input, and the loss's gradient by what its convolution gives."""
        inputs = [inputs_norm]
        for layer in self.layers[:-1]:
            inputs.append(layer.before(inputs[-1]).sigmoid())
        deltas = [self.delta]
        for layer, given in zip(reversed(self.layers[1:]), reversed(inputs[1:]), strict=True):
            above = carried_back(layer.layer, layer.weight, deltas[0], given.shape[1:])
            deltas.insert(0, above * given * (1 - given))
        return inputs, deltas


def match_lower(equations: LowerEquations) -> tuple[Tensor, float]:
    """Solve the equations, from a grey image.

    Returns:
        The image `(C, *S)` in the client's input space, and the equations' relative residual.
    """
    unknowns, size = equations.unknowns, max(equations.blank, 1e-300)

    def residual(z: Tensor) -> Tensor:
        return torch.cat([equations.residual(z), outside(unknowns, z)])

    z = solve(
        residual,
        unknowns.pack(grey(unknowns), torch.empty(0)),
        products=_PRODUCTS,
        damping=_DAMPING,
        solved=(_SOLVED * size) ** 2,
    )
    image, _ = unknowns.unpack(z)
    return image[0], float(equations.residual(z).norm()) / size
