"""Masking: entries chosen at random are hidden."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from medpfl.defenses.base import DefenseReport
from medpfl.defenses.norms import entries_of
from medpfl.defenses.wire import Coding
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import ClientUpdate, DefenseFacts


@dataclass(frozen=True, kw_only=True)
class MaskingFacts(DefenseFacts):
    """What an attacker may know of `Masking`; see there."""

    fraction: float
    fill: str


@checked("defense.masking")
@dataclass(frozen=True, kw_only=True)
class Masking:
    """Hide every entry with a probability of its own, drawn anew for every update.

    Args:
        fraction: probability that an entry is hidden, in (0, 1).
        fill: what stands in its place: ``zero``, or ``noise``, a normal number of the size of its
            tensor (its root mean square), so that hidden entries do not show.
    """

    name: ClassVar[str] = "masking"

    fraction: Annotated[float, Range(0, 1, "()"), "to hide nothing, choose defense=none"]
    fill: Literal["zero", "noise"] = "zero"

    def __post_init__(self) -> None:
        if self.fill not in ("zero", "noise"):
            raise ConfigurationError(f"defense.masking.fill={self.fill}: choose zero or noise")

    def describe(self) -> str | None:
        """See `Part.describe`."""
        return f"{100 * self.fraction:g} % of the entries, at random, replaced by {self.fill}"

    def facts(self) -> MaskingFacts:
        """See `Public.facts`."""
        return MaskingFacts(name=self.name, fraction=self.fraction, fill=self.fill)

    def on_update(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, DefenseReport]:
        """Return the masked update, drawn tensor by tensor in the update's order."""
        tensors, shown = {}, 0
        for name, tensor in update.tensors.items():
            hidden = _drawn(torch.rand, tensor, generator) < self.fraction
            shown += int((~hidden).sum())
            fill = self._filling(tensor, generator)
            tensors[name] = torch.where(hidden, fill, tensor)
        dense = Coding.dense(entries_of(tensors))
        coding = Coding.sparse(shown) if self.fill == "zero" else dense
        return replace(update, tensors=tensors), DefenseReport(coding=coding)

    def _filling(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        if self.fill == "zero" or not tensor.numel():
            return torch.zeros_like(tensor)
        size = tensor.double().square().mean().sqrt()
        return (_drawn(torch.randn, tensor, generator) * size).to(tensor)


def _drawn(law: Callable[..., Tensor], like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw float64 numbers in the shape of a tensor, on its device."""
    drawn = law(like.shape, dtype=torch.float64, generator=generator, device=generator.device)
    return drawn.to(like.device)
