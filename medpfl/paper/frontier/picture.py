"""The frontier as a picture: utility against what leaks, a curve a defense."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medpfl.paper.frontier.choice import LARGEST_ASR, Corner, efficient
from medpfl.paper.frontier.points import Leakage, Point
from medpfl.paper.results import Estimate
from medpfl.report.figures import head_inches, new_figure, save_both, write_head
from medpfl.report.palette import GRID, INK, MUTED, SERIES

_WIDTH, _PANELS, _LEGEND = 10.2, 4.3, 1.9
# Nine markers and four colours: 36 curves before two look alike.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_NAIVE, _ADAPTIVE, _FRONTIER = (0, (4, 2)), "-", "#b9b9b9"
_LEAST_SPAN = 0.4
Measure = Callable[[Leakage], Estimate]


def picture(
    stem: Path, points: Sequence[Point], *, title: str, caption: str, synthetic: bool
) -> dict[str, Path]:
    """Draw balanced accuracy against ASR, and against identification, as PNG and PDF.

    Args:
        stem: the files' path without suffix.
        points: of one dataset, the points of a curve in the order of its strength.
        title: the figure's title.
        caption: what stands below it.
        synthetic: whether the images are drawn.

    Returns:
        The two files by suffix; none where no point has a utility and an attack.
    """
    shown = [p for p in points if p.attacks and math.isfinite(p.accuracy.value)]
    if not shown:
        return {}
    head = head_inches(caption, _WIDTH) + 0.1
    figure = new_figure(_WIDTH, head + _PANELS)
    left, right = figure.subplots(1, 2, sharey=True)
    styles = _styles(shown)
    for axes, measure in ((left, _asr), (right, _top1)):
        _draw(axes, shown, styles, measure)
    left.axvline(LARGEST_ASR, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    left.set(xlabel="attack success rate: SSIM of at least 0.9", ylabel="balanced accuracy")
    left.set_ylim(*_around([p.accuracy for p in shown]))
    right.set(xlabel="identification: the original comes first")
    chances = [a.identification.top1_chance for p in shown for a in p.attacks if a.identification]
    if chances:
        right.axvline(max(chances), color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=0.07,
        right=1 - _LEGEND / _WIDTH,
        top=1 - head / height,
        bottom=0.5 / height,
        wspace=0.06,
    )
    _legend(figure, styles)
    write_head(figure, title, caption, synthetic=synthetic)
    return save_both(figure, stem)


def _around(accuracies: Sequence[Estimate]) -> tuple[float, float]:
    """Return limits of the axis: not so near that differences of a percent look like many."""
    low = min(a.low for a in accuracies) - 0.05
    high = max(a.high for a in accuracies) + 0.05
    missing = max(0.0, _LEAST_SPAN - (high - low)) / 2
    return low - missing, high + missing


def _asr(attack: Leakage) -> Estimate:
    return attack.asr


def _top1(attack: Leakage) -> Estimate:
    return attack.top1


def _styles(points: Sequence[Point]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of every curve; what is not defended is a black star."""
    defended = [d for d in dict.fromkeys(p.defense for p in points) if d != "none"]
    found = {
        name: (SERIES[place % len(SERIES)], _MARKERS[place % len(_MARKERS)])
        for place, name in enumerate(defended)
    }
    return (
        {"none": (INK, "*"), **found} if len(defended) < len({p.defense for p in points}) else found
    )


def _draw(
    axes: Axes, points: Sequence[Point], styles: dict[str, tuple[str, str]], measure: Measure
) -> None:
    corners = efficient(
        [Corner(max(measure(a).value for a in p.attacks), p.accuracy.value) for p in points]
    )
    if corners:
        axes.step(
            [*(c.leakage for c in corners), 1.03],
            [*(c.utility for c in corners), corners[-1].utility],
            where="post",
            color=_FRONTIER,
            linewidth=5,
            solid_capstyle="butt",
            zorder=1,
        )
    for defense, style in styles.items():
        own = [p for p in points if p.defense == defense]
        _curve(axes, [(p, p.naive) for p in own], style, measure, adaptive=False)
        _curve(axes, [(p, p.adaptive) for p in own], style, measure, adaptive=True)
    axes.set(xlim=(-0.03, 1.03))
    axes.grid(color=GRID, linewidth=0.5)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _curve(
    axes: Axes,
    pairs: Sequence[tuple[Point, Leakage | None]],
    style: tuple[str, str],
    measure: Measure,
    *,
    adaptive: bool,
) -> None:
    """Draw one attacker's curve over the points of a defense, intervals in pale lines."""
    colour, marker = style
    known = [(p, measure(a)) for p, a in pairs if a is not None]
    known = [(p, found) for p, found in known if found.n]
    for point, found in known:
        y = point.accuracy
        axes.plot([found.low, found.high], [y.value] * 2, color=colour, alpha=0.25, linewidth=1)
        axes.plot([found.value] * 2, [y.low, y.high], color=colour, alpha=0.25, linewidth=1)
    axes.plot(
        [found.value for _, found in known],
        [p.accuracy.value for p, _ in known],
        color=colour,
        linestyle=_ADAPTIVE if adaptive else _NAIVE,
        linewidth=1.4,
        marker=marker,
        markersize=9 if marker == "*" else 5.5,
        # An open marker around a full one: where both attackers got the same, both are seen.
        markerfacecolor=colour if adaptive else "none",
        markeredgewidth=1.1,
        zorder=3 if adaptive else 4,
        clip_on=False,
    )


def _legend(figure: Figure, styles: dict[str, tuple[str, str]]) -> None:
    """Put the legend beside the panels, where no curve is."""
    handles = [
        Line2D([], [], color=colour, marker=marker, linewidth=1.4, markersize=6, label=name)
        for name, (colour, marker) in styles.items()
    ]
    handles += [
        Line2D([], [], color=INK, linestyle=_ADAPTIVE, label="adaptive attacker"),
        Line2D([], [], color=INK, linestyle=_NAIVE, label="naive attacker"),
        Line2D([], [], color=_FRONTIER, linewidth=5, label="efficient"),
        Line2D([], [], color=MUTED, linestyle=(0, (1, 2)), linewidth=0.8, label="5 %; chance"),
    ]
    figure.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1 - (_LEGEND - 0.1) / _WIDTH, 0.45),
        fontsize=8,
        frameon=False,
    )
