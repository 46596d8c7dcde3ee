"""Gauss-Newton steps by conjugate gradients: equations of many unknowns, without their matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vjp

from medpfl.attacks.curvature import gauss_newton
from medpfl.attacks.image_prior import natural
from medpfl.attacks.unknowns import Unknowns
from medpfl.optim.damped import conjugate_gradients, of_one_vector
from medpfl.types import DataSpec

Residual = Callable[[Tensor], Tensor]

_STEPS = 12
_HALVINGS = 8
_PRECISE = 1e-4
# A step that gains less than this is the end.
_SLOWEST = 0.03
_GREY = 0.5
# A step's damping is a tenth of the one before, down to this share of the first.
_LEAST_DAMPING = 1e-6


def likely_unknowns(spec: DataSpec, *, tied: bool) -> Unknowns:
    """Return how a vector is read as an image whose energy falls with frequency (`natural`).

    Conjugate gradients cut short change first what such images have most of, and what the equations
    leave open stays as the law has it.
    """
    law = natural((1, *spec.shape[1:]) if tied else spec.shape)
    return Unknowns(
        spec, images=1, classes=spec.num_classes, joint_labels=False, tied=tied, likely=law
    )


def grey(unknowns: Unknowns) -> Tensor:
    """Return a grey image `(1, C, *S)` in the client's input space."""
    pixels = torch.full(unknowns.image_shape, _GREY, dtype=torch.float64)
    return unknowns.spec.normalise(pixels)


def outside(unknowns: Unknowns, z: Tensor) -> Tensor:
    """Return by how much each pixel is above 1 or below 0, `(D,)`."""
    pixels = unknowns.spec.denormalise(unknowns.unpack(z)[0])
    return (pixels - pixels.clamp(0, 1)).flatten()


def solve(residual: Residual, z: Tensor, *, products: int, damping: float, solved: float) -> Tensor:
    """Lower a sum of squares.

    Each step takes its conjugate gradients no further than so many products: what these do not
    reach is left for later steps, which is what damping would do, and costs less.

    Args:
        residual: of a point `(D,)`.
        z: `(D,)` where to begin.
        products: with the Gauss-Newton Hessian, a step.
        damping: of the first step.
        solved: the sum of squares that is low enough.

    Returns:
        `(D,)`.
    """
    linearise = gauss_newton(residual, rowwise=())
    for number in range(_STEPS):
        left, backward = vjp(residual, z)[:2]
        before = float(left.square().sum())
        step = conjugate_gradients(
            of_one_vector(linearise(z.unsqueeze(0))),
            backward(2 * left)[0].unsqueeze(0),
            z.new_full((1,), damping * max(0.1**number, _LEAST_DAMPING)),
            tolerance=_PRECISE,
            max_steps=products,
        )[0]
        z, value = _shortened(residual, z, step, before)
        if value <= solved or value > (1 - _SLOWEST) * before:
            break
    return z


def _shortened(residual: Residual, z: Tensor, step: Tensor, value: float) -> tuple[Tensor, float]:
    """Return the first of ever shorter steps that lowers the sum of squares, or none, and it."""
    for _ in range(_HALVINGS):
        there = float(residual(z + step).square().sum())
        if there < value:
            return z + step, there
        step = step / 2
    return z, value
