"""What can be told of a reconstruction without the truth; nothing is selected with it."""

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
        roughness: mean absolute difference of neighbouring pixels, over all axes and channels.
    """

    unexplained: float
    agreement: float
    roughness: float


def signs_of(reconstruction: Reconstruction) -> tuple[Signs, ...]:
    """Return the signs of each image of a reconstruction, in their order.

    Raises:
        ValueError: the restarts' images differ in shape or number, or are not finite.
    """
    inputs = reconstruction.inputs.detach().cpu()
    agreements = _agreements(inputs, reconstruction.runner_up)
    return tuple(
        Signs(
            unexplained=reconstruction.unexplained, agreement=agreement, roughness=roughness(image)
        )
        for image, agreement in zip(inputs, agreements, strict=True)
    )


def roughness(image: Tensor) -> float:
    """Return the mean absolute difference of neighbours in `(C, *S)`: the total variation a pixel.

    0 for a constant image, 1 for a chessboard of black and white; NaN for a single pixel.
    """
    steps = [image.double().diff(dim=axis).abs().flatten() for axis in range(1, image.ndim)]
    found = torch.cat(steps)
    return float(found.mean()) if len(found) else math.nan


def _agreements(images: Tensor, others: Tensor | None) -> list[float]:
    """Return the SSIM of each of `(N, C, *S)` with its match among the others; NaN without them."""
    if others is None or min(images.shape[2:], default=0) < WINDOW:
        return [math.nan] * len(images)
    others = others.detach().cpu()
    partners = others[match(images, others)]
    return [ssim(image, partner) for image, partner in zip(images, partners, strict=True)]
