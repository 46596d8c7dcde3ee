"""The picture of a run of many rounds: what the model learns, and what its updates give away."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from medpfl.report.figures import head_inches, new_figure, save_png, write_head
from medpfl.report.palette import FAILURE, GRID, INK, MUTED, SERIES, SUCCESS
from medpfl.report.rounds_file import RoundScore

_WIDTH = 7.2
_LEFT, _RIGHT = 0.62, 1.5  # inches beside the panels; on the right stand the names of the lines
_GAP, _FOOT = 0.2, 0.5
_MARKED = 40  # rounds up to which each has a marker
_LETTER = 7.5
_STEPS = (1, 2, 5, 10)  # between the rounds that are named below the axis
_CURVES = (
    ("accuracy", "accuracy", SERIES[0], "-"),
    ("balanced_accuracy", "balanced accuracy", SERIES[1], (0, (4, 1.6))),
    ("auc", "AUC", SERIES[2], (0, (1, 1))),
)

OfRounds = Mapping[int, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """A part of the picture: its height in inches, and what draws it."""

    height: float
    draw: Callable[[Axes], None] = field(repr=False)


def rounds_figure(
    path: Path,
    rounds: Sequence[RoundScore],
    *,
    title: str,
    threshold: float,
    captured: Collection[int] = (),
    ssim: OfRounds | None = None,
    gradient_norm: OfRounds | None = None,
    synthetic: bool = False,
) -> None:
    """Draw utility over rounds and, below it, what was attacked in the captured ones.

    A panel is left out where there is nothing for it; values that are not finite leave a gap.

    Args:
        path: the PNG to write.
        rounds: the rows of ``rounds.csv``.
        title: the picture's title.
        threshold: the SSIM from which a reconstruction counts as a success.
        captured: rounds whose updates were attacked; those below count as well.
        ssim: for captured rounds the SSIM of each attacked image.
        gradient_norm: for captured rounds the norm of each attacked update, on a log axis.
        synthetic: whether the images are made up.

    Raises:
        ValueError: there is nothing to draw.
    """
    of_images, of_updates = _finite(ssim), _finite(gradient_norm)
    marked = sorted({*captured, *(ssim or {}), *(gradient_norm or {})})
    panels: list[_Panel] = []
    if rounds:
        panels.append(_Panel(height=2.2, draw=lambda axes: _draw_utility(axes, rounds, marked)))
    if of_images:
        panels.append(
            _Panel(height=1.9, draw=lambda axes: _draw_images(axes, of_images, threshold))
        )
    if of_updates:
        panels.append(_Panel(height=1.1, draw=lambda axes: _draw_norms(axes, of_updates)))
    if not panels:
        raise ValueError("rounds_figure: no rounds and no attacked images; nothing to draw")
    caption = _caption(rounds, marked, of_images, threshold)
    head = head_inches(caption, _WIDTH) + 0.05
    height = head + sum(panel.height + _GAP for panel in panels) - _GAP + _FOOT
    figure = new_figure(_WIDTH, height)
    first, last = _span(rounds, marked)
    top = height - head
    columns: list[Axes] = []
    for panel in panels:
        axes = figure.add_axes(
            (
                _LEFT / _WIDTH,
                (top - panel.height) / height,
                1 - (_LEFT + _RIGHT) / _WIDTH,
                panel.height / height,
            )
        )
        top -= panel.height + _GAP
        axes.set_xlim(first, last)
        _plain(axes)
        panel.draw(axes)
        axes.tick_params(labelbottom=panel is panels[-1])
        columns.append(axes)
    columns[-1].set_xlabel("round", fontsize=9, color=INK)
    figure.align_ylabels(columns)
    write_head(figure, title, caption, synthetic=synthetic)
    save_png(figure, path)


def _draw_utility(axes: Axes, rounds: Sequence[RoundScore], captured: Sequence[int]) -> None:
    numbers = np.array([score.round for score in rounds])
    labels: list[tuple[float, str, str]] = []
    for name, words, colour, dashes in _CURVES:
        values = np.array([getattr(score, name) for score in rounds], dtype=np.float64)
        finite = np.isfinite(values)
        if not finite.any():
            continue
        axes.plot(
            numbers,
            np.where(finite, values, np.nan),
            color=colour,
            linestyle=dashes,
            linewidth=1.6,
            marker="o" if len(rounds) <= _MARKED else None,
            markersize=3,
        )
        last = float(values[finite][-1])
        labels.append((last, f"{words} {last:.2f}", colour))
    foot = axes.get_xaxis_transform()
    axes.vlines(captured, 0, 0.045, color=INK, linewidth=1.2, transform=foot)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("global model", fontsize=9, color=INK)
    _name_lines(axes, labels)


def _draw_images(axes: Axes, ssim: OfRounds, threshold: float) -> None:
    width = _spread(ssim)
    reached: list[tuple[float, float]] = []
    missed: list[tuple[float, float]] = []
    for number, values in ssim.items():
        # side by side, in the order of the images, so that equal ones do not hide each other
        places = number + width * (np.arange(len(values)) - (len(values) - 1) / 2)
        for point in zip(places, values, strict=True):
            (reached if point[1] >= threshold else missed).append(point)
    for points, edge, face in ((missed, FAILURE, "none"), (reached, SUCCESS, SUCCESS)):
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=16, facecolors=face, edgecolors=edge, linewidths=0.8, zorder=3)
    axes.axhline(threshold, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    median = _draw_median(axes, ssim)
    low = min(min(values) for values in ssim.values())
    axes.set_ylim(min(-0.03, low - 0.03), 1.03)
    axes.set_ylabel("SSIM", fontsize=9, color=INK)
    _name_lines(
        axes,
        [(threshold, f"success from {threshold:g}", MUTED), (median, f"median {median:.2f}", INK)],
    )


def _draw_norms(axes: Axes, norms: OfRounds) -> None:
    positive = [value for values in norms.values() for value in values if value > 0]
    foot = min(positive) / 10 if positive else 1.0
    lifted = {number: [max(value, foot) for value in values] for number, values in norms.items()}
    for number, values in lifted.items():
        axes.scatter(
            [number] * len(values), values, s=10, color=SERIES[3], alpha=0.6, linewidths=0, zorder=3
        )
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    exponents = np.log10([value for values in lifted.values() for value in values])
    low = float(np.floor(exponents.min()))  # whole decades, so that two of them are named
    axes.set_ylim(10**low, 10 ** max(low + 1, float(np.ceil(exponents.max()))))
    median = _draw_median(axes, lifted)
    axes.set_ylabel("gradient norm", fontsize=8.5, color=INK)
    _name_lines(axes, [(median, f"median {median:.2g}", INK)])


def _draw_median(axes: Axes, values: OfRounds) -> float:
    """Draw the median of each round as a line; return the last one."""
    numbers = sorted(values)
    medians = [float(np.median(values[number])) for number in numbers]
    axes.plot(
        numbers,
        medians,
        color=INK,
        linewidth=1.6,
        marker="_" if len(numbers) == 1 else None,
        markersize=12,
        zorder=4,
    )
    return medians[-1]


def _name_lines(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write the names of lines right of the panel, each at its line's end or next to it."""
    step = (_LETTER + 2.5) / 72 / (axes.bbox.height / axes.figure.dpi)
    transform = axes.transData + axes.transAxes.inverted()
    wanted = sorted(
        (float(transform.transform((1.0, value))[1]), text, colour)
        for value, text, colour in labels
    )
    places: list[float] = []
    for place, _, _ in wanted:
        places.append(max(place, places[-1] + step) if places else max(place, 0.0))
    # what has been pushed out at the top comes down, and pushes in turn
    ceiling = 1.0
    for index in reversed(range(len(places))):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - step
    for place, (_, text, colour) in zip(places, wanted, strict=True):
        axes.text(
            1.015,
            place,
            text,
            transform=axes.transAxes,
            fontsize=_LETTER,
            color=colour,
            va="center",
        )


def _plain(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1, steps=_STEPS))


def _caption(
    rounds: Sequence[RoundScore], captured: Sequence[int], ssim: OfRounds, threshold: float
) -> str:
    lines = []
    if rounds:
        lines.append("Global model: on images that no client trains on; 0 is before any round.")
    if captured and rounds:
        lines[0] += f" Ticks: {_counted(len(captured), 'attacked round')}."
    if ssim:
        images = [value for values in ssim.values() for value in values]
        reached = sum(value >= threshold for value in images)
        lines.append(
            f"SSIM: a dot is an attacked image, a filled one reaches {threshold:g} "
            f"({reached} of {len(images)}); line: median."
        )
    return "\n".join(lines)


def _counted(number: int, things: str) -> str:
    return f"{number} {things}{'' if number == 1 else 's'}"


def _finite(values: OfRounds | None) -> dict[int, list[float]]:
    """Return the rounds in order with their finite values; rounds without any are left out."""
    kept = {
        number: [float(value) for value in (values or {})[number] if np.isfinite(value)]
        for number in sorted(values or {})
    }
    return {number: own for number, own in kept.items() if own}


def _span(rounds: Sequence[RoundScore], captured: Sequence[int]) -> tuple[float, float]:
    numbers = [*(score.round for score in rounds), *captured]
    low, high = min(numbers), max(numbers)
    room = max(0.5, 0.02 * (high - low))
    return low - room, high + room


def _spread(values: OfRounds) -> float:
    """Return how far apart images of one round are drawn, in rounds."""
    numbers = list(values)
    gap = min(np.diff(numbers), default=1)
    room = max(0.3, 0.03 * (numbers[-1] - numbers[0]))
    return float(min(0.5 * gap, room) / max(len(own) for own in values.values()))
