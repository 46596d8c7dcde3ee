"""The rows of "Client Security Alone Fails", as its authors ran them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from medpfl.federated.malicious.base import ONE_UPDATE, Awaited, Planting
from medpfl.federated.malicious.halves import Halves
from medpfl.models.rows import shape_at
from medpfl.planted import Planted, PlantedTraps
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import DataSpec, ServerPayload


@checked("server")
@dataclass(frozen=True, kw_only=True)
class MicServer:
    """Plant trap weights without the constraint on their signs, and with a scale far from one.

    Half of every row's weights is s ~ N(0, sigma^2), the other half -scale s: rows are random
    projections, and fire for about half of all images. The server looks at nothing beforehand.

    Args:
        rows: K: 128 for pictures and 500 for slices of volumes there.
        scale: of the other half.
        sigma: standard deviation of the weights.
        mu: every row's bias.
        gain: how much the rows' mean response adds to every entry of the image: 1 there.
    """

    name: ClassVar[str] = "mic"
    is_honest: ClassVar[bool] = False
    plants: ClassVar[type[Planted]] = PlantedTraps
    size: ClassVar[str] = "server.rows"
    wants_public: ClassVar[bool] = False

    rows: Annotated[int, Range(1, 1_000_000)] = 128
    scale: Annotated[float, Range(0, 10, "[]")] = 0.01
    sigma: Annotated[float, Range(0, 1e6, "(]")] = 0.5
    mu: Annotated[float, Range(-1e6, 1e6)] = 0.0
    gain: Annotated[float, Range(0, 1e6, "(]")] = 1.0

    def describe(self, awaited: Awaited) -> str | None:
        """See `Server.describe`."""
        return (
            f"{self.name}: {self.rows:,} rows ahead of the network, scale {self.scale:g}, "
            f"sigma {self.sigma:g}, no constraint on signs"
        )

    def entries(self, payload: ServerPayload, spec: DataSpec, awaited: Awaited) -> int:
        """See `Server.entries`."""
        return self.rows * (shape_at(payload, None, spec.shape).numel() + 1)

    def plant(
        self,
        payload: ServerPayload,
        spec: DataSpec,
        public: Tensor | None,
        generator: torch.Generator,
        awaited: Awaited = ONE_UPDATE,
    ) -> Planting:
        """See `Server.plant`."""
        halves = Halves(
            rows=self.rows,
            scale=self.scale,
            sigma=self.sigma,
            constrained=False,
            gain=self.gain,
            bias=self.mu,
        )
        sent, secret, _ = halves.plant(payload, spec, generator, None, None)
        return Planting(sent, secret)
