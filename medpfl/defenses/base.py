"""What a defense is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from medpfl.types import ClientUpdate


@dataclass(frozen=True)
class DefenseReport:
    """Facts about one defended update, for the record and never for the attacker.

    Args:
        noise_scale: the noise law's scale (Laplace b, Gaussian std), or None without noise.
        snr_db: 10 log10 of the update's energy over the energy of the noise that was added, or
            None without noise. It is no privacy guarantee.
    """

    noise_scale: float | None
    snr_db: float | None


class Defense(Protocol):
    """Changes what leaves the client."""

    @property
    def name(self) -> str:
        """The defense's name, as in the configuration."""
        ...

    def describe(self) -> str | None:
        """Return the noise that the defense adds in words, or None where it adds none."""
        ...

    def on_update(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, DefenseReport]:
        """Return the defended update and what was done to it.

        Args:
            update: after local training; not changed.
            generator: where every random number of the defense comes from.

        Returns:
            An update of the same names, shapes and dtypes, and the report.
        """
        ...
