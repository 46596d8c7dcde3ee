"""Invert a feature extractor that widens its input: more features than pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medpfl.optim import LBFGS

_ITERATIONS = 300
# Mean squared error of the features at which the float32 client's rounding takes over.
_SOLVED = 1e-14


def match_features(
    extractor: Callable[[Tensor], Tensor], features: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor, float]:
    """Find the input whose features are the given ones.

    Unlike a gradient, features are cheap to differentiate and do not depend on the label or the
    loss: a handful of passes through the network find the image.

    Args:
        extractor: maps `(1, C, *S)` to `(1, F)`, in float64.
        features: `(F,)` float64.
        shape: `(C, *S)`.

    Returns:
        The input `(C, *S)` in the client's input space, and the relative residual of the features.
    """
    optimizer = LBFGS(
        max_steps=_ITERATIONS,
        max_iter=1,
        max_eval=25,
        history=30,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search="strong_wolfe",
        objective_below=_SOLVED,
        on_stall="reset",
    )
    start = torch.full((1, torch.Size(shape).numel()), 0.5, dtype=features.dtype)
    state = optimizer.init(start.to(features.device))
    while bool(state.running.any()):
        point = state.z.detach().requires_grad_()
        error = extractor(point.reshape(1, *shape)).squeeze(0) - features
        value = error.square().mean()
        (gradient,) = torch.autograd.grad(value, point)
        optimizer.tell(state, value.detach().reshape(1), gradient)
    spread = features.var().clamp_min(1e-30)
    residual = float((state.best_value[0] / spread).sqrt())
    return state.best_z[0].reshape(shape), residual
