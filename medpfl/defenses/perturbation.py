"""Noise on every entry of an update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from medpfl.defenses.base import DefenseReport
from medpfl.defenses.noise import Noise, NoNoise, law_of
from medpfl.defenses.norms import energy_of, entries_of, norm_of
from medpfl.defenses.wire import Coding
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import ClientUpdate, DefenseFacts

_UNITS: Mapping[str | None, str] = {
    None: "",
    "norm": ", in units of the update's root mean square",
    "percentile": ", in units of percentile {:g} of the update's magnitudes",
}


@dataclass(frozen=True, kw_only=True)
class PerturbationFacts(DefenseFacts):
    """What an attacker may know of `Perturbation`.

    Args:
        law: ``gaussian``, ``laplace``, or the class of a law of one's own.
        scale: Gaussian standard deviation or Laplace b, in the unit that `relative_to` says.
        relative_to: see `Perturbation`.
        percentile: see `Perturbation`.
    """

    law: str
    scale: float
    relative_to: str | None
    percentile: float


@checked("defense.perturbation")
@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """Add independent noise to every entry of every tensor of the update.

    The update is not clipped here, so its sensitivity is unbounded and the noise, of whatever law
    and scale, gives no differential-privacy guarantee.

    Args:
        noise: the law of the noise; not `NoNoise`.
        relative_to: what the law's scale is a multiple of. None: it is in the update's own unit.
            ``norm``: the update's norm over the root of its number of entries, so that Gaussian
            noise of ``std=0.1`` is a tenth of the update, 20 dB below it, whatever its size.
            ``percentile``: that percentile of the magnitudes of all its entries.
        percentile: where that is what the scale is relative to.
    """

    name: ClassVar[str] = "perturbation"

    noise: Noise
    relative_to: Literal["norm", "percentile"] | None = None
    percentile: Annotated[float, Range(0, 100)] = 95.0

    def __post_init__(self) -> None:
        if isinstance(self.noise, NoNoise):
            raise ConfigurationError(
                "defense=perturbation has no noise to add: choose noise=laplace, noise=gaussian or "
                "noise=medpfl_level, or defense=none"
            )
        if self.relative_to not in _UNITS:
            raise ConfigurationError(
                f"defense.perturbation.relative_to={self.relative_to}: choose norm, percentile or "
                "null"
            )

    def describe(self) -> str | None:
        """See `Part.describe`."""
        return self.noise.describe() + _UNITS[self.relative_to].format(self.percentile)

    def facts(self) -> PerturbationFacts:
        """See `Public.facts`."""
        return PerturbationFacts(
            name=self.name,
            law=law_of(self.noise),
            scale=self.noise.scale,
            relative_to=self.relative_to,
            percentile=self.percentile,
        )

    def on_update(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, DefenseReport]:
        """Return the update plus noise, drawn tensor by tensor in the update's order."""
        unit = self._unit(update.tensors)
        drawn = {n: self.noise.sample_like(t, generator) for n, t in update.tensors.items()}
        if unit != 1:
            drawn = {name: tensor * unit for name, tensor in drawn.items()}
        noisy = {name: tensor + drawn[name] for name, tensor in update.tensors.items()}
        report = DefenseReport(
            noise_scale=self.noise.scale * unit,
            snr_db=snr_db(update.tensors.values(), drawn.values()),
            coding=Coding.dense(entries_of(update.tensors)),
        )
        return replace(update, tensors=noisy), report

    def _unit(self, tensors: Mapping[str, Tensor]) -> float:
        if self.relative_to is None:
            return 1.0
        if self.relative_to == "norm":
            return norm_of(tensors) / math.sqrt(max(1, entries_of(tensors)))
        return percentile_of(tensors, self.percentile)


def percentile_of(tensors: Mapping[str, Tensor], percentile: float) -> float:
    """Return a percentile of all entries' magnitudes: the smallest that so many do not exceed."""
    magnitudes = torch.cat([t.double().abs().flatten() for t in tensors.values()])
    rank = max(1, math.ceil(percentile / 100 * len(magnitudes)))
    return float(magnitudes.kthvalue(rank).values)


def snr_db(signal: Iterable[Tensor], noise: Iterable[Tensor]) -> float:
    """Return the realised signal-to-noise ratio, 10 log10(||g||^2 / ||n||^2).

    Args:
        signal: the tensors of g.
        noise: the tensors of n.

    Returns:
        Decibels; -inf for a signal of zero, inf for noise of zero beside a signal.
    """
    signal_energy, noise_energy = energy_of(signal), energy_of(noise)
    if signal_energy == 0:
        return -math.inf
    if noise_energy == 0:
        return math.inf
    return 10 * (math.log10(signal_energy) - math.log10(noise_energy))
