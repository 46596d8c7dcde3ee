"""The picture of a sweep: success rates and mean SSIM, a line a job."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from medpfl.report.figures import head_inches, new_figure, save_png, write_head
from medpfl.report.palette import GRID, INK, MUTED, PARTIAL, SUCCESS

_WIDTH = 9.0
_JOB_INCHES = 0.34
_BELOW = 0.95
_MOST_JOBS = 60
_LONGEST_LABEL = 44

Row = Mapping[str, Any]


def sweep_figure(path: Path, rows: Sequence[Row], labels: Sequence[str], *, title: str) -> bool:
    """Draw success rates with their intervals, and mean SSIM beside what guesses score.

    Args:
        path: the PNG to write.
        rows: the jobs, in order; those that measured nothing keep an empty line.
        labels: what tells the jobs apart.
        title: the picture's title.

    Returns:
        Whether there was anything to draw.
    """
    if not any(row.get("asr") is not None for row in rows):
        return False
    shown = rows[:_MOST_JOBS]
    caption = (
        "Left: share of the images that reach the SSIM threshold (dots), and that are at least "
        "recognisable (rings), with 95 % intervals. Right: mean SSIM; | an all-black guess, "
        "x the mean image."
    )
    if len(shown) < len(rows):
        caption += f"\nThe first {len(shown)} of {len(rows)} jobs."
    head = head_inches(caption, _WIDTH) + 0.1
    height = head + _BELOW + _JOB_INCHES * len(shown)
    figure = new_figure(_WIDTH, height)
    left, right = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(
        left=0.3, right=0.98, top=1 - head / height, bottom=0.55 / height, wspace=0.06
    )
    for line, row in enumerate(shown):
        _draw_rates(left, line, row)
        _draw_means(right, line, row)
    names = [_shortened(label) for label in labels[: len(shown)]]
    left.set(yticks=range(len(shown)), ylim=(len(shown) - 0.4, -0.6))
    for tick in left.set_yticklabels(names):
        tick.set_parse_math(False)
    left.set(xlabel="share of the images", xlim=(-0.03, 1.03))
    right.set(xlabel="mean SSIM", xlim=(min(-0.03, _lowest(shown) - 0.03), 1.03))
    for axes in (left, right):
        axes.grid(axis="x", color=GRID, linewidth=0.5)
        axes.tick_params(colors=MUTED, labelsize=8, length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    left.tick_params(axis="y", labelcolor=INK)
    write_head(figure, title, caption, synthetic=False)
    save_png(figure, path)
    return True


def _draw_rates(axes: Axes, line: int, row: Row) -> None:
    if row.get("asr") is None:
        axes.text(0.5, line, str(row["status"]), fontsize=8, color=MUTED, ha="center", va="center")
        return
    _interval(axes, line - 0.13, row, "asr", SUCCESS, filled=True)
    if row.get("leaked") is not None:
        _interval(axes, line + 0.13, row, "leaked", PARTIAL, filled=False)


def _interval(axes: Axes, y: float, row: Row, name: str, colour: str, *, filled: bool) -> None:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=colour, linewidth=1.3)
    face = colour if filled else "white"
    axes.plot([row[name]], [y], "o", color=colour, markerfacecolor=face, markersize=5)


def _draw_means(axes: Axes, line: int, row: Row) -> None:
    marks = (
        ("ssim_zeros_mean", "|", MUTED),
        ("ssim_mean_image_mean", "x", MUTED),
        ("ssim_mean", "o", SUCCESS),
    )
    for name, marker, colour in marks:
        value = row.get(name)
        if value is not None and math.isfinite(value):
            axes.plot([value], [line], marker, color=colour, markersize=6)


def _lowest(rows: Sequence[Row]) -> float:
    values = [row.get(name) for row in rows for name in ("ssim_mean", "ssim_zeros_mean")]
    return min((v for v in values if v is not None and math.isfinite(v)), default=0.0)


def _shortened(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 3]}..."
