"""Bounds in words: what no attack exceeds, beside what the attack reached."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from medpfl.report.tables import format_number, format_value

if TYPE_CHECKING:
    from medpfl.metrics.bounded import BoundSummary


def in_words(bounds: BoundSummary) -> str:
    """Return the bounds of a run in lines."""
    means, note = bounds.means, bounds.note
    if not means:
        return f"none: {note}"
    attack = f"attack {_in_db(bounds.attack_mse)}"
    if "bound_mse" in means:
        known = f"{means['bound_mse']:.2e} +- {means['bound_mse_error']:.0e}"
        lines = [
            f"{attack}, {_exceeds(means['bound_mse'])} on average: van Trees",
            f"mean squared error {known}; {_in_db(means['prior_mse'])} without any update",
        ]
    else:
        lines = [f"{attack}; van Trees left out: {note}"]
    unbiased = f"unbiased attackers: {_in_db(means['cramer_rao_mse'])} at most (Cramer-Rao)"
    rank = format_number(means["effective_rank"], 0)
    told = f"Fisher loss {format_value(means['fisher_loss'])}, effective rank {rank}"
    return "\n".join([*lines, f"{unbiased}; {told}"])


def _exceeds(mse: float) -> str:
    return f"no attack exceeds {_in_db(mse)}" if mse > 0 else "nothing is known to bound it"


def _in_db(mse: float | None) -> str:
    """Return a mean squared error of pixels in [0, 1] in decibels."""
    if mse is None or math.isnan(mse):
        return "n/a"
    return "inf dB" if mse <= 0 else f"{-10 * math.log10(mse):.1f} dB"
