"""Damped Newton steps of many rows: solutions h of (H + damping I) h = -g, row by row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medpfl.optim.base import Product

Multiply = Callable[[Tensor], Tensor]


def of_one_vector(product: Product) -> Multiply:
    """Return the product with one vector a row, `(b, D)`, of one with several."""
    return lambda vectors: product(vectors.unsqueeze(1)).squeeze(1)


def factorised(
    hessians: Tensor, rows: Tensor, gradient: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve by Cholesky factorisation, one row at a time for the sake of memory.

    Args:
        hessians: `(B, D, D)`, positive semidefinite; only lower triangles are read.
        rows: `(b,)` int64, the rows to solve for.
        gradient: `(b, D)` of those.
        damping: `(b,)` of those, positive.

    Returns:
        The steps `(b, D)` and the dampings `(b,)` they took: raised tenfold as often as rounding
        left a matrix indefinite. A matrix that is not finite has a step that is not.
    """
    steps, taken = [], []
    for row, g, mu in zip(rows, gradient, damping, strict=True):
        while True:
            matrix = hessians[row].clone()
            matrix.diagonal().add_(mu)
            factor, fault = torch.linalg.cholesky_ex(matrix)
            if not bool(fault) or not bool(matrix.isfinite().all()):
                break
            mu = 10 * mu
        step = torch.cholesky_solve(-g.unsqueeze(1), factor).squeeze(1)
        steps.append(torch.where(fault == 0, step, torch.nan))
        taken.append(mu)
    return torch.stack(steps), torch.stack(taken)


def conjugate_gradients(
    hessians: Multiply, gradient: Tensor, damping: Tensor, *, tolerance: float, max_steps: int
) -> Tensor:
    """Solve by conjugate gradients (Hestenes and Stiefel 1952), every row until it is good enough.

    Args:
        hessians: multiplies the rows' H with a vector `(b, D)` each.
        gradient: `(b, D)`.
        damping: `(b,)`, positive.
        tolerance: a row ends where its residual is this fraction of its gradient.
        max_steps: products at most.

    Returns:
        The steps `(b, D)`; zero where the gradient is.
    """
    step = torch.zeros_like(gradient)
    residual = -gradient
    direction = residual
    square = residual.square().sum(1)
    goal = tolerance**2 * square
    for _ in range(max_steps):
        going = square > goal
        if not bool(going.any()):
            break
        image = hessians(direction) + damping.unsqueeze(1) * direction
        # 0 leaves a row that has ended as it is, whatever its last direction was
        length = torch.where(going, square / (direction * image).sum(1), 0).unsqueeze(1)
        step = step + length * direction
        residual = residual - length * image
        after = residual.square().sum(1)
        grown = torch.where(going, after / square, 0).unsqueeze(1)
        direction = torch.where(going.unsqueeze(1), residual + grown * direction, direction)
        square = after
    return step
