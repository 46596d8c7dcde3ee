"""How often rows of trap weights fire: what scale makes it as often as wanted, and what follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# What a pixel is where nothing more is known: uniform on [0, 1].
_MEAN, _STD = 0.5, 12**-0.5


def tuned_scale(against: Tensor, toward: Tensor, rate: float) -> float:
    """Return the scale by which rows fire at a rate, exactly on these images.

    A row fires where scale times what its second half gives exceeds what the first takes away.

    Args:
        against: `(A, k)`: what the first halves take away, positive.
        toward: `(A, k)`: what the second halves give, positive.
        rate: in (0, 1).
    """
    ratios = (against / toward.clamp_min(1e-30)).flatten().double()
    return float(torch.quantile(ratios[: 2**24], rate))


def assumed_scale(entries: int, rate: float) -> float:
    """Return the scale by which rows fire at a rate on pixels that are uniform on [0, 1].

    The response has mean -(1 - scale) E|s| D mean / 2 and standard deviation sigma sqrt(D) std, for
    scales near one.

    Args:
        entries: D.
        rate: in (0, 1).
    """
    below = -float(torch.special.ndtri(torch.tensor(rate, dtype=torch.float64)))
    return 1 - below * math.sqrt(2 * math.pi / entries) * _STD / _MEAN


def expected_share(rate: float, rows: int, images: int) -> float:
    """Return the share of images that are alone in a row, were all rows and images alike.

    1 - (1 - p (1 - p)^(B - 1))^K at a rate p, of B images and K rows that fire independently.
    """
    return 1 - (1 - rate * (1 - rate) ** (images - 1)) ** rows


@dataclass(frozen=True)
class Firing:
    """Which rows fire for which public images, and what that says of others.

    Args:
        fired: `(A, K)` bool.
        brightness: `(A,)` mean intensity of each image.
    """

    fired: Tensor
    brightness: Tensor

    @property
    def rate(self) -> float:
        """How often a row fires for an image."""
        return float(self.fired.double().mean())

    @property
    def bias(self) -> float:
        """Correlation of an image's number of rows with its intensity; NaN where either is one."""
        counts = self.fired.double().sum(1)
        return float(torch.corrcoef(torch.stack([counts, self.brightness.double()]))[0, 1])

    def share(self, images: int) -> float:
        """Return the share of such images that are expected to be alone in a row, of B drawn.

        Each row at its own rate, each image at its own rows: bright ones may fire all, dark none.
        """
        fired = self.fired.double()
        alone = fired * (1 - fired.mean(0)) ** (images - 1)
        return float((1 - (1 - alone).prod(1)).mean())

    def describe(self, scale: float, images: int) -> str:
        """Return in words what was measured, and what it says of B images."""
        return (
            f"rows of scale {scale:.4g} fire for {100 * self.rate:.2g} % of public images; of "
            f"{images} such image{'' if images == 1 else 's'}, "
            f"{100 * expected_share(self.rate, self.fired.shape[1], images):.1f} % would be alone "
            f"in a row, were all alike, and {100 * self.share(images):.1f} % as they are. "
            f"Correlation of an image's rows with its brightness: {self.bias:+.2f}"
        )
