"""One noisy release of a sum of clipped contributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import NoiseMultiplier, SampleRate

NEIGHBOURS = ("add_remove", "replace")
LAWS = ("gaussian", "laplace")


@checked("accounting")
@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Noise on a sum of contributions of norm at most C, of which a random part takes part.

    A contribution is an image's gradient (DP-SGD) or a client's whole update; a guarantee is for
    it, and only if it is clipped by itself: noise on sums that are not clipped, or are clipped as
    a whole batch, is no `Mechanism`.

    Args:
        noise_multiplier: the noise's scale over C: standard deviation over the L2 norm (Gaussian),
            b over the L1 norm (Laplace).
        sample_rate: the probability with which each contribution takes part, by itself (Poisson
            sampling); 1 where all do. Shuffled batches of a fixed size are not Poisson sampling.
        law: of the noise.
        neighbours: what epsilon hides. ``add_remove``: whether one contribution is there, which
            moves the sum by up to C; ``replace``: which of two it is, which moves it by up to 2C.

    Raises:
        ConfigurationError: a value out of range, or Laplace noise on samples under ``replace``, for
            which no tight pair of distributions is known here.
    """

    noise_multiplier: NoiseMultiplier
    sample_rate: SampleRate = 1.0
    law: Literal["gaussian", "laplace"] = "gaussian"
    neighbours: Literal["add_remove", "replace"] = "add_remove"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("law", self.law, LAWS),
            ("neighbours", self.neighbours, NEIGHBOURS),
        ):
            if value not in known:
                raise ConfigurationError(f"accounting.{name}={value}: choose {' or '.join(known)}")
        if self.law == "laplace" and self.neighbours == "replace" and self.sample_rate < 1:
            raise ConfigurationError(
                f"accounting.neighbours=replace: not known for Laplace noise on samples "
                f"(sample_rate={self.sample_rate:g}); choose add_remove, or sample_rate=1"
            )

    @property
    def moves(self) -> float:
        """How far two neighbours' sums are apart, in units of C."""
        return 2.0 if self.neighbours == "replace" else 1.0


Releases = Mapping[Mechanism, int]
"""How often each mechanism releases; the order does not matter."""


def neighbours_of(releases: Releases) -> Literal["add_remove", "replace"]:
    """Return what all these releases hide.

    Raises:
        ConfigurationError: they hide different things, so that their epsilons do not add up.
    """
    found = {mechanism.neighbours for mechanism in releases}
    if len(found) > 1:
        raise ConfigurationError(
            "accounting.neighbours: releases of add_remove and of replace do not add up; "
            "account for all of them under one"
        )
    return next(iter(found), "add_remove")
