"""Clipping: an update that is too long is shortened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from medpfl.defenses.base import DefenseReport
from medpfl.defenses.norms import norm_of
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import ClientUpdate, DefenseFacts


@dataclass(frozen=True, kw_only=True)
class ClippingFacts(DefenseFacts):
    """What an attacker may know of `Clipping`; see there."""

    max_norm: float
    per: str


@checked("defense.clipping")
@dataclass(frozen=True, kw_only=True)
class Clipping:
    """Scale an update down to a largest Euclidean norm: u min(1, C / ||u||).

    Its direction stays, so a distance that looks at directions alone does not notice it. It is the
    update of all the client's images that is clipped, which bounds no single image's share.

    Args:
        max_norm: C, positive, in the update's own unit: a gradient's, or that of weights where
            clients send differences of weights.
        per: ``update`` clips all tensors together; ``layer`` clips every tensor by itself, so that
            the whole is at most C times the root of their number.
    """

    name: ClassVar[str] = "clipping"

    max_norm: Annotated[float, Range(0, 1e18, "(]"), "without clipping, leave defense=clipping out"]
    per: Literal["update", "layer"] = "update"

    def __post_init__(self) -> None:
        if self.per not in ("update", "layer"):
            raise ConfigurationError(f"defense.clipping.per={self.per}: choose update or layer")

    def describe(self) -> str | None:
        """See `Part.describe`."""
        of = "the whole update" if self.per == "update" else "each tensor"
        return f"{of} to a norm of {self.max_norm:g}"

    def facts(self) -> ClippingFacts:
        """See `Public.facts`."""
        return ClippingFacts(name=self.name, max_norm=self.max_norm, per=self.per)

    def on_update(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, DefenseReport]:
        """Return the clipped update; nothing is drawn."""
        whole = self.per == "update"
        tensors = (
            self._clipped(update.tensors)
            if whole
            else {n: self._clipped({n: t})[n] for n, t in update.tensors.items()}
        )
        before, after = norm_of(update.tensors), norm_of(tensors)
        report = DefenseReport(clip_factor=after / before if before > 0 else 1.0)
        return replace(update, tensors=tensors), report

    def _clipped(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        norm = norm_of(tensors)
        if norm <= self.max_norm or not math.isfinite(norm):
            return dict(tensors)
        return {name: tensor * (self.max_norm / norm) for name, tensor in tensors.items()}
