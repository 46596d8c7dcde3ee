"""Bounds from the whole of J'J, a d x d matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from medpfl.bounds.information import Bound, Estimate, Information, Spectrum, check_prior
from medpfl.bounds.prior import GaussianPrior

_ROUNDING = 2.0**-52
_SMALLEST = 1e-200  # of an update that depends on nothing: 0 times infinity would be no number


@dataclass(frozen=True, kw_only=True)
class ExactInformation(Information):
    """J'J as a matrix.

    Args:
        gram: `(d, d)` float64, symmetric.
    """

    gram: Tensor

    def trace(self) -> Estimate:
        """See `Information.trace`."""
        return Estimate(value=float(self.gram.trace()))

    def largest_singular_value(self) -> Estimate:
        """See `Information.largest_singular_value`."""
        largest = float(self._own.values[-1].clamp_min(0))
        above = largest + self._own.rounding
        return Estimate(value=largest**0.5, short_by=above**0.5 - largest**0.5)

    def effective_rank(self) -> Estimate:
        """See `Information.effective_rank`; 0 where nothing is told."""
        singular = self._own.values.clamp_min(0).sqrt()
        if not singular.any():
            return Estimate(value=0.0)
        share = singular / singular.sum()
        return Estimate(value=math.exp(float(-torch.xlogy(share, share).sum())))

    def spectrum(self, prior: GaussianPrior | None = None) -> ExactSpectrum:
        """See `Information.spectrum`."""
        if prior is None:
            return self._own
        check_prior(self, prior)
        half = prior.root(self.gram).T  # root S G, as both are symmetric
        values, vectors = torch.linalg.eigh(_symmetric(prior.root(half)))
        patterns = prior.root(vectors.T).T
        return ExactSpectrum(values=values, patterns=patterns, shape=self.shape, prior=1.0)

    @cached_property
    def _own(self) -> ExactSpectrum:
        values, vectors = torch.linalg.eigh(self.gram)
        return ExactSpectrum(values=values, patterns=vectors, shape=self.shape, prior=0.0)


@dataclass(frozen=True, kw_only=True)
class ExactSpectrum(Spectrum):
    """What an update tells of each pattern of pixels, in units of what is known of it before.

    Args:
        values: `(d,)` ascending: J'J along the patterns.
        patterns: `(d, d)`, one a column.
        shape: `(N, C, *S)`.
        prior: what is known of each pattern before: 0 without a prior, else 1.
    """

    values: Tensor
    patterns: Tensor
    shape: tuple[int, ...]
    prior: float

    @property
    def rounding(self) -> float:
        """By how much a value may be off: d units in the last place of the largest."""
        return len(self.values) * _ROUNDING * float(self.values.abs().max())

    def bound(self, std: float) -> Bound:
        """See `Spectrum.bound`; rounding counts as information."""
        known = (self.values + self.rounding).clamp_min(_SMALLEST)
        left = 1 / (self.prior + known / std / std)
        per_pixel = self.patterns.square() @ left
        sizes = self.patterns.square().sum(0)
        least = (self.values - self.rounding).clamp_min(0) / std / std
        # Without a prior, a pattern that may leave no trace has any error.
        more = float((sizes * (1 / (self.prior + least) - left)).mean())
        return Bound(
            value=float(per_pixel.mean()),
            short_by=more,
            per_pixel=per_pixel.reshape(self.shape),
            per_pixel_error=torch.zeros_like(per_pixel).reshape(self.shape),
        )


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
