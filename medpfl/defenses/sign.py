"""Signs alone are sent, in one bit each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from medpfl.defenses.compression import Compression
from medpfl.defenses.wire import Coding
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.types import DefenseFacts

_SCALE_BYTES = 4  # a float32 a tensor


@dataclass(frozen=True, kw_only=True)
class SignFacts(DefenseFacts):
    """What an attacker may know of `Sign`; see there."""

    scale: str
    error_feedback: bool


@checked("defense.sign")
@dataclass(frozen=True, kw_only=True)
class Sign(Compression):
    """Send the sign of every entry (signSGD, Bernstein et al. 2018); of zero, zero.

    Args:
        scale: ``mean``: every tensor's signs are multiplied by the mean magnitude of its entries
            that are not zero, which is nearest to it (Seide et al. 2014; Karimireddy et al. 2019);
            ``none``: they are sent as -1 and 1.
        error_feedback: see `Compression`; with ``scale=mean`` alone.
    """

    name: ClassVar[str] = "sign"

    scale: Literal["mean", "none"] = "mean"
    error_feedback: bool = False

    def __post_init__(self) -> None:
        if self.scale not in ("mean", "none"):
            raise ConfigurationError(f"defense.sign.scale={self.scale}: choose mean or none")
        if self.error_feedback and self.scale == "none":
            raise ConfigurationError(
                "defense.sign.error_feedback=true: what is left over signs without their size only "
                "grows. Choose defense.sign.scale=mean, or error_feedback=false"
            )

    def describe(self) -> str | None:
        """See `Part.describe`."""
        size = " times its tensor's mean magnitude" if self.scale == "mean" else ""
        kept = ", the error kept for later rounds" if self.error_feedback else ""
        return f"of each entry{size}{kept}"

    def facts(self) -> SignFacts:
        """See `Public.facts`."""
        return SignFacts(name=self.name, scale=self.scale, error_feedback=self.error_feedback)

    def compress(
        self, tensors: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Coding]:
        """See `Compression.compress`; nothing is drawn."""
        signs = {name: tensor.sign() for name, tensor in tensors.items()}
        some_zero = any(bool((sign == 0).any()) for sign in signs.values())
        bits = 2 if some_zero else 1  # a third value takes a second bit
        if self.scale == "none":
            return signs, Coding(value_bits=bits)
        scaled = {n: (sign * _mean_magnitude(tensors[n])).to(sign) for n, sign in signs.items()}
        return scaled, Coding(value_bits=bits, extra_bytes=_SCALE_BYTES * len(tensors))


def _mean_magnitude(tensor: Tensor) -> float:
    magnitudes = tensor.double().abs()
    count = int((magnitudes > 0).sum())
    return float(magnitudes.sum()) / count if count else 0.0
