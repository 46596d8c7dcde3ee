"""No defense."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from medpfl.defenses.base import DefenseReport
from medpfl.defenses.noise import Noise, NoNoise
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.types import ClientUpdate


@checked("defense")
@dataclass(frozen=True, kw_only=True)
class NoDefense:
    """Let every update through as it is.

    Args:
        noise: must be `NoNoise`: noise that no defense adds would be a silent mistake.
    """

    name: ClassVar[str] = "none"

    noise: Noise = field(default_factory=NoNoise)

    def __post_init__(self) -> None:
        if not isinstance(self.noise, NoNoise):
            raise ConfigurationError(
                "defense=none adds no noise, but noise is chosen: "
                "choose defense=perturbation to add it, or noise=none"
            )

    def describe(self) -> str | None:
        """See `Part.describe`."""
        return None

    def on_update(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, DefenseReport]:
        """Return the update itself and an empty report."""
        return update, DefenseReport()
