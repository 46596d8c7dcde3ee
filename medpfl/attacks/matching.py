"""The gradient-matching objective of many rows, and the unknowns it is a function of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap

from medpfl.attacks.distances import Distance
from medpfl.optim.rows import RowTable
from medpfl.types import DataSpec, ServerPayload

_ACTIVATIONS_AT_ONCE = 6_000_000


@dataclass(frozen=True)
class Unknowns:
    """How a row's vector of D unknowns is read: N images, then, if joint, N x K label scores.

    Args:
        spec: the kind of data.
        images: N.
        classes: K, the network's outputs (more than the data's classes for an ImageNet head).
        joint_labels: whether the labels are unknowns, too.
    """

    spec: DataSpec
    images: int
    classes: int
    joint_labels: bool

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(N, C, *S)`."""
        return (self.images, *self.spec.shape)

    @property
    def label_shape(self) -> tuple[int, int]:
        """`(N, K)`."""
        return (self.images, self.classes)

    def pack(self, images: Tensor, scores: Tensor) -> Tensor:
        """Return the `(D,)` vector of images and, if joint, label scores."""
        return (
            torch.cat([images.flatten(), scores.flatten()])
            if self.joint_labels
            else images.flatten()
        )

    def unpack(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images `(N, C, *S)` in input space and label scores `(N, K)` or None."""
        count = torch.Size(self.image_shape).numel()
        scores = z[count:].reshape(self.label_shape) if self.joint_labels else None
        return z[:count].reshape(self.image_shape), scores


@dataclass
class Targets(RowTable):
    """What each row must match.

    Fields:
        gradient: `(B, P)` the observed gradient, flattened over all parameters.
        labels: `(B, N, K)` label probabilities; unused where labels are joint.
        parameters: `(B, P)` the row's own network; `(B, 0)` where all rows share one.
    """

    gradient: Tensor
    labels: Tensor
    parameters: Tensor


class MatchingObjective:
    """Distance between the gradient of a row's dummy and the row's observed gradient.

    Args:
        payload: the network; its parameters serve every row whose targets bring none.
        unknowns: how a row's vector is read.
        distance: the gradient distance.
        dtype: the attacker's precision.
        chunk: rows evaluated at once; more are evaluated in turn.
    """

    def __init__(
        self,
        *,
        payload: ServerPayload,
        unknowns: Unknowns,
        distance: Distance,
        dtype: torch.dtype,
        chunk: int,
    ) -> None:
        self._model = payload.model.train(payload.training)
        self._shapes = {name: p.shape for name, p in payload.parameters.items()}
        self._shared = flatten(payload.parameters).to(dtype)
        self._buffers = {
            name: b.to(dtype) if b.is_floating_point() else b for name, b in payload.buffers.items()
        }
        self._unknowns = unknowns
        self._distance = distance
        self._chunk = chunk
        self._row = grad_and_value(self._value)

    def __call__(self, z: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the objective `(B,)` and its gradient `(B, D)` at `(B, D)` points."""
        shared = targets.parameters.shape[1] == 0
        batched = vmap(self._row, in_dims=(0, 0, 0, None if shared else 0))
        values, gradients = [], []
        for first in range(0, len(z), self._chunk):
            part = slice(first, first + self._chunk)
            parameters = self._shared if shared else targets.parameters[part]
            gradient, value = batched(
                z[part], targets.gradient[part], targets.labels[part], parameters
            )
            values.append(value)
            gradients.append(gradient)
        return torch.cat(values), torch.cat(gradients)

    def _value(self, z: Tensor, observed: Tensor, labels: Tensor, parameters: Tensor) -> Tensor:
        inputs_norm, scores = self._unknowns.unpack(z)
        probabilities = labels if scores is None else scores.softmax(1)

        def loss(weights: dict[str, Tensor]) -> Tensor:
            logits = functional_call(self._model, (weights, self._buffers), (inputs_norm,))
            value: Tensor = -(probabilities * logits.log_softmax(1)).sum(1).mean()
            return value

        dummy: dict[str, Tensor] = grad(loss)(unflatten(parameters, self._shapes))
        wanted = unflatten(observed, self._shapes)
        value: Tensor = self._distance(list(dummy.values()), list(wanted.values()))
        return value


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return all entries in the mapping's order as one `(P,)` vector; `(0,)` of nothing."""
    parts = [t.flatten() for t in tensors.values()]
    return torch.cat(parts) if parts else torch.zeros(0)


def unflatten(vector: Tensor, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Undo `flatten`."""
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    parts = torch.split(vector, sizes)
    return {n: p.reshape(tuple(s)) for (n, s), p in zip(shapes.items(), parts, strict=True)}


def rows_at_once(payload: ServerPayload, unknowns: Unknowns) -> int:
    """Return how many rows to evaluate together, so that their activations stay near the cache.

    On a CPU the time a row rises again once the activations of all rows leave the caches
    (measured: the 7-layer network is twice as slow a row at 64 rows as at 16).
    """
    entries = 0

    def count(module: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal entries
        entries += output.numel()

    leaves = [m for m in payload.model.modules() if not any(m.children())]
    hooks = [m.register_forward_hook(count) for m in leaves]
    try:
        with torch.no_grad():
            device = next(iter(payload.parameters.values())).device
            payload.model.eval()(torch.zeros(unknowns.image_shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return max(1, _ACTIVATIONS_AT_ONCE // max(1, entries))
