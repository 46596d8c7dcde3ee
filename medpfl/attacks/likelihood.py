"""The distance that a known law of noise makes: minus the logarithm of its density, in nats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from medpfl.attacks.distances import LeastSquares, is_likelihood

# Of a Laplace scale: within this |r| is rounded off, so that it has a slope at 0 that searches can
# follow. An estimate loses next to nothing by it (the information is that of 1 / (1 + corner)).
_CORNER = 0.1

Law = Literal["gaussian", "laplace"]
Relative = Literal["norm", "percentile"]


@dataclass(frozen=True, kw_only=True)
class NoiseLikelihood:
    """-log p(observed | dummy), up to a constant, of independent noise on every entry.

    Gaussian: |r|^2 / 2 of residuals r in units of s. Laplace: |r|_1 in units of b, its corner
    rounded off: sum of sqrt(r^2 + c^2) - c.

    Args:
        law: of the noise.
        scale: Gaussian standard deviation or Laplace b, in the unit of a gradient, or a multiple of
            what `relative_to` says.
        relative_to: ``norm``: the root mean square of the update before noise, estimated from the
            observed one, whose energy is on average higher by that of the noise. ``percentile``:
            that of the observed update's magnitudes, which the noise itself makes somewhat larger.
        percentile: where that is what the scale is relative to.
    """

    in_nats: ClassVar[bool] = True

    law: Law
    scale: float
    relative_to: Relative | None = None
    percentile: float = 95.0

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return it; 0 where the gradients agree."""
        return self.costs(self._standardised(dummy, observed)).sum()

    def residual(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return entries whose squares are the terms of the sum; see `LeastSquares`."""
        r = self._standardised(dummy, observed)
        if self.law == "gaussian":
            return r / math.sqrt(2)
        # sqrt(r^2 + c^2) - c = r^2 / (sqrt(r^2 + c^2) + c), whose root is smooth at 0.
        return r / ((r.square() + _CORNER**2).sqrt() + _CORNER).sqrt()

    def slope(
        self, dummy: Sequence[Tensor], observed: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Return the derivative by the dummy, tensor by tensor, and the value."""
        unit = self.unit(observed)
        r = self._standardised(dummy, observed)
        value = self.costs(r).sum()
        slope = r if self.law == "gaussian" else r / (r.square() + _CORNER**2).sqrt()
        parts = torch.split(slope / unit, [t.numel() for t in dummy])
        return [p.reshape(t.shape) for p, t in zip(parts, dummy, strict=True)], value

    def unit(self, observed: Sequence[Tensor]) -> Tensor:
        """Return the law's scale in the unit of a gradient, a scalar tensor."""
        flat = torch.cat([t.flatten() for t in observed])
        if self.relative_to is None:
            return flat.new_tensor(self.scale)
        if self.relative_to == "norm":
            excess = self.scale**2 * (1 if self.law == "gaussian" else 2)
            return self.scale * (flat.square().mean() / (1 + excess)).sqrt()
        rank = max(1, math.ceil(self.percentile / 100 * len(flat)))
        return self.scale * flat.abs().sort().values[rank - 1]

    def _standardised(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        pairs = zip(dummy, observed, strict=True)
        return torch.cat([(a - b).flatten() for a, b in pairs]) / self.unit(observed)

    def costs(self, r: Tensor) -> Tensor:
        """Return the nats of residuals in units of the scale, entry by entry."""
        if self.law == "gaussian":
            return r.square() / 2
        return (r.square() + _CORNER**2).sqrt() - _CORNER


@dataclass(frozen=True, kw_only=True)
class ThroughClip:
    """Another distance, to a dummy's gradient that was clipped as the client's was.

    Args:
        inner: the distance.
        max_norm: C, in the unit of a gradient: g min(1, C / |g|).
        per: ``update``: all tensors together; ``layer``: each by itself.
    """

    inner: LeastSquares
    max_norm: float
    per: Literal["update", "layer"]

    @property
    def in_nats(self) -> bool:
        """See `Likelihood`."""
        return is_likelihood(self.inner)

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the inner distance to the clipped gradient."""
        return self.inner(self._clipped(dummy), observed)

    def residual(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the inner distance's; see `LeastSquares`."""
        return self.inner.residual(self._clipped(dummy), observed)

    def _clipped(self, dummy: Sequence[Tensor]) -> list[Tensor]:
        squares = [t.square().sum() for t in dummy]
        if self.per == "update":
            squares = [torch.stack(squares).sum()] * len(squares)
        # The root of zero has no slope; nothing so short is clipped.
        norms = [s.clamp_min(torch.finfo(s.dtype).tiny).sqrt() for s in squares]
        return [t * (self.max_norm / n).clamp(max=1) for t, n in zip(dummy, norms, strict=True)]
