"""Reconstruction robustness by drawing releases: what the numerical bounds are checked with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from medpfl.accounting import Mechanism
from medpfl.bounds.reconstruction_robustness import Kappa
from medpfl.settings.hints import check_value
from medpfl.settings.ranges import Range, Steps

Samples = Annotated[int, Range(1_000, 1_000_000_000)]
_DRAWN_AT_ONCE = 2_000_000
_TINY = 1e-300
_LOG_HUGE = 700.0  # exp would overflow soon after


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number that was drawn.

    Args:
        value: the estimate.
        standard_error: of `value`, one standard deviation.
    """

    value: float
    standard_error: float


def subsampled_gaussian(
    *,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    kappa: float,
    samples: int,
    generator: torch.Generator,
) -> Estimate:
    """Estimate gamma of T releases of Poisson samples under Gaussian noise.

    With R = prod_t [1 + q (e^((2 w_t - 1) / 2 sigma^2) - 1)], gamma is the part of E[R], w_t drawn
    from N(0, sigma^2), that the largest kappa of R make (Hayes et al. 2023, arXiv 2302.07225).
    Half of the draws are made with the image instead and all weighted by 2 / (1 + R), so that no
    single draw decides: R itself has heavy tails.

    Args:
        noise_multiplier: sigma, the standard deviation over the clipping norm.
        sample_rate: q.
        steps: T.
        kappa: the chance of a guess.
        samples: number of draws.
        generator: where they come from.

    Returns:
        The estimate; its error does not count that kappa's cut is estimated, which changes gamma to
        second order only.

    Raises:
        ConfigurationError: a value out of range.
    """
    Mechanism(noise_multiplier=noise_multiplier, sample_rate=sample_rate)
    check_value("bound.steps", steps, Steps)
    check_value("bound.kappa", kappa, Kappa)
    check_value("bound.samples", samples, Samples)
    at_once = max(2, _DRAWN_AT_ONCE // steps) // 2 * 2
    sizes = [at_once] * (samples // at_once) + [samples % at_once] * (samples % at_once > 0)
    losses = torch.cat(
        [_losses(noise_multiplier, sample_rate, steps, size, generator) for size in sizes]
    )
    return _largest(losses, kappa)


def _losses(sigma: float, q: float, steps: int, size: int, generator: torch.Generator) -> Tensor:
    """Return log R of ``(size,)`` draws; the image takes part in the first half of them."""
    w = torch.randn(size, steps, dtype=torch.float64, generator=generator)
    there = torch.rand(size // 2, steps, dtype=torch.float64, generator=generator) < q
    w[: size // 2] += there / sigma
    exponents = (w - 1 / (2 * sigma)) / sigma
    small = torch.log1p(q * torch.expm1(exponents.clamp_max(_LOG_HUGE)))
    return torch.where(exponents < _LOG_HUGE, small, math.log(q) + exponents).sum(1)


def _largest(losses: Tensor, kappa: float) -> Estimate:
    """Return the mean of R over its largest kappa, times kappa, under weights 2 / (1 + R)."""
    ordered = losses.sort(descending=True).values
    without = 2 * torch.sigmoid(-ordered)  # weight of a draw without the image
    with_it = 2 * torch.sigmoid(ordered)  # the same times R
    n = len(ordered)
    level = without.cumsum(0) / n
    cut = min(int(torch.searchsorted(level, kappa)), n - 1)
    slope = ordered[cut].exp()
    # E (R - c)+ + c kappa: the estimate is flat where the cut c is best.
    above = (with_it - slope * without).clamp_min(0)
    # The weights' mean is known to be 1: what they miss it by tells what `above` is off by.
    excess = without - 1
    above = above - excess * (above * excess).mean() / excess.square().mean().clamp_min(_TINY)
    value = float(above.mean() + slope * kappa)
    return Estimate(value=min(value, 1.0), standard_error=float(above.std() / math.sqrt(n)))
