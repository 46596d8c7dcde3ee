"""Whether a run's updates have bounds, and how long these take, before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from medpfl.bounds.release import NoBound
from medpfl.bounds.updates import BoundUpdates
from medpfl.experiment import Experiment
from medpfl.report.tables import format_seconds
from medpfl.types import Capture

_LONG = 60.0


@dataclass(frozen=True, kw_only=True)
class BoundPlan:
    """What is said of bounds.

    Args:
        words: before the run; None where that goes without saying.
        note: beside its results: why bounds are left out, or some of them; None where none are.
    """

    words: str | None = None
    note: str | None = None


def plan_bounds(experiment: Experiment) -> BoundPlan:
    """Look at one update as it is going to be captured, and at what bounds it."""
    bounds = experiment.bounds
    if bounds is None:
        return BoundPlan()
    if experiment.source.describe().undefended and not bounds.is_asked_for:
        return BoundPlan()
    sample = experiment.source.sample()
    found = bounds.applies(sample)
    if isinstance(found, NoBound):
        return BoundPlan(words=f"none: {found.reason}", note=found.reason)
    clipped = ", clipped first" if found.before else ""
    left_out = bounds.left_out(sample)
    kinds = "van Trees, Cramer-Rao" if left_out is None else "Cramer-Rao alone"
    lines = [f"{kinds}: {found.law} on every entry{clipped}"]
    if left_out is not None:
        lines.append(f"without van Trees: {left_out}")
    seconds = _seconds(experiment, bounds, sample)
    if seconds > _LONG:
        lines.append(f"about {format_seconds(seconds)}; bounds=none does without")
    return BoundPlan(words="\n".join(lines), note=left_out)


def _seconds(experiment: Experiment, bounds: BoundUpdates, sample: Capture) -> float:
    """Return how long all bounds take, from a few products."""
    captures = len(experiment.source.plan)
    rounds = len({planned.round for planned in experiment.source.plan})
    classes = experiment.data.spec.num_classes
    several = any(planned.images > 1 for planned in experiment.source.plan)
    sets = captures if several else min(captures, classes * rounds)
    began = perf_counter()
    products = bounds.try_products(sample)
    each = (perf_counter() - began) / products
    return each * bounds.products(sample, captures=captures, sets=sets)
