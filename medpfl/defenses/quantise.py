"""Quantisation: entries are rounded to a few levels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from medpfl.defenses.base import DefenseReport
from medpfl.defenses.wire import Coding
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import ClientUpdate, DefenseFacts

_SCALE_BYTES = 4  # a float32 a tensor


@dataclass(frozen=True, kw_only=True)
class QuantiseFacts(DefenseFacts):
    """What an attacker may know of `Quantise`.

    Args:
        bits: of an entry, its sign included.
        stochastic: see `Quantise`.
        levels: of magnitude, zero not counted.
    """

    bits: int
    stochastic: bool
    levels: int

    def step(self, quantised: Tensor) -> float:
        """Return the distance of the levels of a quantised tensor, 0 where all of it is zero.

        Args:
            quantised: as it was sent, with its scale. Where rounding was stochastic, it is read off
                the two nearest levels that occur: in a small tensor these may be further apart.
        """
        magnitudes = torch.unique(quantised.double().abs())
        largest = float(magnitudes.max()) if len(magnitudes) else 0.0
        if largest == 0:
            return 0.0
        if not self.stochastic:
            return largest / self.levels
        ends = torch.unique(torch.cat([magnitudes.new_zeros(1), magnitudes]))
        gaps = ends.diff()
        # What float32 makes of equal levels is no gap.
        return float(gaps[gaps > 1e-6 * largest].min())


@checked("defense.quantise")
@dataclass(frozen=True, kw_only=True)
class Quantise:
    """Send every entry in a few bits: its sign and one of `levels` equal steps.

    Deterministic: a tensor's largest magnitude is the last level, and entries go to the nearest.
    Stochastic (QSGD, Alistarh et al. 2017, Section 3.1): the tensor's Euclidean norm is the last
    level, and an entry between two of them goes to either, so that its mean is the entry itself.
    Codes are of fixed length; QSGD's Elias code is shorter where most of them are zero.

    Args:
        bits: of an entry, its sign included.
        stochastic: whether rounding is random.
    """

    name: ClassVar[str] = "quantise"

    bits: Annotated[int, Range(2, 16)] = 8
    stochastic: bool = True

    @property
    def levels(self) -> int:
        """Levels of magnitude, zero not counted."""
        return int(2 ** (self.bits - 1)) - 1

    def describe(self) -> str | None:
        """See `Part.describe`."""
        how = "stochastic (QSGD)" if self.stochastic else "to the nearest level"
        return f"{self.bits} bits an entry, {how}"

    def facts(self) -> QuantiseFacts:
        """See `Public.facts`."""
        return QuantiseFacts(
            name=self.name, bits=self.bits, stochastic=self.stochastic, levels=self.levels
        )

    def on_update(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, DefenseReport]:
        """Return the update with every tensor quantised by itself, decoded again."""
        tensors = {n: self._quantised(t, generator) for n, t in update.tensors.items()}
        coding = Coding(value_bits=self.bits, extra_bytes=_SCALE_BYTES * len(tensors))
        return replace(update, tensors=tensors), DefenseReport(coding=coding)

    def _quantised(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        wide = tensor.double()
        scale = wide.square().sum().sqrt() if self.stochastic else _largest(wide)
        if not float(scale) > 0:
            return tensor.clone()
        place = wide.abs() / scale * self.levels
        level = place + _uniform(place, generator) if self.stochastic else place + 0.5
        level = level.floor().clamp_max(self.levels)
        return (wide.sign() * level * scale / self.levels).to(tensor)


def _largest(tensor: Tensor) -> Tensor:
    return tensor.abs().amax() if tensor.numel() else tensor.new_zeros(())


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(
        like.shape, dtype=torch.float64, generator=generator, device=generator.device
    )
    return drawn.to(like)
