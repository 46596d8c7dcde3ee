"""The gradient of every image by itself, clipped, and their sum: what DP-SGD adds its noise to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.func import vmap

from medpfl.training import Forward, Gradient, Parameters, mean_gradient

Norm = Literal["l2", "l1"]

# Bytes of gradients side by side: more images share the work of a layer, but must be kept.
_AT_ONCE_BYTES = 2**26
# Norms are rounded: what is clipped must not end above the bound.
_ROUNDING = 1e-6


def per_example_gradients(
    inner: Gradient,
    forward: Forward,
    parameters: Parameters,
    inputs_norm: Tensor,
    probabilities: Tensor,
) -> dict[str, Tensor]:
    """Return every image's own gradient, `{name: (n, *P_i)}`.

    Each is `inner` of a batch of one, so that no image has a share in another's.

    Args:
        inner: of a batch; of the mean gradient all images are computed side by side.
        forward: the network.
        parameters: `{name: P_i}`.
        inputs_norm: `(n, C, *S)`, n at least 1.
        probabilities: `(n, K)`.
    """

    def own(image: Tensor, label: Tensor) -> dict[str, Tensor]:
        return inner(forward, parameters, image[None], label[None])

    if len(inputs_norm) == 1:  # of large networks: nothing is gained side by side
        return {name: g[None] for name, g in own(inputs_norm[0], probabilities[0]).items()}
    if inner is mean_gradient:
        found: dict[str, Tensor] = vmap(own, randomness="different")(inputs_norm, probabilities)
        return found
    each = [own(image, label) for image, label in zip(inputs_norm, probabilities, strict=True)]
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def clipped_sum(
    inner: Gradient,
    forward: Forward,
    parameters: Parameters,
    inputs_norm: Tensor,
    probabilities: Tensor,
    *,
    max_norm: float,
    norm: Norm = "l2",
) -> dict[str, Tensor]:
    """Return the sum of the images' gradients, each scaled down to a largest norm, `{name: P_i}`.

    An image whose gradient is not finite adds nothing. Without images the sum is zero. Images are
    taken a few at a time, so that memory does not grow with their number.

    Args:
        inner: see `per_example_gradients`; so are the others.
        forward: the network.
        parameters: `{name: P_i}`.
        inputs_norm: `(n, C, *S)`.
        probabilities: `(n, K)`.
        max_norm: C, positive: of all tensors of an image together.
        norm: ``l2`` (Euclidean) or ``l1`` (the sum of magnitudes).
    """
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for images, labels in _chunks(parameters, inputs_norm, probabilities):
        gradients = per_example_gradients(inner, forward, parameters, images, labels)
        factors = _factors(gradients, max_norm, norm)
        kept = factors > 0
        if not bool(kept.all()):  # zero times what is not finite would be no zero
            gradients = {name: gradient[kept] for name, gradient in gradients.items()}
            factors = factors[kept]
        for name, gradient in gradients.items():
            _add(total[name], gradient, factors)
    return total


def _add(total: Tensor, gradients: Tensor, factors: Tensor) -> None:
    """Add the weighted sum of gradients to a total, in place."""
    if len(factors) == 1:  # a large network's: without a copy
        total.add_(gradients[0], alpha=float(factors))
    else:
        total.add_((factors @ gradients.flatten(1)).reshape(total.shape))


def norms_of(gradients: Parameters, norm: Norm = "l2") -> Tensor:
    """Return `(n,)` norms of every image's gradient, all tensors together.

    Args:
        gradients: `{name: (n, *P_i)}`.
        norm: see `clipped_sum`.
    """
    order = 2 if norm == "l2" else 1
    parts = [torch.linalg.vector_norm(g.flatten(1), order, dim=1) for g in gradients.values()]
    total: Tensor = torch.linalg.vector_norm(torch.stack(parts), order, dim=0)
    return total


def _factors(gradients: Parameters, max_norm: float, norm: Norm) -> Tensor:
    norms = norms_of(gradients, norm)
    factors = (max_norm * (1 - _ROUNDING) / norms).clamp(max=1)
    kept: Tensor = torch.where(norms.isfinite(), factors, 0)
    return kept


def _chunks(
    parameters: Parameters, inputs_norm: Tensor, probabilities: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    if not len(inputs_norm):
        return
    each = sum(p.numel() * p.element_size() for p in parameters.values())
    most = max(1, _AT_ONCE_BYTES // max(1, each))
    # Of equal sizes, so that none is left with an image or two.
    size = math.ceil(len(inputs_norm) / math.ceil(len(inputs_norm) / most))
    yield from zip(torch.split(inputs_norm, size), torch.split(probabilities, size), strict=True)
