"""Trap weights: rows that fire for few images, each for others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from medpfl.errors import ConfigurationError
from medpfl.federated.malicious.base import ONE_UPDATE, Awaited, Planting
from medpfl.federated.malicious.firing import assumed_scale, expected_share, tuned_scale
from medpfl.federated.malicious.halves import Halves, trap_rows
from medpfl.federated.malicious.place import check_place
from medpfl.models.rows import features_at, shape_at
from medpfl.planted import Planted, PlantedTraps
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import DataSpec, ServerPayload

# Rows by which the scale is tuned.
_TUNED = 64

Many = Annotated[int, Range(1, 1_000_000)]
Above = Annotated[float, Range(0, 1e6, "(]")]


@checked("server")
@dataclass(frozen=True, kw_only=True)
class TrapServer:
    """Plant rows that fire for about one image of an update (Boenisch et al. 2021, Alg. 1).

    Of every row, a random half of the weights is negative, and the other half has the same
    magnitudes in another order, times a scale just below one: a row fires for the images that
    happen to be brighter where its weights are positive. Pixels are at least zero where the client
    normalises them, too: weights and biases undo that.

    Args:
        rows: K.
        firing_rate: how often a row is to fire for one image; None: once for the images behind an
            update, which leaves most rows with one image alone.
        scale: of the positive weights; None: tuned to the rate.
        sigma: standard deviation of the weights, were they not cut by sign; None: 1 over the root
            of their number, so that responses are about as large as pixels. Nothing but the rows'
            loudness depends on it.
        auxiliary: what the scale is tuned on: ``dataset``: public images, which the threat model
            must grant; ``normal``: pixels that are uniform on [0, 1].
        gain: how much the rows' mean response adds to every entry of the image.
        place: the module that rows are put ahead of; None: the whole network.
    """

    name: ClassVar[str] = "trap_weights"
    is_honest: ClassVar[bool] = False
    plants: ClassVar[type[Planted]] = PlantedTraps
    size: ClassVar[str] = "server.rows"

    rows: Many = 500
    firing_rate: Annotated[float, Range(0, 1, "()")] | None = None
    scale: Annotated[float, Range(0, 10, "[]")] | None = None
    sigma: Above | None = None
    auxiliary: Literal["normal", "dataset"] = "dataset"
    gain: Above = 1.0
    place: str | None = None

    def __post_init__(self) -> None:
        if self.auxiliary not in ("normal", "dataset"):
            raise ConfigurationError(f"server.auxiliary={self.auxiliary}: choose normal or dataset")

    @property
    def wants_public(self) -> bool:
        """See `Server.wants_public`."""
        return self.auxiliary == "dataset"

    def describe(self, awaited: Awaited) -> str | None:
        """See `Server.describe`."""
        images = awaited.images
        at = "ahead of the network" if self.place is None else f"ahead of {self.place}"
        told = f"{self.name}: {self.rows:,} rows {at}"
        if self.scale is not None:
            return f"{told}, scale {self.scale:g}"
        rate, by = self._rate(images), "public images" if self.wants_public else "an assumed law"
        return (
            f"{told}, to fire for {100 * rate:.2g} % of images by {by}; of {images} "
            f"image{'' if images == 1 else 's'} {100 * expected_share(rate, self.rows, images):.1f}"
            " % are expected to be alone in a row, were rows independent"
        )

    def entries(self, payload: ServerPayload, spec: DataSpec, awaited: Awaited) -> int:
        """See `Server.entries`."""
        return self.rows * (shape_at(payload, self.place, spec.shape).numel() + 1)

    def plant(
        self,
        payload: ServerPayload,
        spec: DataSpec,
        public: Tensor | None,
        generator: torch.Generator,
        awaited: Awaited = ONE_UPDATE,
    ) -> Planting:
        """See `Server.plant`."""
        entries = shape_at(payload, self.place, spec.shape).numel()
        seen = public if self.wants_public else None
        looked_at = None if seen is None else self._looked_at(payload, spec, seen)
        halves = Halves(
            rows=self.rows,
            scale=self._scale(looked_at, entries, awaited.images, generator),
            sigma=entries**-0.5 if self.sigma is None else self.sigma,
            constrained=True,
            gain=self.gain,
            place=self.place,
            pixels=self.place is None,
        )
        brightness = None if seen is None else seen.flatten(1).mean(1)
        sent, secret, firing = halves.plant(payload, spec, generator, looked_at, brightness)
        told = [check_place(payload, self.place, spec, entries)]
        if firing is not None:
            told.append(firing.describe(halves.scale, awaited.images))
            secret = replace(secret, share=firing.share(awaited.images))
        return Planting(sent, secret, measured=tuple(filter(None, told)))

    def _rate(self, images: int) -> float:
        """Return how often a row is to fire; of one image, every other row may."""
        return 1 / max(2, images) if self.firing_rate is None else self.firing_rate

    def _looked_at(self, payload: ServerPayload, spec: DataSpec, public: Tensor) -> Tensor:
        """Return what rows see of public images, `(A, D)`."""
        if self.place is None:
            return public.flatten(1)
        return features_at(payload, self.place, spec.normalise(public)).flatten(1).cpu()

    def _scale(
        self, looked_at: Tensor | None, entries: int, images: int, generator: torch.Generator
    ) -> float:
        if self.scale is not None:
            return self.scale
        rate = self._rate(images)
        if self.auxiliary == "normal":
            return assumed_scale(entries, rate)
        if looked_at is None:
            raise ValueError("public images are wanted: grant 'auxiliary'")
        # The very rows that are planted first: where there are no others, the rate is exact.
        again = torch.Generator().set_state(generator.get_state())
        first, second = trap_rows(min(self.rows, _TUNED), entries, again, constrained=True)
        return tuned_scale(-(looked_at @ first.T), looked_at @ second.T, rate)
