"""A comparison as it is printed, with what keeps it from being one of like with like."""

from __future__ import annotations

import math

from rich import box
from rich.table import Table
from rich.text import Text

from medpfl.compare.pairs import Comparison
from medpfl.compare.runs import Run
from medpfl.compare.settings import differences
from medpfl.metrics.rates import wilson
from medpfl.outcomes import Grade
from medpfl.report.console import make_console
from medpfl.report.palette import WARNING_STYLE
from medpfl.report.tables import format_interval, format_number, format_percent, format_value


def show(a: Run, b: Run, found: Comparison) -> None:
    """Print a comparison, and what keeps it from being one of like with like."""
    out = make_console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("")
    for heading in ("A", "B"):
        table.add_column(heading, justify="right")
    table.add_row("run", *_labels(a, b))
    rates = (
        f"{format_percent(k / found.n)} {format_interval(*wilson(k, found.n))}"
        for k in found.successes
    )
    table.add_row("ASR, 95 % interval", *rates)
    leaked = [_recognisable(run, found) for run in (a, b)]
    if None not in leaked:
        table.add_row("at least recognisable", *(str(text) for text in leaked))
    table.add_row("rebuilt by this run alone", str(found.only_a), str(found.only_b))
    table.add_row("mean SSIM", *(format_number(value, 3) for value in found.ssim))
    for name, own in found.measures.items():
        over = "" if own.n == found.n else f", over {own.n}"
        table.add_row(f"mean {name}{over}", *map(format_value, own.means))
    out.print(Text(f"\n  {found.n} images in common", style="bold"))
    out.print(table)
    out.print(f"  success, McNemar exact:  p = {found.p_value:.3g}, two-sided")
    interval = _interval(*found.ssim_interval, ".3f")
    out.print(f"  SSIM, A minus B:         {found.ssim_difference:+.3f}{interval} (bootstrap)")
    for name, own in found.measures.items():
        if own.n:
            interval = _interval(*own.interval, ".4g")
            told = f"  {name + ', A minus B:':<25}{own.difference:+.4g}{interval} (bootstrap)"
            out.print(told, soft_wrap=True)
    for line in differences(a.settings, b.settings):
        out.print(f"  {line}", soft_wrap=True)
    for note in _notes(a, b, found):
        out.print(Text(f"  note: {note}", style=WARNING_STYLE))


def _interval(low: float, high: float, form: str) -> str:
    return "" if math.isnan(low) else f", 95 % interval [{low:+{form}}, {high:+{form}}]"


def _labels(a: Run, b: Run) -> tuple[str, str]:
    """Return the runs' names, with their networks where they would be the same."""
    if a.label != b.label:
        return a.label, b.label
    return f"{a.label}, {a.network}", f"{b.label}, {b.network}"


def _recognisable(run: Run, found: Comparison) -> str | None:
    """Return the share of the common images that are at least recognisable; None if ungraded."""
    if "grade" not in run.scores:
        return None
    grades = run.scores.loc[list(found.images), "grade"]
    if not grades.isin([str(grade) for grade in Grade]).all():
        return None
    count = int((grades != Grade.NOTHING).sum())
    return f"{format_percent(count / found.n)} {format_interval(*wilson(count, found.n))}"


def _notes(a: Run, b: Run, found: Comparison) -> list[str]:
    notes = [
        f"{name} has {len(run.scores) - found.n} more images, left out"
        for name, run in (("A", a), ("B", b))
        if len(run.scores) > found.n
    ]
    notes += [
        f"{name} is {run.status}: images that ended early are the easy ones"
        for name, run in (("A", a), ("B", b))
        if run.status != "complete"
    ]
    if a.preprocess != b.preprocess:
        notes.append("the runs preprocess differently: the pictures are not quite the same")
    return notes
