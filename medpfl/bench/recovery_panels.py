"""The share of images recovered by several attackers against the PSNR asked for, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from medpfl.image_score import ImageScore
from medpfl.metrics.recovery import ATTACK, Curve, curves_of
from medpfl.report.figures import head_inches, new_figure, save_png, write_head
from medpfl.report.palette import GRID, INK, MUTED, SERIES

_WIDTH, _PANEL, _BELOW = 9.6, 2.6, 0.85
_CAPTION = (
    "Each true image counts once, with the one read-out that is its own. Shaded: 95 % Wilson "
    "interval. Line of dots: the share expected to be alone in a bin. Grey: a black image, and, "
    "dashed, the mean of the update's own images; where these are near, a threshold says nothing."
)


@dataclass(frozen=True)
class Panel:
    """Attackers on the same updates.

    Args:
        title: of the panel.
        expected: the share that an imprint is expected to isolate.
        scores: by attacker, rows of ``metrics.csv``, at least one each.
    """

    title: str
    expected: float
    scores: Mapping[str, Sequence[ImageScore]]


def recovery_panels(path: Path, panels: Sequence[Panel], *, title: str, synthetic: bool) -> None:
    """Draw a panel each.

    Args:
        path: the PNG to write.
        panels: at least one.
        title: the picture's title.
        synthetic: whether the images are made up.
    """
    head = head_inches(_CAPTION, _WIDTH) + 0.3
    height = head + _PANEL + _BELOW
    figure = new_figure(_WIDTH, height)
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(
        left=0.065, right=0.985, top=1 - head / height, bottom=_BELOW / height, wspace=0.12
    )
    for axes, panel in zip(drawn, panels, strict=True):
        _draw(axes, panel)
    drawn[0].set_ylabel("share of the images", fontsize=8, color=INK)
    handles, names = drawn[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), fontsize=8, frameon=False)
    write_head(figure, title, _CAPTION, synthetic=synthetic)
    save_png(figure, path)


def _draw(axes: Axes, panel: Panel) -> None:
    curves = {name: _by_psnr(scores) for name, scores in panel.scores.items()}
    for colour, (name, curve) in zip(SERIES, curves.items(), strict=False):
        x = list(curve.thresholds)
        axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, curve.shares[ATTACK], color=colour, linewidth=1.8, label=name)
    guesses = next(iter(curves.values()))
    for guess, dashes in (("zeros", "-"), ("batch_mean", (0, (4, 2)))):
        axes.plot(
            guesses.thresholds, guesses.shares[guess], color=MUTED, linestyle=dashes, linewidth=1.2
        )
    axes.axhline(panel.expected, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.set(xlim=(0, 80), ylim=(-0.02, 1.02))
    axes.set_title(panel.title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel("PSNR above (dB)", fontsize=8, color=INK)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.grid(axis="y", color=GRID, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _by_psnr(scores: Sequence[ImageScore]) -> Curve:
    return next(curve for curve in curves_of(scores) if curve.measure == "psnr_db")
