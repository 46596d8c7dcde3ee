"""What top-k and random-k have in common: their settings, and what may be known of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

from medpfl.defenses.selection import PER
from medpfl.errors import ConfigurationError
from medpfl.settings.ranges import Range
from medpfl.types import DefenseFacts

Fraction = Annotated[
    float, Range(0, 1, "()"), "a share such as 0.01; to send all or nothing, choose defense=none"
]


class _Sparse(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def fraction(self) -> float: ...
    @property
    def per(self) -> str: ...
    @property
    def error_feedback(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class SparseFacts(DefenseFacts):
    """What an attacker may know of `TopK` or `RandomK`; see there.

    Which entries were sent shows in the update itself: the others are zero.
    """

    fraction: float
    per: str
    error_feedback: bool

    @classmethod
    def of(cls, part: _Sparse) -> SparseFacts:
        """Return the facts of a part."""
        return cls(
            name=part.name,
            fraction=part.fraction,
            per=part.per,
            error_feedback=part.error_feedback,
        )


def check_per(key: str, value: str) -> None:
    """Raise a `ConfigurationError` where a setting is none of `PER`."""
    if value not in PER:
        raise ConfigurationError(f"{key}={value}: choose {' or '.join(PER)}")
