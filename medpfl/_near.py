"""The name that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str], *, below: str = "") -> str:
    """Return ``; did you mean <name>?`` for the known name nearest to this one, or a full stop.

    Args:
        name: what was asked for.
        known: what there is.
        below: what stands in front of all of these.
    """
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {below}{near[0]}?" if near else "."
