"""Bounds from products with J'J where the matrix is too large to form.

Probes are vectors of random signs v. E v'Av = tr(A) for any matrix (Hutchinson 1990), and Lanczos
gives v'f(A)v as a Gauss quadrature with k nodes (Golub and Meurant 2010, Matrices, Moments and
Quadrature, chapters 6 and 7). For f = 1 / x that quadrature is never too high, so that too few
steps make a bound low and never false.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from medpfl.bounds.information import Bound, Estimate, Information, Spectrum, check_prior
from medpfl.bounds.lanczos import Runs, lanczos
from medpfl.bounds.pixels import GramProduct
from medpfl.bounds.prior import GaussianPrior

_ROUNDING = 2.0**-52
_SMALLEST = 1e-200
# Gauss-Radau needs a node below the spectrum, which starts at 1; at 1 itself it may divide by 0.
_BELOW_ONE = 1 - 1e-6


@dataclass(frozen=True, kw_only=True)
class SketchedInformation(Information):
    """J'J as a product, asked a few times.

    Args:
        product: of rows with J'J.
        probes: `(m, d)` of random signs, m at least 2.
        steps: k of Lanczos, at most d.
    """

    product: GramProduct
    probes: Tensor
    steps: int

    def trace(self) -> Estimate:
        """See `Information.trace`; Hutchinson's estimate."""
        return _mean(self._own.runs.diagonal[:, 0] * self.unknowns)

    def largest_singular_value(self) -> Estimate:
        """See `Information.largest_singular_value`.

        The Ritz value is never above it; `short_by` is its residual, within which J'J has an
        eigenvalue, and which is the largest one's unless every probe missed it.
        """
        values, vectors = self._own.runs.ritz()
        best = int(values[:, -1].argmax())
        largest = float(values[best, -1].clamp_min(0))
        residual = float((self._own.runs.beside[best, -1] * vectors[best, -1, -1]).abs())
        return Estimate(value=largest**0.5, short_by=(largest + residual) ** 0.5 - largest**0.5)

    def effective_rank(self) -> Estimate:
        """See `Information.effective_rank`.

        The entropy is read off quadratures of sigma and sigma log sigma; what half of the steps
        make of it goes into the standard error.
        """
        rank, error = _effective_rank(self._own.runs)
        half, _ = _effective_rank(self._own.runs.shortened(max(1, self.steps // 2)))
        return Estimate(value=rank, standard_error=math.hypot(error, rank - half))

    def spectrum(self, prior: GaussianPrior | None = None) -> SketchedSpectrum:
        """See `Information.spectrum`."""
        if prior is None:
            return self._own
        check_prior(self, prior)

        def between_roots(rows: Tensor) -> Tensor:
            return prior.root(self.product(prior.root(rows)))

        runs = lanczos(between_roots, prior.root(self.probes), self.steps)
        return SketchedSpectrum(runs=runs, probes=self.probes, shape=self.shape, prior=prior)

    @cached_property
    def _own(self) -> SketchedSpectrum:
        runs = lanczos(self.product, self.probes, self.steps)
        return SketchedSpectrum(runs=runs, probes=self.probes, shape=self.shape, prior=None)


@dataclass(frozen=True, kw_only=True)
class SketchedSpectrum(Spectrum):
    """What random patterns see of J'J, in units of what is known of an image before.

    Args:
        runs: of Lanczos from the probes, multiplied by the prior's root.
        probes: `(m, d)`.
        shape: `(N, C, *S)`.
        prior: None without.
    """

    runs: Runs
    probes: Tensor
    shape: tuple[int, ...]
    prior: GaussianPrior | None

    def bound(self, std: float) -> Bound:
        """See `Spectrum.bound`."""
        values, vectors = self.runs.ritz()
        known = (values + self._rounding).clamp_min(_SMALLEST)
        left = 1 / (self._before + known / std / std)
        # v'Mv with M = root (...)^-1 root, as the sum over the pixels of v and what M makes of it.
        in_basis = (vectors @ (left * vectors[:, 0]).unsqueeze(2)).squeeze(2)
        solved = (in_basis.unsqueeze(1) @ self.runs.basis).squeeze(1)
        solved = solved * self.runs.lengths.unsqueeze(1)
        if self.prior is not None:
            solved = self.prior.root(solved)
        drawn = self.probes * solved
        mean = _mean(drawn.mean(1))
        return Bound(
            value=mean.value,
            standard_error=mean.standard_error,
            short_by=self._short_by(std),
            per_pixel=drawn.mean(0).reshape(self.shape),
            per_pixel_error=(drawn.std(0) / len(drawn) ** 0.5).reshape(self.shape),
        )

    @property
    def _before(self) -> float:
        return 0.0 if self.prior is None else 1.0

    @property
    def _rounding(self) -> float:
        return self.probes.shape[1] * _ROUNDING * float(self.runs.ritz()[0].abs().max())

    def _short_by(self, std: float) -> float:
        """Return by how much more steps might raise the bound at most.

        With a prior nothing is known of less than 1, and Gauss-Radau quadrature with a node there
        is never too low. Without, a pattern that was not met may leave no trace at all.
        """
        if self.prior is None:
            return math.inf
        values, vectors = self.runs.ritz()
        known = (values + self._rounding).clamp_min(0) / std / std
        below = _quadrature(1 + known, vectors, self.runs)
        nodes, node_vectors = torch.linalg.eigh(_with_node(self.runs, std))
        above = _quadrature(nodes, node_vectors, self.runs)
        return max(0.0, above - below)


def _with_node(runs: Runs, std: float) -> Tensor:
    """Return I + T / s^2 with a last row that makes `_BELOW_ONE` an eigenvalue, (m, k+1, k+1)."""
    inner, follows = runs.tridiagonal() / std / std, runs.beside[:, -1] / std / std
    identity = torch.eye(inner.shape[1], dtype=inner.dtype, device=inner.device)
    at_end = identity[:, -1:].expand(len(inner), -1, -1)
    above_node = inner + (1 - _BELOW_ONE) * identity
    last = torch.linalg.solve(above_node, at_end)[:, -1, 0]
    matrix = torch.nn.functional.pad(inner + identity, (0, 1, 0, 1))
    matrix[:, -1, -1] = _BELOW_ONE + follows.square() * last
    matrix[:, -1, -2] = matrix[:, -2, -1] = follows
    return matrix


def _quadrature(nodes: Tensor, vectors: Tensor, runs: Runs) -> float:
    """Return the mean over probes of the quadrature of 1 / x, over d."""
    weights = vectors[:, 0].square() * runs.lengths.square().unsqueeze(1)
    return float((weights / nodes.clamp_min(_BELOW_ONE)).sum(1).mean()) / runs.basis.shape[2]


def random_signs(rows: int, unknowns: int, generator: torch.Generator) -> Tensor:
    """Return `(rows, unknowns)` of -1 and 1, float64, on the generator's device."""
    signs = torch.randint(
        0, 2, (rows, unknowns), generator=generator, device=generator.device, dtype=torch.int64
    )
    return signs.double() * 2 - 1


def _effective_rank(runs: Runs) -> tuple[float, float]:
    """Return e^H and its standard error: H = log(a) - b / a of a = tr(sigma), b = tr(s log s)."""
    values, vectors = runs.ritz()
    weights = vectors[:, 0].square() * runs.lengths.square().unsqueeze(1)
    singular = values.clamp_min(0).sqrt()
    sums = (weights * singular).sum(1)
    logs = (weights * torch.xlogy(singular, singular)).sum(1)
    a, b = float(sums.mean()), float(logs.mean())
    if a == 0:
        return 0.0, 0.0
    rank = math.exp(math.log(a) - b / a)
    by_probe = sums * (1 / a + b / a**2) - logs / a  # the delta method
    return rank, rank * float(by_probe.std()) / len(by_probe) ** 0.5


def _mean(drawn: Tensor) -> Estimate:
    error = float(drawn.std()) / len(drawn) ** 0.5
    return Estimate(value=float(drawn.mean()), standard_error=error)
