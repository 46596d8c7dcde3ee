"""Words for people; the codes stay in ``metrics.csv`` and ``run.json``."""

from __future__ import annotations

from collections.abc import Mapping

from medpfl.outcomes import Status

_ENDS: Mapping[str, str] = {
    Status.CONVERGED: "matched the update",
    Status.STALLED: "came to rest elsewhere",
    Status.OUT_OF_STEPS: "ran out of steps",
    Status.NON_FINITE: "broke down",
    Status.NO_GRADIENT: "sent no gradient",
    Status.UNDETERMINED: "left open by the update",
    Status.UNMATCHED: "left without a reconstruction",
}


def how_it_ended(status: str) -> str:
    """Return why an attack that did not succeed ended."""
    return _ENDS.get(status, status.replace("_", " "))


def endings(unsolved: Mapping[str, int]) -> str:
    """Return how many images ended how: ``8 sent no gradient, 2 ran out of steps``."""
    return ", ".join(f"{count} {how_it_ended(status)}" for status, count in unsolved.items())
