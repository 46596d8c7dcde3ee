"""What can be told of a reconstruction without the truth; nothing is selected with it.

Each sees another failure, and none is a proof. Restarts that agree say that the update determines
an image: a search that was cut short makes them differ, but noise in the update is found by all of
them. What noise adds stays unexplained, and is grainy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.metrics.image_quality import WINDOW, ssim
from medpfl.metrics.matching import match
from medpfl.types import Reconstruction


@dataclass(frozen=True, kw_only=True)
class Signs:
    """Signs of one reconstructed image, each a column of ``metrics.csv``.

    Args:
        unexplained: what is left of the objective, relative to what a blank image leaves; of the
            whole update. NaN where the attack does not tell.
        agreement: SSIM with the image that the second best restart found; NaN where no other
            restart was independent and finite, or the image is smaller than SSIM's window.
        grain: mean absolute second differences of neighbouring pixels over mean first ones, see
            `grain`.
    """

    unexplained: float
    agreement: float
    grain: float


NO_SIGNS = Signs(unexplained=math.nan, agreement=math.nan, grain=math.nan)
"""Of an image that was not handed in."""


def signs_of(reconstruction: Reconstruction) -> tuple[Signs, ...]:
    """Return the signs of each image of a reconstruction, in their order.

    Raises:
        ValueError: the restarts' images differ in shape or number, or are not finite.
    """
    inputs = reconstruction.inputs.detach().cpu()
    agreements = _agreements(inputs, reconstruction.runner_up)
    return tuple(
        Signs(unexplained=reconstruction.unexplained, agreement=agreement, grain=grain(image))
        for image, agreement in zip(inputs, agreements, strict=True)
    )


def grain(image: Tensor) -> float:
    """Return how grainy `(C, *S)` is: mean absolute second differences over mean first ones.

    Along every axis of S, over all channels. 0 for a ramp, sqrt(3) for independent normal pixels, 2
    for a chessboard; contrast and brightness do not matter. NaN for a constant image, and for one
    of fewer than three pixels a side.
    """
    exact = image.detach().to("cpu", torch.float64)
    first, second = (_mean_difference(exact, order) for order in (1, 2))
    return second / first if first > 0 else math.nan


def _mean_difference(image: Tensor, order: int) -> float:
    """Return the mean absolute difference of an order over all axes of S; NaN of no entries."""
    axes = range(1, image.ndim)
    return float(torch.cat([image.diff(order, axis).abs().flatten() for axis in axes]).mean())


def _agreements(images: Tensor, others: Tensor | None) -> list[float]:
    """Return the SSIM of each of `(N, C, *S)` with its match among the others; NaN without them."""
    if others is None or min(images.shape[2:], default=0) < WINDOW:
        return [math.nan] * len(images)
    others = others.detach().cpu()
    if others.shape != images.shape:
        raise ValueError(
            f"images {tuple(images.shape)} and those of another restart {tuple(others.shape)} must "
            "have the same shape"
        )
    partners = others[match(images, others)]
    return [ssim(image, partner) for image, partner in zip(images, partners, strict=True)]
