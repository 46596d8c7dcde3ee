"""The words of the record: why a row ended, and what its reconstruction shows. Light to import."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Why a row ended, or that an image has none."""

    CONVERGED = "converged"
    STALLED = "stalled"
    OUT_OF_STEPS = "out_of_steps"
    NON_FINITE = "non_finite"
    NO_GRADIENT = "no_gradient"
    UNDETERMINED = "undetermined"
    """Converged, and yet the update leaves most of the image open."""
    UNMATCHED = "unmatched"
    """Of an image: fewer were handed in than are behind the update, and none was left for it."""


class Grade(StrEnum):
    """What a reconstruction shows, from most to least."""

    EXACT = "exact"
    DIAGNOSTIC = "diagnostic"
    RECOGNISABLE = "recognisable"
    NOTHING = "nothing"
