"""By what a dummy's gradient is multiplied where the size of the update says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.attacks.adaptation.ranges import Ranges

# A dummy that points away from the update is made small, not turned.
_LEAST_COSINE = 0.1


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The factors that bring a dummy's tensors nearest to the entries that were sent.

    Args:
        free: whether all tensors have a common factor: the attack compares directions, or the
            update is clipped.
        each: whether every tensor has a factor of its own: each is clipped by itself.
    """

    free: bool = False
    each: bool = False

    def applied(
        self, dummy: Sequence[Tensor], observed: Sequence[Tensor], ranges: Ranges
    ) -> list[Tensor]:
        """Return the dummy's tensors, multiplied."""
        if not (self.free or self.each):
            return list(dummy)
        products = [
            _products(*triple) for triple in zip(dummy, observed, ranges.telling, strict=True)
        ]
        if self.each:
            factors = [_factor(p) for p in products]
        else:
            factors = [_factor(torch.stack(products).sum(0))] * len(products)
        return [tensor * factor for tensor, factor in zip(dummy, factors, strict=True)]


def _products(dummy: Tensor, observed: Tensor, telling: Tensor) -> Tensor:
    """Return <d, d>, <d, o> and <o, o> over the entries that stand for themselves, `(3,)`."""
    seen = dummy * telling
    kept = observed * telling
    return torch.stack([(seen * seen).sum(), (seen * kept).sum(), (kept * kept).sum()])


def _factor(products: Tensor) -> Tensor:
    """Return the factor of least squares; 1 where nothing was sent, or the dummy is zero there."""
    own, across, sent = products
    tiny = torch.finfo(products.dtype).tiny
    possible = (own > tiny) & (sent > tiny)
    safe_own, safe_sent = (torch.where(possible, x, 1) for x in (own, sent))
    least = _LEAST_COSINE * (safe_own * safe_sent).sqrt()
    return torch.where(possible, across.maximum(least) / safe_own, 1)
