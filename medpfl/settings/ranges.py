"""Bounds of numbers, stated where a setting is declared: ``lr: Annotated[float, Range(0, 1)]``.

Texts beside the range are advice, for the message of a value outside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Args:
        low: its lower end.
        high: its upper end: generous, but none for which a run would take years or overflow; whole
            numbers beyond 2^63 are too large for torch where they stand for real ones, too.
        ends: which ends belong to it, as intervals are written: ``(]`` leaves the lower one out.
    """

    low: float
    high: float
    ends: Literal["[]", "(]", "[)", "()"] = "[]"

    def __contains__(self, value: float) -> bool:
        """Tell whether a number lies within; NaN never does."""
        above = self.low < value if self.ends[0] == "(" else self.low <= value
        below = value < self.high if self.ends[1] == ")" else value <= self.high
        return above and below

    def __str__(self) -> str:
        """Return the interval in words that go on after "must be"."""
        if self.ends[0] == "[":
            above = f"at least {_number(self.low)}"
        else:
            above = "positive" if self.low == 0 else f"above {_number(self.low)}"
        return f"{above} and {'at most' if self.ends[1] == ']' else 'below'} {_number(self.high)}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


Seed = Annotated[int, Range(-(2**63), 2**63 - 1)]
"""The seeds that torch takes without wrapping them round."""
Steps = Annotated[int, Range(1, 10_000_000)]
"""How often something is done, one time after another."""
Rate = Annotated[float, Range(0, 1e6, "(]")]
"""A step length, or a factor of one."""
Tolerance = Annotated[float, Range(0, 1e18)]
"""What an objective, or a change, is compared with."""
Weight = Annotated[float, Range(0, 1e12)]
"""Of a term in an objective."""
NO_NOISE = "without noise, choose noise=none"
Scale = Annotated[float, Range(0, 1e18, "(]"), NO_NOISE]
"""Of noise; float32 holds it."""
Delta = Annotated[float, Range(1e-12, 1, "[)")]
"""How probably an epsilon may fail; below 1e-12 the numerical accountants are blind."""
Candidates = Annotated[int, Range(2, 1_000_000_000)]
"""Among how many images an attacker picks one."""
Budget = Annotated[float, Range(1e-3, 1e6)]
"""An epsilon that is aimed at."""
NoiseMultiplier = Annotated[float, Range(1e-3, 1e6)]
"""The scale of noise over the norm that contributions are clipped to."""
SampleRate = Annotated[float, Range(0, 1, "(]")]
"""The probability with which a contribution takes part."""
