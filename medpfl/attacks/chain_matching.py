"""The matching objective of a chain of convolutions and its gradient, without a recorded graph.

Let G(x) = dL/dw be the gradient that an input x leaves, and E = dD/dG that of its distance D to the
observed one. The objective then has the gradient

    d<E, G(x)>/dx = d/de [dL/dx at the parameters w + e E],    e = 0:

one forward and one backward pass through the network, each with its derivative along E (the
R-operator: Pearlmutter 1994). Below, such derivatives are called turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vjp, vmap

from medpfl.attacks.distances import Differentiated, Distance
from medpfl.attacks.priors import Prior
from medpfl.attacks.row_convolution import (
    RowConvolution,
    TransposedConvolution,
    bias_gradient,
    plus_bias,
)
from medpfl.models.sigmoid_cnn import SigmoidCNN

if TYPE_CHECKING:
    from medpfl.attacks.unknowns import Unknowns


class ChainMatching:
    """Value and gradient of the matching objective of a `SigmoidCNN`, for many rows at once.

    Args:
        model: the network.
        unknowns: how a row's vector is read.
        distance: between gradients.
        priors: terms that are added to the distance.
        lr: of the client's step, which a surrogate lies along.
        device: where rows are evaluated.
    """

    def __init__(
        self,
        *,
        model: SigmoidCNN,
        unknowns: Unknowns,
        distance: Distance,
        priors: Sequence[Prior],
        lr: float,
        device: torch.device,
    ) -> None:
        self._shapes = [p.shape for p in model.parameters()]
        self._unknowns = unknowns
        self._slope = vmap(_slope_of(distance))
        self._priors = priors
        self._lr = lr
        self._moves = unknowns.surrogate is not None
        self._convolutions: list[tuple[RowConvolution, TransposedConvolution]] = []
        height, width = unknowns.image_shape[-2:]
        for module in model.body:
            if isinstance(module, nn.Conv2d):
                convolution = _read(module)
                transposed = TransposedConvolution(
                    convolution,
                    channels=(module.out_channels, module.in_channels),
                    size=(height, width),
                    device=device,
                )
                self._convolutions.append((convolution, transposed))
                height, width = convolution.output((height, width))

    def __call__(
        self, z: Tensor, observed: Tensor, labels: Tensor, parameters: Tensor, buffers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return gradients `(B, D)` and values `(B,)`.

        Args:
            z: `(B, D)` points.
            observed: `(B, P)` gradients to match.
            labels: `(B, N, K)` probabilities; unused where labels are joint.
            parameters: `(P,)`, or `(B, P)` where every row has its own network.
            buffers: unused; the network has none.
        """

        def read(points: Tensor) -> tuple[Tensor, ...]:
            read: tuple[Tensor, ...] = vmap(self._unpack)(points, labels)
            if not self._moves:
                return read
            after = parameters - self._lr * observed
            return *read, self._unknowns.network(points, parameters, after)

        (images, probabilities, penalty, *networks), pull = vjp(read, z)[:2]
        *pairs, head = _pairs(self._tensors(networks[0] if networks else parameters))
        layers = [
            _Layer(*convolution, *own, rows=len(z), moves=self._moves)
            for convolution, own in zip(self._convolutions, pairs, strict=True)
        ]
        network = _Network(layers, *head, rows=len(z))
        dummy = network.gradient(images, probabilities)
        along, value = self._slope(dummy, self._tensors(observed))
        turns = network.turns(_pairs(along))
        bends = [network.turned_gradient()] if networks else []
        (gradient,) = pull((*turns, torch.ones_like(penalty), *bends))
        return gradient, value + penalty

    def _unpack(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a row's images, label probabilities and priors."""
        images, scores = self._unknowns.unpack(z)
        penalties = [prior(images, self._unknowns.spec) for prior in self._priors]
        penalty = torch.stack(penalties).sum() if penalties else z.new_zeros(())
        return images, labels if scores is None else scores.softmax(1), penalty

    def _tensors(self, vectors: Tensor) -> list[Tensor]:
        """Read `(..., P)` as the network's parameters."""
        parts = torch.split(vectors, [shape.numel() for shape in self._shapes], dim=-1)
        return [
            part.reshape(vectors.shape[:-1] + shape)
            for part, shape in zip(parts, self._shapes, strict=True)
        ]


class _Network:
    """The network at one evaluation of B rows of N images.

    Args:
        layers: convolutions, in running order.
        weight: `(K, F)` of the last layer, or `(B, K, F)`.
        bias: `(K,)` of the last layer, or `(B, K)`.
        rows: B.
    """

    def __init__(self, layers: list[_Layer], weight: Tensor, bias: Tensor, rows: int) -> None:
        self._layers = layers
        self._weight = weight
        self._bias = bias
        self._rows = rows

    def gradient(self, images: Tensor, probabilities: Tensor) -> list[Tensor]:
        """Return the loss's gradients by parameter `(B, ...)`.

        Args:
            images: `(B, N, C, H, W)`.
            probabilities: `(B, N, K)` of the labels.
        """
        signal = images.flatten(0, 1)
        for layer in self._layers:
            signal = layer.forward(signal)
        self._features = self._by_image(signal)
        logits = self._features @ self._weight.mT + self._bias.unsqueeze(-2)
        self._predicted = logits.softmax(-1)
        self._error = (self._predicted - probabilities) / images.shape[1]
        gradients = [self._error.mT @ self._features, self._error.sum(1)]
        back = (self._error @ self._weight).view_as(signal)
        for layer in reversed(self._layers):
            gradients = [*layer.backward(back), *gradients]
            if layer is not self._layers[0]:
                back = layer.below()
        return gradients

    def turns(self, along: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the turns of the loss's gradients by images and by label probabilities.

        Args:
            along: E by layer: of its weight and of its bias.
        """
        *steps, (weight, bias) = along
        (kernel, kernel_bias), *others = steps
        first, *later = self._layers
        signal = first.turned_forward(kernel, kernel_bias)
        for layer, (kernel, kernel_bias) in zip(later, others, strict=True):
            signal = layer.turned_forward(kernel, kernel_bias, signal)
        self._turned_features = self._by_image(signal)
        logits = self._features @ weight.mT + bias.unsqueeze(-2)
        logits += self._turned_features @ self._weight.mT
        images = logits.shape[1]
        mean = (self._predicted * logits).sum(-1, keepdim=True)
        self._turned_error = error = self._predicted * (logits - mean) / images
        back = (error @ self._weight + self._error @ weight).view_as(signal)
        for layer, (kernel, _) in zip(reversed(self._layers), reversed(steps), strict=True):
            back = layer.turned_backward(kernel, back)
        return back.reshape(self._rows, images, *back.shape[1:]), -logits / images

    def turned_gradient(self) -> Tensor:
        """Return the turns of the loss's gradients by parameter, flattened: `(B, P)`.

        Of a moving network, once its other turns are known.
        """
        weight = self._turned_error.mT @ self._features + self._error.mT @ self._turned_features
        turns = [turn for layer in self._layers for turn in layer.turned_gradient()]
        turns += [weight, self._turned_error.sum(1)]
        return torch.cat([turn.flatten(1) for turn in turns], dim=1)

    def _by_image(self, signal: Tensor) -> Tensor:
        """Return the last layer's inputs `(B, N, F)`."""
        return signal.flatten(1).view(self._rows, -1, signal[0].numel())


class _Layer:
    """A convolution and its sigmoid a at one evaluation of R pictures in B rows.

    Args:
        convolution: before the sigmoid.
        transposed: its transpose.
        kernel: `(O, C, k, k)`, or `(B, O, C, k, k)`.
        bias: `(O,)`, or `(B, O)`.
        rows: B.
        moves: whether turns by kernel and bias are asked for, too.
    """

    def __init__(
        self,
        convolution: RowConvolution,
        transposed: TransposedConvolution,
        kernel: Tensor,
        bias: Tensor,
        *,
        rows: int,
        moves: bool,
    ) -> None:
        self._convolution = convolution
        self._transposed = transposed
        self._lines = convolution.lines(kernel)
        self._transposed_lines = transposed.lines(kernel)
        self._bias = bias
        self._rows = rows
        self._moves = moves
        self._turned_strips: Tensor | None = None

    def forward(self, pictures: Tensor) -> Tensor:
        """Return a `(R, O, H', W')` for `(R, C, H, W)`."""
        self._strips = self._convolution.strips(pictures)
        before = self._convolution((self._strips, self._lines))
        self._output = plus_bias(before, self._bias).sigmoid_()
        self._slope = torch.addcmul(self._output, self._output, self._output, value=-1)
        return self._output

    def backward(self, above: Tensor) -> list[Tensor]:
        """Take the loss's gradient by a; return those by kernel and bias."""
        self._delta = self._slope * above
        kernel = self._convolution.kernel_gradient(self._strips, self._delta, self._rows)
        return [kernel, bias_gradient(self._delta, self._rows)]

    def below(self) -> Tensor:
        """Return the loss's gradient by the pictures."""
        return self._transposed((self._delta, self._transposed_lines))

    def turned_forward(self, kernel: Tensor, bias: Tensor, below: Tensor | None = None) -> Tensor:
        """Return the turn of a for those of the kernels, biases and pictures (None: zero)."""
        terms = [(self._strips, self._convolution.lines(kernel))]
        if below is not None:
            strips = self._convolution.strips(below)
            terms.append((strips, self._lines))
            self._turned_strips = strips if self._moves else None
        before = plus_bias(self._convolution(*terms), bias)
        turn = self._slope * before
        # Times delta: what the turn of the slope adds to that of delta.
        self._bend = before.addcmul_(before, self._output, value=-2)
        return turn

    def turned_backward(self, kernel: Tensor, above: Tensor) -> Tensor:
        """Return the turn of `below` for those of the kernels and of the gradient by a."""
        delta = torch.addcmul(self._slope * above, self._delta, self._bend)
        if self._moves:
            self._turned_delta = delta
        lines = self._transposed.lines(kernel)
        return self._transposed((delta, self._transposed_lines), (self._delta, lines))

    def turned_gradient(self) -> tuple[Tensor, Tensor]:
        """Return the turns of the loss's gradients by kernel and bias, of a layer that moves."""
        turn, gradient = self._turned_delta, self._convolution.kernel_gradient
        kernel = gradient(self._strips, turn, self._rows)
        if self._turned_strips is not None:
            kernel = kernel + gradient(self._turned_strips, self._delta, self._rows)
        return kernel, bias_gradient(turn, self._rows)


def _slope_of(distance: Distance) -> Callable[..., tuple[list[Tensor], Tensor]]:
    return distance.slope if isinstance(distance, Differentiated) else grad_and_value(distance)


def _read(module: nn.Conv2d) -> RowConvolution:
    rows, columns = (int(p) for p in module.padding)
    return RowConvolution(module.kernel_size[0], module.stride[0], (columns, columns, rows, rows))


def _pairs(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return weights with their biases."""
    return list(zip(tensors[::2], tensors[1::2], strict=True))
