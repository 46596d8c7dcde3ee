"""Real numbers as elements of a ring, where sums are exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medpfl.defenses.secure_aggregation.masks import Ring
from medpfl.errors import ConfigurationError

# Entries that are worked on together, so that none of the steps' copies is as large as an update.
_AT_ONCE = 2**22
_PLACE = "defense.secure_aggregation"


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Multiples of a step within [-clip_range, clip_range], modulo 2^bits.

    Args:
        clip_range: largest size of an entry, positive, in the update's own unit.
        value_bits: bits of one entry, its sign included, 2 to 44; float64 rounds to the nearest
            of so many exactly.
        bits: 32 or 64.
    """

    clip_range: float
    value_bits: int
    bits: int

    @property
    def levels(self) -> int:
        """The steps from zero to `clip_range`."""
        return int(2 ** (self.value_bits - 1) - 1)

    @property
    def step(self) -> float:
        """The quantisation step, in the update's unit."""
        return self.clip_range / self.levels

    @property
    def capacity(self) -> int:
        """The largest sum of weights under which no sum leaves the ring; 0 where there is none."""
        return self._largest // self.levels

    @property
    def _largest(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    def check(self, weights: Sequence[int]) -> None:
        """Refuse clients whose weighted sum could leave the ring, whatever they send.

        Args:
            weights: examples of each client.

        Raises:
            ConfigurationError: it could.
        """
        total = sum(weights)
        if total <= self.capacity:
            return
        needed = (total * self.levels).bit_length() + 1
        fitting = (self._largest // total + 1).bit_length()
        shorter = f"value_bits={fitting} fits" if fitting >= 2 else "no value_bits fits"
        wider = "" if self.bits == 64 or needed > 64 else ", bits=64 too"
        raise ConfigurationError(
            f"{_PLACE}.bits={self.bits}: entries in [-{self.clip_range:g}, {self.clip_range:g}] of "
            f"value_bits={self.value_bits}, summed over {len(weights)} clients with {total:,} "
            f"examples, need {needed} bits and would wrap round: {shorter}{wider}"
        )

    def encode(self, values: Tensor, weight: int) -> tuple[Ring, int]:
        """Return weight times the nearest multiples of the step, and how many entries were clipped.

        Args:
            values: `(D,)` floating-point, finite.
            weight: examples behind them.

        Returns:
            `(D,)` uint32 or uint64, negative numbers as their complement; the number of entries
            beyond the range, which count as its end.
        """
        encoded: Ring = np.empty(len(values), np.uint32 if self.bits == 32 else np.uint64)
        clipped = 0
        for first in range(0, len(values), _AT_ONCE):
            exact = values[first : first + _AT_ONCE].detach().to("cpu", torch.float64)
            clipped += int((exact.abs() > self.clip_range).sum())
            within = exact.clamp(-self.clip_range, self.clip_range)
            steps = (within * (self.levels / self.clip_range)).round().to(torch.int64)
            steps.clamp_(-self.levels, self.levels)  # the quotient above is rounded, too
            unsigned = (steps * weight).numpy().view(np.uint64)
            encoded[first : first + len(unsigned)] = unsigned.astype(encoded.dtype, copy=False)
        return encoded, clipped

    def decode(self, total: Ring) -> Tensor:
        """Return a sum of encoded entries as real numbers.

        Args:
            total: `(D,)` as `encode` gives them, added up within `capacity`.

        Returns:
            `(D,)` float64; sums beyond 2^53 steps are rounded as float64 rounds.
        """
        return torch.from_numpy(signed(total)).double() * self.step


def signed(total: Ring) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return ring elements as the integers in [-2^(k-1), 2^(k-1)) that they stand for, int64."""
    integers = total.view(np.int32 if total.dtype == np.uint32 else np.int64)
    return integers.astype(np.int64)
