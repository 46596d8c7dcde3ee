"""The gradient-matching objective of many rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from medpfl.attacks.chain_matching import ChainMatching
from medpfl.attacks.compiled import BatchedFunction, Compiling
from medpfl.attacks.curvature import gauss_newton
from medpfl.attacks.distances import Distance, LeastSquares
from medpfl.attacks.evaluator import Evaluator, Rows
from medpfl.attacks.priors import Prior, SquaredPrior
from medpfl.attacks.unknowns import Unknowns
from medpfl.models.sigmoid_cnn import SigmoidCNN
from medpfl.optim.base import Product
from medpfl.optim.rows import RowTable
from medpfl.optim.shared_rows import SharedRows
from medpfl.training import Gradient, UpdateMap, forward_of, mean_gradient
from medpfl.types import ServerPayload

_ACTIVATIONS_AT_ONCE = 6_000_000
_BYTES_AT_ONCE = 4_000_000_000


@dataclass
class Targets(RowTable):
    """What each row must match.

    Fields:
        gradient: `(B, P)` the observed gradient, flattened over all parameters; restarts of a
            victim may share theirs.
        labels: `(B, N, K)` label probabilities; unused where labels are joint.
        parameters: `(B, P)` the row's own network; `(B, 0)` where all rows share one.
        buffers: `(B, Q)` that network's `float_buffers`; `(B, 0)` where all rows share one.
        order: `(B, T)` int64, which images the row takes for those of each step; `(B, 0)` where
            all rows take those of the update map.
    """

    gradient: Tensor | SharedRows
    labels: Tensor
    parameters: Tensor
    buffers: Tensor
    order: Tensor


class MatchingObjective:
    """Distance between the gradient of a row's dummy and the row's observed gradient, plus priors.

    Args:
        payload: the network; its parameters and buffers serve every row whose targets bring none.
        unknowns: how a row's vector is read.
        distance: the gradient distance.
        dtype: the attacker's precision.
        chunk: rows evaluated at once; more are evaluated in turn.
        names: the parameters whose updates are compared; None for all.
        update: from a row's images to its update, as the client is thought to make it; None is one
            gradient.
        gradient: what each step of it follows.
        priors: terms that are added to the distance.
        compiling: how the evaluation is compiled.
    """

    def __init__(
        self,
        *,
        payload: ServerPayload,
        unknowns: Unknowns,
        distance: Distance,
        dtype: torch.dtype,
        chunk: int,
        names: Sequence[str] | None = None,
        update: UpdateMap | None = None,
        gradient: Gradient = mean_gradient,
        priors: Sequence[Prior] = (),
        compiling: Compiling = False,
    ) -> None:
        self._model, self._update = payload.network(), update or UpdateMap()
        self._counters = {n: b for n, b in payload.buffers.items() if not b.is_floating_point()}
        self._shapes = {name: p.shape for name, p in payload.parameters.items()}
        self._names = list(self._shapes if names is None else names)
        self._shared = flatten(payload.parameters).to(dtype)
        self._buffer_shapes = {name: b.shape for name, b in float_buffers(payload).items()}
        self._shared_buffers = flatten(float_buffers(payload)).to(dtype)
        self._gradient = gradient
        self._unknowns = unknowns
        self._distance = distance
        self._chunk = chunk
        self._priors = priors
        self._compiling: Compiling = compiling
        self._chain: ChainMatching | None = None
        whole = gradient is mean_gradient and self._names == list(self._shapes)
        plain = whole and self._update.is_one_gradient(unknowns.images)
        # What is written out by hand is for pictures; volumes take the general way.
        pictures = len(unknowns.spec.shape) == 3
        if isinstance(payload.model, SigmoidCNN) and plain and pictures:
            self._chain = ChainMatching(
                model=payload.model,
                unknowns=unknowns,
                distance=distance,
                priors=priors,
                lr=self._update.lr,
                device=self._shared.device,
            )
        self._evaluators: dict[bool, Evaluator] = {}

    def __call__(self, z: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the objective `(B,)` and its gradient `(B, D)` at `(B, D)` points."""
        gradients, values = self._evaluator(targets)(z, *self._arguments(targets))
        return values, gradients

    def curvature(self, z: Tensor, targets: Targets) -> Product:
        """Return the product with the rows' Gauss-Newton Hessians at `(B, D)` points.

        Raises:
            ValueError: the distance or a prior is no sum of squares.
        """
        squared = all(isinstance(prior, SquaredPrior) for prior in self._priors)
        if not (squared and isinstance(self._distance, LeastSquares)):
            raise ValueError("only a LeastSquares distance and SquaredPriors have this curvature")
        own = not _is_shared(targets)
        rowwise = (True, True, own, own, True)
        linearise = gauss_newton(self._residual, rowwise=rowwise)
        arguments = (*self._network_arguments(targets), targets.order)

        def linearised(part: slice) -> Product:
            pairs = zip(arguments, rowwise, strict=True)
            return linearise(z[part], *(a[part] if by_row else a for a, by_row in pairs))

        return self._evaluator(targets).product(linearised, len(z))

    def _evaluator(self, targets: Targets) -> Evaluator:
        """Return what evaluates rows that share one network, or that bring their own."""
        shared = _is_shared(targets)
        if shared not in self._evaluators:
            own = None if shared else 0
            rowwise = (True, True, True, not shared, not shared)
            function: BatchedFunction = self._chain or vmap(
                grad_and_value(self._value), in_dims=(0, 0, 0, own, own, 0)
            )
            self._evaluators[shared] = Evaluator(
                function,
                rowwise=rowwise if self._chain else (*rowwise, True),
                chunk=self._chunk,
                compiling=self._compiling,
            )
        return self._evaluators[shared]

    def _arguments(self, targets: Targets) -> tuple[Rows, ...]:
        """Return what rows are evaluated with, beside their points."""
        arguments = self._network_arguments(targets)
        return arguments if self._chain else (*arguments, targets.order)

    def _network_arguments(self, targets: Targets) -> tuple[Rows, Tensor, Tensor, Tensor]:
        shared = _is_shared(targets)
        return (
            targets.gradient,
            targets.labels,
            self._shared if shared else targets.parameters,
            self._shared_buffers if shared else targets.buffers,
        )

    def _value(self, z: Tensor, observed: Tensor, *rest: Tensor) -> Tensor:
        dummy, wanted, inputs_norm = self._gradients(z, observed, *rest)
        return self._distance(dummy, wanted) + sum(
            prior(inputs_norm, self._unknowns.spec) for prior in self._priors
        )

    def _residual(self, z: Tensor, observed: Tensor, *rest: Tensor) -> Tensor:
        if not isinstance(self._distance, LeastSquares):
            raise ValueError("the distance is no sum of squares")
        dummy, wanted, inputs_norm = self._gradients(z, observed, *rest)
        spec = self._unknowns.spec
        squares = (
            p.residual(inputs_norm, spec) for p in self._priors if isinstance(p, SquaredPrior)
        )
        return torch.cat([self._distance.residual(dummy, wanted), *squares])

    def _gradients(
        self,
        z: Tensor,
        observed: Tensor,
        labels: Tensor,
        parameters: Tensor,
        buffers: Tensor,
        order: Tensor,
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return the dummy's and the observed gradient, and the dummy images `(N, C, *S)`."""
        inputs_norm, scores = self._unknowns.unpack(z)
        probabilities = labels if scores is None else scores.softmax(1)
        state = {**self._counters, **unflatten(buffers, self._buffer_shapes)}
        if self._unknowns.surrogate is not None:
            after = parameters - self._update.lr * observed
            parameters = self._unknowns.network(z, parameters, after)
        sent = unflatten(parameters, self._shapes)
        dummy = self._update(
            forward_of(self._model, state),
            sent,
            inputs_norm,
            probabilities,
            gradient=self._gradient,
            order=order if len(order) else None,
        )
        wanted = unflatten(observed, {name: self._shapes[name] for name in self._names})
        return [dummy[name] for name in self._names], list(wanted.values()), inputs_norm


def _is_shared(targets: Targets) -> bool:
    """Say whether all rows share one network."""
    return targets.parameters.shape[1] == 0


def float_buffers(payload: ServerPayload) -> dict[str, Tensor]:
    """Return the buffers that a network computes with; its counters of batches are left out."""
    return {name: b for name, b in payload.buffers.items() if b.is_floating_point()}


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return all entries in the mapping's order as one `(P,)` vector; `(0,)` of nothing."""
    parts = [t.flatten() for t in tensors.values()]
    return torch.cat(parts) if parts else torch.zeros(0)


def unflatten(vector: Tensor, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Undo `flatten`."""
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    parts = torch.split(vector, sizes)
    return {n: p.reshape(tuple(s)) for (n, s), p in zip(shapes.items(), parts, strict=True)}


def rows_at_once(
    payload: ServerPayload,
    unknowns: Unknowns,
    *,
    memory: int = 2 * _BYTES_AT_ONCE,
    steps: int = 1,
) -> int:
    """Return how many rows to evaluate together: as many as memory takes, in reason.

    On a CPU the time a row rises again once the activations of all rows leave the caches
    (measured: the 7-layer network is twice as slow a row at 64 rows as at 16).

    Args:
        payload: the network.
        unknowns: what a row consists of.
        memory: bytes for rows and their evaluation; each gets half.
        steps: of the client's; what each computes is kept for the derivative.
    """
    outputs = steps * activations(payload, unknowns)
    parameters = steps * sum(p.numel() for p in payload.parameters.values())
    # Measured on ResNet-18; float64, so that it holds in either precision.
    bytes_a_row = 8 * (4 * parameters + 6 * outputs)
    if next(iter(payload.parameters.values())).device.type == "cuda":
        return max(1, memory // 2 // bytes_a_row)
    bytes_at_once = min(memory // 2, _BYTES_AT_ONCE)
    return max(1, min(_ACTIVATIONS_AT_ONCE // outputs, bytes_at_once // bytes_a_row))


def activations(payload: ServerPayload, unknowns: Unknowns) -> int:
    """Return the number of entries, at least 1, that the layers put out for one row."""
    entries = 0

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal entries
        entries += output.numel() if isinstance(output, Tensor) else 0

    network = payload.network(training=False)
    leaves = [m for m in network.modules() if not any(m.children())]
    hooks = [m.register_forward_hook(count) for m in leaves]
    try:
        with torch.no_grad():
            device = next(iter(payload.parameters.values())).device
            images = torch.zeros(unknowns.image_shape, device=device)
            functional_call(network, {**payload.parameters, **payload.buffers}, (images,))
    finally:
        for hook in hooks:
            hook.remove()
    return max(1, entries)
