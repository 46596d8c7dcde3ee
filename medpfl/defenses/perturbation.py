"""Noise on every entry of an update."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from medpfl.defenses.base import DefenseReport
from medpfl.defenses.noise import Noise, NoNoise
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.types import ClientUpdate


@checked("defense")
@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """Add independent noise to every entry of every tensor of the update.

    The update is not clipped, so its sensitivity is unbounded and the noise, of whatever law and
    scale, gives no differential-privacy guarantee.

    Args:
        noise: the law of the noise; not `NoNoise`.
    """

    name: ClassVar[str] = "perturbation"

    noise: Noise

    def __post_init__(self) -> None:
        if isinstance(self.noise, NoNoise):
            raise ConfigurationError(
                "defense=perturbation has no noise to add: choose noise=laplace, noise=gaussian or "
                "noise=medpfl_level, or defense=none"
            )

    def describe(self) -> str | None:
        """See `Defense.describe`."""
        return self.noise.describe()

    def on_update(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, DefenseReport]:
        """Return the update plus noise, drawn tensor by tensor in the update's order."""
        drawn = {n: self.noise.sample_like(t, generator) for n, t in update.tensors.items()}
        noisy = {name: tensor + drawn[name] for name, tensor in update.tensors.items()}
        report = DefenseReport(
            noise_scale=self.noise.scale,
            snr_db=snr_db(update.tensors.values(), drawn.values()),
        )
        return replace(update, tensors=noisy), report


def snr_db(signal: Iterable[Tensor], noise: Iterable[Tensor]) -> float:
    """Return the realised signal-to-noise ratio, 10 log10(||g||^2 / ||n||^2).

    Args:
        signal: the tensors of g.
        noise: the tensors of n.

    Returns:
        Decibels; -inf for a signal of zero, inf for noise of zero beside a signal.
    """
    signal_energy, noise_energy = _energy(signal), _energy(noise)
    if signal_energy == 0:
        return -math.inf
    if noise_energy == 0:
        return math.inf
    return 10 * (math.log10(signal_energy) - math.log10(noise_energy))


def _energy(tensors: Iterable[Tensor]) -> float:
    return math.fsum(tensor.double().square().sum().item() for tensor in tensors)
