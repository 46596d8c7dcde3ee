"""Products with the Gauss-Newton Hessian of rows' residuals, without the Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import vjp, vmap

from medpfl.optim.base import Product

RowResidual = Callable[..., Tensor]
Linearise = Callable[..., Product]


def gauss_newton(residual: RowResidual, *, rowwise: Sequence[bool]) -> Linearise:
    """Return a function that linearises the residuals of many rows, each at its own point.

    Args:
        residual: takes a point `(D,)` and further tensors and returns `(R,)`.
        rowwise: of each further tensor, whether it has one entry a row; the others serve all rows.

    Returns:
        A function of points `(B, D)` and those tensors. It returns the product with H = 2 J'J, the
        Hessian of the sum of squares where the residual is small, and keeps what the residuals'
        derivatives are computed from as long as the product is kept.
    """
    batched = vmap(residual, in_dims=(0, *(0 if by_row else None for by_row in rowwise)))

    def linearise(z: Tensor, *rest: Tensor) -> Product:
        value: Tensor
        value, backward = vjp(lambda points: batched(points, *rest), z)[:2]
        # J'u is linear in u, so that its own backward pass is u -> Ju: no forward mode is needed.
        forward = vjp(lambda u: backward(u)[0], torch.zeros_like(value))[1]

        def product(vector: Tensor) -> Tensor:
            return 2 * backward(forward(vector)[0])[0]  # type: ignore[no-any-return]

        products = vmap(product, in_dims=1, out_dims=1)
        # BatchNorm in train mode leaves what computed a product attached to it.
        return lambda vectors: products(vectors).detach()

    return linearise
