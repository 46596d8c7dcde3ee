"""A comparison as it is printed, with what keeps it from being one of like with like."""

from __future__ import annotations

import math

from rich import box
from rich.table import Table
from rich.text import Text

from medpfl.compare.pairs import Comparison
from medpfl.compare.runs import Run
from medpfl.metrics.success import wilson
from medpfl.report.console import make_console
from medpfl.report.tables import format_interval, format_number, format_percent


def show(a: Run, b: Run, found: Comparison) -> None:
    """Print a comparison, and what keeps it from being one of like with like."""
    out = make_console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("")
    for heading in ("A", "B"):
        table.add_column(heading, justify="right")
    table.add_row("run", a.label, b.label)
    rates = (
        f"{format_percent(k / found.n)} {format_interval(*wilson(k, found.n))}"
        for k in found.successes
    )
    table.add_row("ASR, 95 % interval", *rates)
    table.add_row("rebuilt by this run alone", str(found.only_a), str(found.only_b))
    table.add_row("mean SSIM", *(format_number(value, 3) for value in found.ssim))
    out.print(Text(f"\n  {found.n} images in common", style="bold"))
    out.print(table)
    low, high = found.ssim_interval
    interval = "" if math.isnan(low) else f", 95 % interval [{low:+.3f}, {high:+.3f}]"
    out.print(f"  success, McNemar exact:  p = {found.p_value:.3g}, two-sided")
    out.print(f"  SSIM, A minus B:         {found.ssim_difference:+.3f}{interval} (bootstrap)")
    for note in _notes(a, b, found):
        out.print(Text(f"  note: {note}", style="yellow"))


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
