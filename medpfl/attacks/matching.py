"""The gradient-matching objective of many rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap

from medpfl.attacks.chain_matching import ChainMatching
from medpfl.attacks.compiled import BatchedFunction, Compiled, Compiling
from medpfl.attacks.curvature import gauss_newton
from medpfl.attacks.distances import Distance, LeastSquares
from medpfl.attacks.priors import Prior, SquaredPrior
from medpfl.attacks.unknowns import Unknowns
from medpfl.models.sigmoid_cnn import SigmoidCNN
from medpfl.optim.base import Product
from medpfl.optim.capacity import is_out_of_memory
from medpfl.optim.rows import RowTable
from medpfl.optim.shared_rows import SharedRows
from medpfl.types import ServerPayload

_ACTIVATIONS_AT_ONCE = 6_000_000
_BYTES_AT_ONCE = 4_000_000_000
# The largest block that teaches glibc anything, less its own bookkeeping.
_KEPT_BYTES = 32 * 2**20 - 2**13
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class Targets(RowTable):
    """What each row must match.

    Fields:
        gradient: `(B, P)` the observed gradient, flattened over all parameters; restarts of a
            victim may share theirs.
        labels: `(B, N, K)` label probabilities; unused where labels are joint.
        parameters: `(B, P)` the row's own network; `(B, 0)` where all rows share one.
        buffers: `(B, Q)` that network's `float_buffers`; `(B, 0)` where all rows share one.
    """

    gradient: Tensor | SharedRows
    labels: Tensor
    parameters: Tensor
    buffers: Tensor


class MatchingObjective:
    """Distance between the gradient of a row's dummy and the row's observed gradient, plus priors.

    Args:
        payload: the network; its parameters and buffers serve every row whose targets bring none.
        unknowns: how a row's vector is read.
        distance: the gradient distance.
        dtype: the attacker's precision.
        chunk: rows evaluated at once; more are evaluated in turn.
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
        priors: Sequence[Prior] = (),
        compiling: Compiling = False,
    ) -> None:
        self._model = _without_statistics(payload.model).train(payload.training)
        self._shapes = {name: p.shape for name, p in payload.parameters.items()}
        self._shared = flatten(payload.parameters).to(dtype)
        self._buffer_shapes = {name: b.shape for name, b in float_buffers(payload).items()}
        self._shared_buffers = flatten(float_buffers(payload)).to(dtype)
        self._unknowns = unknowns
        self._distance = distance
        self._chunk = chunk
        self._priors = priors
        self._compiling: Compiling = compiling
        self._chain: ChainMatching | None = None
        if isinstance(payload.model, SigmoidCNN):
            self._chain = ChainMatching(
                model=payload.model,
                unknowns=unknowns,
                distance=distance,
                priors=priors,
                device=self._shared.device,
            )
        self._batched = self._for_chunks()
        _keep_freed_memory()

    def __call__(self, z: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the objective `(B,)` and its gradient `(B, D)` at `(B, D)` points.

        Where memory runs out, fewer rows are evaluated at once from then on.
        """
        values, gradients = [], []
        first = 0
        while first < len(z):
            try:
                # Chunks as even as can be: few rows by themselves take as long as many.
                waiting = len(z) - first
                size = -(-waiting // -(-waiting // self._chunk))
                gradient, value = self._evaluate(z, targets, slice(first, first + size))
            except (RuntimeError, MemoryError) as error:
                if self._chunk == 1 or not is_out_of_memory(error):
                    raise
                self._chunk //= 2
                self._batched = self._for_chunks()
                continue
            values.append(value)
            gradients.append(gradient)
            first += len(value)
        return torch.cat(values), torch.cat(gradients)

    def curvature(self, z: Tensor, targets: Targets) -> Product:
        """Return the product with the rows' Gauss-Newton Hessians at `(B, D)` points.

        Where memory runs out, fewer products are made at once from then on.

        Raises:
            ValueError: the distance or a prior is no sum of squares.
        """
        squared = all(isinstance(prior, SquaredPrior) for prior in self._priors)
        if not (squared and isinstance(self._distance, LeastSquares)):
            raise ValueError("only a LeastSquares distance and SquaredPriors have this curvature")
        whole = self._linearised(z, targets, slice(None)) if len(z) <= self._chunk else None

        def product(vectors: Tensor) -> Tensor:
            nonlocal whole
            while True:
                try:
                    return self._products(whole, z, vectors, targets)
                except (RuntimeError, MemoryError) as error:
                    if self._chunk == 1 or not is_out_of_memory(error):
                        raise
                whole = None
                self._chunk //= 2
                self._batched = self._for_chunks()

        return product

    def _products(
        self, whole: Product | None, z: Tensor, vectors: Tensor, targets: Targets
    ) -> Tensor:
        """Multiply chunk by chunk; rows that do not fit into one are linearised again each time."""
        rows = len(z) if whole else self._chunk
        products = []
        for first in range(0, len(z), rows):
            part = slice(first, first + rows)
            product = whole or self._linearised(z, targets, part)
            pieces = torch.split(vectors[part], max(1, self._chunk // rows), dim=1)
            products.append(torch.cat([product(piece) for piece in pieces], dim=1))
        return torch.cat(products)

    def _linearised(self, z: Tensor, targets: Targets, part: slice) -> Product:
        shared = targets.parameters.shape[1] == 0
        linearise = gauss_newton(self._residual, rowwise=(True, True, not shared, not shared))
        return linearise(
            z[part],
            targets.gradient[part],
            targets.labels[part],
            self._shared if shared else targets.parameters[part],
            self._shared_buffers if shared else targets.buffers[part],
        )

    def _for_chunks(self) -> dict[bool, BatchedFunction]:
        """Return the evaluation of a chunk's rows, by whether they share one network."""
        functions: dict[bool, BatchedFunction] = {}
        for shared in (True, False):
            own = None if shared else 0
            batched: BatchedFunction = self._chain or vmap(
                grad_and_value(self._value), in_dims=(0, 0, 0, own, own)
            )
            functions[shared] = batched
            if self._compiling:
                functions[shared] = Compiled(
                    batched,
                    rowwise=(True, True, True, not shared, not shared),
                    size=self._chunk,
                    cudagraphs=self._compiling == "cudagraphs",
                )
        return functions

    def _evaluate(self, z: Tensor, targets: Targets, part: slice) -> tuple[Tensor, Tensor]:
        """Return gradients `(b, D)` and values `(b,)` of some rows."""
        shared = targets.parameters.shape[1] == 0
        gradient, value = self._batched[shared](
            z[part],
            targets.gradient[part],
            targets.labels[part],
            self._shared if shared else targets.parameters[part],
            self._shared_buffers if shared else targets.buffers[part],
        )
        return gradient, value

    def _value(
        self, z: Tensor, observed: Tensor, labels: Tensor, parameters: Tensor, buffers: Tensor
    ) -> Tensor:
        dummy, wanted, inputs_norm = self._gradients(z, observed, labels, parameters, buffers)
        return self._distance(dummy, wanted) + sum(
            prior(inputs_norm, self._unknowns.spec) for prior in self._priors
        )

    def _residual(
        self, z: Tensor, observed: Tensor, labels: Tensor, parameters: Tensor, buffers: Tensor
    ) -> Tensor:
        if not isinstance(self._distance, LeastSquares):
            raise ValueError("the distance is no sum of squares")
        dummy, wanted, inputs_norm = self._gradients(z, observed, labels, parameters, buffers)
        spec = self._unknowns.spec
        squares = (
            p.residual(inputs_norm, spec) for p in self._priors if isinstance(p, SquaredPrior)
        )
        return torch.cat([self._distance.residual(dummy, wanted), *squares])

    def _gradients(
        self, z: Tensor, observed: Tensor, labels: Tensor, parameters: Tensor, buffers: Tensor
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return the dummy's and the observed gradient, and the dummy images `(N, C, *S)`."""
        inputs_norm, scores = self._unknowns.unpack(z)
        probabilities = labels if scores is None else scores.softmax(1)
        statistics = unflatten(buffers, self._buffer_shapes)

        def loss(weights: dict[str, Tensor]) -> Tensor:
            logits = functional_call(self._model, (weights, statistics), (inputs_norm,))
            value: Tensor = -(probabilities * logits.log_softmax(1)).sum(1).mean()
            return value

        dummy: dict[str, Tensor] = grad(loss)(unflatten(parameters, self._shapes))
        wanted = unflatten(observed, self._shapes)
        return list(dummy.values()), list(wanted.values()), inputs_norm


def _keep_freed_memory() -> None:
    """Let go of a block so large that glibc's malloc from now on keeps what it is given back.

    Else it returns the memory of every larger tensor to the system, and gets it anew, page by page
    (measured: thousands of page faults an evaluation, and next to none after this).
    """
    torch.empty(_KEPT_BYTES, dtype=torch.uint8)


def float_buffers(payload: ServerPayload) -> dict[str, Tensor]:
    """Return the buffers that a network computes with; its counters of batches are left out."""
    return {name: b for name, b in payload.buffers.items() if b.is_floating_point()}


def _without_statistics(model: nn.Module) -> nn.Module:
    """Copy a network that no longer updates its running statistics.

    In train mode they do not enter the gradient, and ``vmap`` cannot update them in place. In eval
    mode the network goes on using those it is given.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, _NORMS):
            module.track_running_stats = False
    return model


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
    payload: ServerPayload, unknowns: Unknowns, *, memory: int = 2 * _BYTES_AT_ONCE
) -> int:
    """Return how many rows to evaluate together: as many as memory takes, in reason.

    On a CPU the time a row rises again once the activations of all rows leave the caches
    (measured: the 7-layer network is twice as slow a row at 64 rows as at 16).

    Args:
        payload: the network.
        unknowns: what a row consists of.
        memory: bytes for rows and their evaluation; each gets half.
    """
    outputs = activations(payload, unknowns)
    parameters = sum(p.numel() for p in payload.parameters.values())
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

    leaves = [m for m in payload.model.modules() if not any(m.children())]
    hooks = [m.register_forward_hook(count) for m in leaves]
    try:
        with torch.no_grad():
            device = next(iter(payload.parameters.values())).device
            payload.model.eval()(torch.zeros(unknowns.image_shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return max(1, entries)
