"""The figure of Tables I and II: success rates with their intervals, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from medpfl.metrics.rates import wilson
from medpfl.paper.reported import ROWS
from medpfl.paper.results import Estimate, JobResult
from medpfl.report.figures import head_inches, new_figure, save_both, write_head
from medpfl.report.palette import FAILURE, GRID, INK, MUTED, SUCCESS

_SERIES = {
    "reported": (MUTED, "s"),
    "paper protocol": (FAILURE, "o"),
    "rigorous": (SUCCESS, "D"),
}
_STEP = 0.22
_WIDTH = 9.0
_ROW_INCHES = 0.5


def dot_plot(stem: Path, results: Sequence[JobResult], *, title: str, note: str) -> dict[str, Path]:
    """Draw ASR and mean SSIM of every experiment, with 95 % intervals, as PNG and PDF.

    Args:
        stem: the files' path without suffix.
        results: the jobs, at least one; a job without numbers keeps its line, empty.
        title: the figure's title.
        note: how the sweep was shortened, if it was.

    Returns:
        The two files by name.
    """
    caption = (
        f"Dots: all attacked images; lines: 95 % intervals (Wilson; bootstrap).\n{note}".strip()
    )
    head = head_inches(caption, _WIDTH) + 0.1
    height = head + 0.85 + _ROW_INCHES * len(results)
    figure = new_figure(_WIDTH, height)
    left, right = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(
        left=0.27, right=0.98, top=1 - head / height, bottom=0.62 / height, wspace=0.06
    )
    for line, result in enumerate(results):
        rates, means = series(result)
        # The shares predict both: an exposed image has an SSIM of 1, the others of about 0.
        predicted = result.predicted if result.problem is None else None
        _draw_line(left, line, rates, predicted)
        _draw_line(right, line, means, predicted)
        if result.problem is not None:
            left.text(0.5, line, result.problem[:60], fontsize=7, color=MUTED, ha="center")
    names = [f"{ROWS[r.row].label if r.row in ROWS else r.row}, {r.dataset}" for r in results]
    left.set(xlabel="attack success rate", yticks=range(len(results)), yticklabels=names)
    left.set(xlim=(-0.03, 1.03), ylim=(len(results) - 0.5, -0.5))
    right.set(xlabel="mean SSIM", xlim=(-0.1, 1.03))
    for axes in (left, right):
        axes.grid(axis="x", color=GRID, linewidth=0.5)
        axes.tick_params(colors=MUTED, labelsize=8, length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    left.tick_params(axis="y", labelcolor=INK)
    predictions = any(r.problem is None and r.predicted is not None for r in results)
    shown = {name for result in results for name in series(result)[0]}
    _legend(left, shown=shown, predictions=predictions)
    write_head(figure, title, caption, synthetic=False)
    return save_both(figure, stem)


def series(result: JobResult) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Return success rates and mean SSIMs by the names of the table's columns."""
    rates: dict[str, Estimate] = {}
    means: dict[str, Estimate] = {}
    row = ROWS[result.row]
    told = row.reported.get(result.dataset)
    nan = float("nan")
    if told is not None:
        hits = round(told.asr * told.n)
        rates["reported"] = Estimate(told.asr, *wilson(hits, told.n), told.n)
        means["reported"] = Estimate(told.ssim, nan, nan, told.n)
    if result.problem is None:
        paper = f"ssim_paper_{row.protocol}"
        rates["paper protocol"] = result.rate(paper, threshold=0.9)
        rates["rigorous"] = result.rate("success")
        means["paper protocol"], means["rigorous"] = result.mean(paper), result.mean("ssim")
    return rates, means


def _draw_line(
    axes: Axes, line: int, estimates: dict[str, Estimate], predicted: float | None
) -> None:
    for place, (name, (colour, marker)) in enumerate(_SERIES.items()):
        estimate = estimates.get(name)
        if estimate is None or estimate.n == 0:
            continue
        y = line + (place - 1) * _STEP
        axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=1.4)
        axes.plot([estimate.value], [y], marker=marker, color=colour, markersize=5)
    if predicted is not None:
        axes.plot([predicted] * 2, [line - 0.38, line + 0.38], color=INK, linestyle=(0, (2, 2)))


def _legend(axes: Axes, *, shown: set[str], predictions: bool) -> None:
    for name, (colour, marker) in _SERIES.items():
        if name not in shown:
            continue
        axes.plot([], [], marker=marker, color=colour, markersize=5, linewidth=1.4, label=name)
    if predictions:
        axes.plot([], [], color=INK, linestyle=(0, (2, 2)), label="predicted by class shares")
    axes.figure.legend(
        *axes.get_legend_handles_labels(),
        loc="lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
