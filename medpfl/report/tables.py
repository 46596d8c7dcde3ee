"""Small shared helpers: numbers as text, Markdown and CSV tables."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

MISSING = "n/a"


def format_number(value: float | None, digits: int = 3) -> str:
    """Write a number with a fixed number of decimals.

    Args:
        value: the number; None and NaN mean that nothing was measured.
        digits: decimals, at least 0.

    Returns:
        The text, or ``n/a`` where nothing was measured.
    """
    return MISSING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def format_value(value: float | None) -> str:
    """Write a number of unknown size with four significant digits; ``n/a`` for None and NaN."""
    return MISSING if value is None or math.isnan(value) else f"{value:.4g}"


def format_percent(share: float | None) -> str:
    """Write a share in [0, 1] as a percentage with one decimal."""
    if share is None or math.isnan(share):
        return MISSING
    return f"{100 * share:.1f} %"


def format_interval(low: float | None, high: float | None) -> str:
    """Write the two ends of an interval of shares as percentages: ``[65.4, 82.3]``."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return f"[{MISSING}]"
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def format_rate(
    share: float, n: int, *, low: float | None = None, high: float | None = None
) -> str:
    """Write a rate with what it was counted over, and its interval where there is one.

    Args:
        share: the rate in [0, 1].
        n: how many were counted, at least 0.
        low: lower end of the interval, in [0, 1].
        high: upper end of the interval, in [0, 1].

    Returns:
        Text such as ``74.7 % [65.4, 82.3], 74 of 99``.
    """
    if n == 0 or math.isnan(share):
        return f"{MISSING}, 0 of {n}"
    interval = "" if low is None or high is None else f" {format_interval(low, high)}"
    return f"{format_percent(share)}{interval}, {round(share * n)} of {n}"


def format_seconds(seconds: float) -> str:
    """Write a duration in the unit a reader would choose: ``0.43 s``, ``5 min``, ``12 days``."""
    if math.isnan(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours / 24:,.0f} days"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table.

    Args:
        header: the column names.
        rows: the cells, each row as long as the header.

    Returns:
        The table, ending in a newline; pipes and line breaks in cells cannot break it.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(_markdown_cell(cell) for cell in line)} |\n" for line in lines)


def _markdown_cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def csv_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    r"""Write a CSV table; None becomes an empty cell.

    Args:
        header: the column names.
        rows: the cells, each row as long as the header.

    Returns:
        The table with ``\n`` line ends.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
