"""Figures 3 to 5: how a reconstruction comes about, iterations across, images down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.text import Text
from torch import Tensor

from medpfl.paper.reported import ROWS
from medpfl.paper.results import JobResult, failures
from medpfl.report.console import make_console
from medpfl.report.figures import (
    as_picture,
    evenly_spread,
    head_inches,
    new_figure,
    save_both,
    write_head,
)
from medpfl.report.palette import ERROR_STYLE, FAILURE, GRID, INK, MUTED, SUCCESS
from medpfl.report.record import VictimRecord, load_victim
from medpfl.types import Trace

COLUMNS = 10
_CELL = 0.92
_THRESHOLD = 0.9


@dataclass(frozen=True, kw_only=True)
class ProgressFigure:
    """Intermediate reconstructions, as in the papers: iterations across, images down.

    Args:
        name: file name, such as ``figure3``.
        title: the figure's title.
        images: images of each job that are shown, those rebuilt best first.
        curves: whether to draw the objective over the iterations below.
    """

    name: str
    title: str
    images: int = 3
    curves: bool = False

    def make(self, results: Sequence[JobResult], folder: Path, *, note: str) -> Mapping[str, Path]:
        """See `Product.make`."""
        shown = [(r, v) for r in results for v in best_victims(r, self.images)]
        out = make_console()
        out.print(Text(f"\n  {self.title}", style="bold"))
        for result in results:
            if result.problem is not None:
                out.print(Text(f"  {result.row}, {result.dataset}: {result.problem}"))
        for line in failures(results):
            out.print(Text(f"  {line}", style=ERROR_STYLE), soft_wrap=True)
        if not shown:
            return {}
        return _draw(self, results, shown, folder / self.name, note)


def best_victims(result: JobResult, most: int) -> list[VictimRecord]:
    """Return a job's victims that left a trace, those of highest SSIM first, at most so many."""
    if result.problem is not None:
        return []
    files = sorted((result.folder / "reconstructions").glob("*.npz"))
    traced = [v for v in map(load_victim, files) if v.trace is not None and len(v.trace.steps) > 1]
    return sorted(traced, key=lambda v: -v.scores[0].ssim)[:most]


def picked_points(trace: Trace) -> list[int]:
    """Return the places in a trace to show: evenly spread, first and last included."""
    return evenly_spread(len(trace.steps), COLUMNS)


def _draw(
    product: ProgressFigure,
    results: Sequence[JobResult],
    shown: Sequence[tuple[JobResult, VictimRecord]],
    stem: Path,
    note: str,
) -> dict[str, Path]:
    width = 1.5 + _CELL * (COLUMNS + 1)
    grid_height = (_CELL + 0.22) * len(shown)
    curves_height = 2.2 if product.curves else 0.0
    caption = _caption(results, shown, note)
    head = head_inches(caption, width) + 0.2
    height = head + grid_height + curves_height
    figure = new_figure(width, height)
    for line, (result, victim) in enumerate(shown):
        top = head + line * (_CELL + 0.22)
        _draw_line(figure, result, victim, top, width, height)
    if product.curves:
        axes = figure.add_axes((0.09, 0.5 / height, 0.88, (curves_height - 0.75) / height))
        _draw_objectives(axes, shown)
    write_head(figure, product.title, caption, synthetic=False)
    return save_both(figure, stem)


def _draw_line(
    figure: Figure,
    result: JobResult,
    victim: VictimRecord,
    top: float,
    width: float,
    height: float,
) -> None:
    trace, score = victim.trace, victim.scores[0]
    if trace is None:
        return
    solved = score.ssim >= _THRESHOLD
    colour = SUCCESS if solved else FAILURE
    label = ROWS[result.row].label if result.row in ROWS else result.row
    name = score.image_id.rpartition("/")[2][-18:]
    figure.text(
        0.12 / width,
        1 - (top + _CELL / 2) / height,
        "\n".join([*label.split(", "), name, f"SSIM {score.ssim:.3f}"]),
        fontsize=7,
        color=INK,
        va="center",
    ).set_parse_math(False)
    places = picked_points(trace)
    pictures = [trace.inputs[place, 0] for place in places] + [victim.original[0]]
    heads = [f"{int(trace.steps[place])}" for place in places] + ["original"]
    for column, (picture, head) in enumerate(zip(pictures, heads, strict=True)):
        left = (1.45 + column * _CELL) / width
        box = (left, 1 - (top + _CELL) / height, (_CELL - 0.06) / width, (_CELL - 0.06) / height)
        axes = figure.add_axes(box)
        last = column == len(places) - 1
        _show(axes, picture, head, colour if last else GRID, 1.8 if last else 0.6)


def _show(axes: Axes, picture: Tensor, head: str, edge: str, width: float) -> None:
    pixels = as_picture(picture)
    smooth = "nearest" if max(pixels.shape) <= 128 else "antialiased"
    axes.imshow(pixels, cmap="gray", vmin=0.0, vmax=1.0, interpolation=smooth)
    axes.set(xticks=[], yticks=[])
    axes.set_title(head, fontsize=7, color=MUTED, pad=2)
    for spine in axes.spines.values():
        spine.set(color=edge, linewidth=width)


def _draw_objectives(axes: Axes, shown: Sequence[tuple[JobResult, VictimRecord]]) -> None:
    colours = dict(zip(dict.fromkeys(r.row for r, _ in shown), (SUCCESS, FAILURE), strict=False))
    for result, victim in shown:
        if victim.trace is None:
            continue
        axes.plot(
            victim.trace.steps.numpy(),
            victim.trace.objective.numpy(),
            color=colours.get(result.row, MUTED),
            linewidth=1.0,
            label=ROWS[result.row].label,
        )
    axes.set(yscale="log", ylabel="objective", xlabel="optimiser step")
    axes.grid(color=GRID, linewidth=0.5)
    axes.tick_params(which="both", colors=MUTED, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    alone = dict(zip(labels, handles, strict=True))
    axes.legend(alone.values(), alone.keys(), fontsize=8, frameon=False)


def _caption(
    results: Sequence[JobResult], shown: Sequence[tuple[JobResult, VictimRecord]], note: str
) -> str:
    attacked = sum(len(r.scores) for r in results)
    solved = sum(int(r.scores["success"].sum()) for r in results if r.problem is None)
    lacking = " ".join(f"{ROWS[r.row].label}: {r.problem}." for r in results if r.problem)
    return (
        f"Above each picture: the optimiser step. The {len(shown)} best of {attacked} attacked "
        f"images; {solved} of {attacked} reach SSIM {_THRESHOLD:g} (blue frame).\n{lacking} {note}"
    ).strip()
