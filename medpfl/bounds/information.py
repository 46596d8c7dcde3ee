"""What an update tells of an image, in numbers: the interface, and what it follows from.

An update y = u(x) + n with n of N(0, s^2 I) has the Fisher information J'J / s^2 about the pixels
x, J the Jacobian of u.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from medpfl.bounds.prior import GaussianPrior
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import check_value
from medpfl.settings.ranges import Scale


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and how far off it may be.

    Args:
        value: the number.
        standard_error: one standard deviation of what the draws make of it; 0 where none were made.
        short_by: by how much the truth may lie above `value` for another reason, rounding or too
            few steps; inf where that is not known. Nothing but draws puts it below.
    """

    value: float
    standard_error: float = 0.0
    short_by: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Bound(Estimate):
    """A bound on the mean squared error a pixel, of pixels in [0, 1]; never too high by rounding.

    Args:
        per_pixel: `(N, C, *S)`, C 1 where channels are tied: the bound of each pixel, whose mean is
            `value`. Where it is low, the update shows the image. Drawn ones scatter by
            `per_pixel_error`, and may be negative.
        per_pixel_error: `(N, C, *S)`: one standard deviation.
    """

    per_pixel: Tensor
    per_pixel_error: Tensor

    @property
    def mse(self) -> float:
        """The value."""
        return self.value


class Spectrum(ABC):
    """J'J as it looks to one attacker: one without a prior, or one with."""

    @abstractmethod
    def bound(self, std: float) -> Bound:
        """Return the bound under noise of a standard deviation."""


@dataclass(frozen=True, kw_only=True)
class Information(ABC):
    """J'J of one update, or its mean over images, and the bounds that follow.

    Args:
        shape: `(N, C, *S)` of the unknowns; C is 1 where channels are tied.
    """

    shape: tuple[int, ...]

    @property
    def unknowns(self) -> int:
        """d, of all N images."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @abstractmethod
    def trace(self) -> Estimate:
        """Return tr(J'J)."""

    @abstractmethod
    def largest_singular_value(self) -> Estimate:
        """Return sigma_max(J)."""

    @abstractmethod
    def effective_rank(self) -> Estimate:
        """Return e^H, H the entropy of J's singular values over their sum (Roy, Vetterli 2007)."""

    @abstractmethod
    def spectrum(self, prior: GaussianPrior | None = None) -> Spectrum:
        """Return what bounds are read off for any noise; it costs what they cost.

        Raises:
            ConfigurationError: a prior of images of another size.
        """

    def fisher_information_loss(self, std: float) -> Estimate:
        """Return eta = sigma_max(J) / s (Hannun, Guo and van der Maaten 2021, arXiv 2102.11673).

        No unbiased attacker finds any one pattern of unit norm with a standard deviation below
        1 / eta.
        """
        _check(std)
        largest = self.largest_singular_value()
        return Estimate(
            value=largest.value / std,
            standard_error=largest.standard_error / std,
            short_by=largest.short_by / std,
        )

    def cramer_rao(self, std: float) -> Bound:
        """Return s^2 tr((J'J)^-1) / d: the least error of any attacker that is unbiased.

        An attacker that prefers likely images is biased, and does better where the bound is large:
        see `van_trees`. A pattern that leaves no trace in the update makes the bound infinite; what
        stands here is what rounding lets be seen of that.
        """
        _check(std)
        return self.spectrum().bound(std)

    def cramer_rao_of_trace(self, std: float) -> Estimate:
        """Return s^2 d / tr(J'J), never above `cramer_rao` (Guo et al. 2022, arXiv 2201.12383)."""
        _check(std)
        trace = self.trace()
        if trace.value <= 0:
            return Estimate(value=float("inf"))
        value = std**2 * self.unknowns / trace.value
        return Estimate(value=value, standard_error=value * trace.standard_error / trace.value)

    def van_trees(self, std: float, prior: GaussianPrior) -> Bound:
        """Return tr((J'J / s^2 + S^-1)^-1) / d: the least error of any attacker, biased or not.

        It holds on average over images of the prior where J'J is the mean over these; see
        `medpfl.bounds.fisher`. With J'J of one image it is what a linearised posterior leaves of
        that image: a picture of what leaks, and no bound.

        Raises:
            ConfigurationError: a prior of images of another size.
        """
        _check(std)
        return self.spectrum(prior).bound(std)


def check_prior(information: Information, prior: GaussianPrior) -> None:
    """Refuse a prior of images of another size.

    Raises:
        ConfigurationError: that.
    """
    pixels = information.unknowns // information.shape[0]
    if len(prior.mean) != pixels:
        raise ConfigurationError(
            f"the prior is one of images of {len(prior.mean)} unknowns, the update has {pixels} "
            "an image: make both of one size, and of channels that are tied in both or in neither"
        )


def _check(std: float) -> None:
    check_value("bound.std", std, Scale)
