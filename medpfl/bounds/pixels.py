"""From the pixels that an attacker does not know to the update that it sees, and back.

An update is differentiated in pixels in [0, 1] and taken in the unit in which it is sent, so that
noise on it and errors of an image have the units of the settings and of the metrics.

Derivatives exist where the network's do. A ReLU, a clipped activation or max-pooling makes the
gradient of a network jump: what the jumps say of an image is not in the Jacobian, see
`medpfl.bounds.fisher`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap
from torch.nn import functional

from medpfl.errors import ConfigurationError
from medpfl.training import (
    Forward,
    Gradient,
    LocalTraining,
    Parameters,
    UpdateMap,
    forward_of,
    mean_gradient,
)
from medpfl.types import DataSpec, ServerPayload

GramProduct = Callable[[Tensor], Tensor]
"""From rows `(m, d)` to their products with J'J, `(m, d)`."""

# Greyscale images are stored with channels that are equal to the bit; JPEG's colours are not.
_SAME = 1e-6
# Numbers of the update that are carried through one evaluation: more rows at once gain nothing.
_ENTRIES_AT_ONCE = 2_000_000
_ROWS_AT_ONCE = 64
# Numbers of a whole Jacobian that is kept, half a gigabyte; forward mode takes half the time then.
_MOST_OF_JACOBIAN = 64_000_000


@dataclass(frozen=True, kw_only=True)
class PixelMap:
    """The function from the d unknown pixels of N images to their update, in float64.

    Args:
        update_map: from images to the update in the unit of a gradient.
        forward: the network; it must take float64.
        parameters: as the server sent them.
        probabilities: `(N, K)` of the labels. They are known here: whoever has to find them, too,
            knows less, and no bound is the lower for it.
        spec: how pixels become the network's input.
        tied: whether all channels of a pixel are one unknown.
        seen: the names of the tensors that are seen; None is all.
        gradient: what each step follows.
        before: what is done to the update, in the unit in which it is sent, before noise is added.
    """

    update_map: UpdateMap
    forward: Forward
    parameters: Parameters
    probabilities: Tensor
    spec: DataSpec
    tied: bool
    seen: Collection[str] | None = None
    gradient: Gradient = mean_gradient
    before: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict

    @classmethod
    def of(
        cls,
        payload: ServerPayload,
        labels: Tensor,
        *,
        training: LocalTraining,
        spec: DataSpec,
        tied: bool,
        seen: Collection[str] | None = None,
        before: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict,
    ) -> PixelMap:
        """Return the map of a client that got `payload` and trains so on images with `labels`.

        Args:
            payload: what the server sent.
            labels: `(N,)`.
            training: what the client does; without an order, it takes its images in turn.
            spec: how pixels become the network's input.
            tied: whether all channels of a pixel are one unknown.
            seen: the names of the tensors that are seen; None is all.
            before: what is done to the update before noise is added.
        """
        buffers = {n: _double(b) for n, b in payload.buffers.items()}
        with torch.no_grad():
            parameters = {n: _double(p) for n, p in payload.parameters.items()}
            blank = next(iter(parameters.values())).new_zeros((1, *spec.shape))
            forward = forward_of(payload.network(training=False), buffers)
            classes = forward(parameters, blank).shape[1]
        if training.algorithm == "fedavg" and training.order is None:
            training = training.in_turn(len(labels))
        return cls(
            update_map=UpdateMap.of(training),
            forward=forward_of(payload.network(), buffers),
            parameters=parameters,
            probabilities=functional.one_hot(labels.to(blank.device), classes).double(),
            spec=spec,
            tied=tied,
            seen=seen,
            before=before,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, C, *S)` of the unknowns; C is 1 where the channels are tied."""
        channels = 1 if self.tied else self.spec.shape[0]
        return (len(self.probabilities), channels, *self.spec.shape[1:])

    @property
    def unknowns(self) -> int:
        """The number d of unknowns of all N images."""
        return torch.Size(self.shape).numel()

    @property
    def entries(self) -> int:
        """P, the numbers that are seen of the update."""
        return sum(p.numel() for name, p in self.parameters.items() if self._sees(name))

    def update(self, pixels: Tensor) -> Tensor:
        """Return the update `(P,)` of pixels `(d,)`, in the unit in which it is sent.

        A delta has the other sign, which no bound depends on.
        """
        images = pixels.reshape(self.shape).expand(len(self.probabilities), *self.spec.shape)
        tensors = self.update_map(
            self.forward,
            {name: _double(p) for name, p in self.parameters.items()},
            self.spec.normalise(images),
            self.probabilities.double(),
            gradient=self.gradient,
        )
        unit = self.update_map.unit
        sent = self.before({name: t * unit for name, t in tensors.items()})
        return torch.cat([t.flatten() for name, t in sent.items() if self._sees(name)])

    def pushed_at(self, inputs: Tensor) -> GramProduct:
        """Return products with J itself, from rows `(m, d)` to `(m, P)`, at some images.

        Args:
            inputs: `(N, C, *S)` in [0, 1].

        Raises:
            ConfigurationError: as `gram_at`.
        """
        pixels = self._pixels(inputs)
        split = max(1, min(_ROWS_AT_ONCE, _ENTRIES_AT_ONCE // self.entries))

        def product(rows: Tensor) -> Tensor:
            if split == 1:
                return torch.stack([_pushed(self.update, pixels, row).detach() for row in rows])
            return torch.cat(
                [
                    _pushed_side_by_side(self.update, pixels, some)
                    for some in torch.split(rows, split)
                ]
            )

        return product

    def gram_at(self, inputs: Tensor) -> GramProduct:
        """Return products with J'J, J the Jacobian of the update at some images.

        It keeps what derivatives are computed from as long as it is kept.

        Args:
            inputs: `(N, C, *S)` in [0, 1].

        Raises:
            ConfigurationError: images of another shape, channels that differ though they are tied,
                or an update that is not finite.
        """
        pixels = self._pixels(inputs)
        value, backward = vjp(self.update, pixels)[:2]
        self._check_finite(value)
        at_once = _ENTRIES_AT_ONCE // len(value)
        if at_once <= 1:
            return lambda rows: torch.stack(
                [backward(_pushed(self.update, pixels, row))[0].detach() for row in rows]
            )
        # J'u is linear in u, so that its own backward pass is u -> Ju: no forward mode is needed.
        forward = vjp(lambda u: backward(u)[0], torch.zeros_like(value))[1]
        product = vmap(lambda row: backward(forward(row)[0])[0])
        split = min(_ROWS_AT_ONCE, at_once)
        return lambda rows: torch.cat([product(some).detach() for some in torch.split(rows, split)])

    def gram_matrix(self, inputs: Tensor) -> Tensor:
        """Return J'J at some images, `(d, d)` in float64.

        Args:
            inputs: `(N, C, *S)` in [0, 1].

        Raises:
            ConfigurationError: as `gram_at`.
        """
        unit = torch.eye(self.unknowns, dtype=torch.float64, device=inputs.device)
        if self.unknowns * self.entries <= _MOST_OF_JACOBIAN:
            self._check_finite(self.update(self._pixels(inputs)))
            rows = self.pushed_at(inputs)(unit)
            return rows @ rows.T
        product = self.gram_at(inputs)(unit)
        return (product + product.T) / 2

    def _sees(self, name: str) -> bool:
        return self.seen is None or name in self.seen

    def _check_finite(self, update: Tensor) -> None:
        if not update.isfinite().all():
            raise ConfigurationError(
                "the update of these images is not finite, so that nothing bounds what it tells: "
                "choose weights or a learning rate with which the network trains"
            )

    def _pixels(self, inputs: Tensor) -> Tensor:
        expected = (len(self.probabilities), *self.spec.shape)
        if tuple(inputs.shape) != expected:
            raise ConfigurationError(
                f"images of shape {tuple(inputs.shape)}: the update is one of shape {expected}"
            )
        return unknown_pixels(inputs, tied=self.tied).flatten()


def unknown_pixels(inputs: Tensor, *, tied: bool) -> Tensor:
    """Return what is unknown of each image, in float64.

    Args:
        inputs: `(n, C, *S)` in [0, 1].
        tied: whether the channels of a pixel are one unknown.

    Returns:
        `(n, d)`.

    Raises:
        ConfigurationError: tied channels that differ.
    """
    pixels = inputs.detach().double()
    if tied:
        apart = float((pixels - pixels[:, :1]).abs().max())
        if apart > _SAME:
            raise ConfigurationError(
                f"attack.channels=tied: the channels of these images differ by up to {apart:.2g}. "
                "Choose attack.channels=free for images in colour"
            )
        pixels = pixels.mean(1)
    return pixels.flatten(1)


def _pushed_side_by_side(function: Callable[[Tensor], Tensor], at: Tensor, rows: Tensor) -> Tensor:
    pushed: Tensor = vmap(lambda row: _pushed(function, at, row))(rows)
    return pushed.detach()


def _pushed(function: Callable[[Tensor], Tensor], at: Tensor, row: Tensor) -> Tensor:
    """Return J row by forward mode: of wide convolutions, many times faster than two backwards."""
    with warnings.catch_warnings():
        # What torch compiles for its own forward mode, the first time, it calls deprecated itself.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        slope: Tensor = jvp(function, (at,), (row,))[1]
    return slope


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor
