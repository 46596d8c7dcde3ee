"""The picture of read-outs: how many images they recover, whatever that is taken to mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from medpfl._atomic import write_text
from medpfl.image_score import ImageScore
from medpfl.metrics.recovery import ATTACK, GUESSES, Curve, curves_of
from medpfl.report.figures import head_inches, new_figure, save_png, write_head
from medpfl.report.palette import GRID, INK, MUTED, SERIES
from medpfl.report.tables import csv_table

FILE = "recovery.csv"

_WIDTH, _PANEL, _BELOW = 9.6, 2.6, 0.85
_LABELS = {
    "mse": "mean squared error below",
    "psnr_db": "PSNR above (dB)",
    "ssim": "SSIM above",
}
# What others, and the summary, call recovered.
_MARKS: Mapping[str, Mapping[str, float]] = {
    "mse": {"MIC": 0.1},
    "psnr_db": {"MIC": 10.0, "30": 30.0, "40": 40.0},
    "ssim": {"0.9": 0.9},
}
_NAMES = {"zeros": "black image", "batch_mean": "batch mean", "dataset_mean": "dataset mean"}
_DASHES = {"zeros": (0, (1, 1)), "batch_mean": (0, (5, 2)), "dataset_mean": (0, (3, 1, 1, 1))}


def recovery_figure(
    path: Path, scores: Sequence[ImageScore], *, title: str, synthetic: bool
) -> None:
    """Draw the share of images recovered against what counts as recovered, beside three guesses.

    Args:
        path: the PNG to write.
        scores: rows of ``metrics.csv`` of read-outs, judged, at least one.
        title: the picture's title.
        synthetic: whether the images are made up.

    Raises:
        ValueError: there are no rows.
    """
    if not scores:
        raise ValueError("recovery_figure: scores is empty; there is nothing to draw")
    curves = curves_of(scores)
    missing = sum(not score.matched for score in scores)
    caption = (
        f"Each of {len(scores)} true images counts once, with the one read-out that is its own; "
        f"{missing} of them have none, and count as not recovered. Shaded: 95 % Wilson interval. "
        "Guesses take no attack; the batch mean takes the truth. Where a guess is near the attack, "
        "the threshold says nothing."
    )
    head = head_inches(caption, _WIDTH) + 0.15
    height = head + _PANEL + _BELOW
    figure = new_figure(_WIDTH, height)
    panels = figure.subplots(1, len(curves), sharey=True)
    figure.subplots_adjust(
        left=0.065, right=0.985, top=1 - head / height, bottom=_BELOW / height, wspace=0.12
    )
    for axes, curve in zip(panels, curves, strict=True):
        _draw(axes, curve)
    panels[0].set_ylabel(f"share of {len(scores)} images", fontsize=8, color=INK)
    handles, names = panels[0].get_legend_handles_labels()
    handles, names = [*handles[-1:], *handles[:-1]], [*names[-1:], *names[:-1]]
    figure.legend(handles, names, loc="lower center", ncols=len(names), fontsize=8, frameon=False)
    write_head(figure, title, caption, synthetic=synthetic)
    save_png(figure, path)


def write_recovery(folder: Path, scores: Sequence[ImageScore]) -> None:
    """Write ``recovery.csv``, the numbers of `recovery_figure`.

    Args:
        folder: the run's.
        scores: rows of ``metrics.csv`` of read-outs, judged, at least one.

    Raises:
        OSError: it cannot be written.
    """
    header = ["measure", "threshold", "n", ATTACK, "attack_low", "attack_high", *GUESSES]
    rows = [
        [
            curve.measure,
            f"{threshold:.6g}",
            len(scores),
            curve.shares[ATTACK][k],
            curve.low[k],
            curve.high[k],
            *(curve.shares[guess][k] for guess in GUESSES),
        ]
        for curve in curves_of(scores)
        for k, threshold in enumerate(curve.thresholds)
    ]
    write_text(folder / FILE, csv_table(header, rows))


def _draw(axes: Axes, curve: Curve) -> None:
    x = list(curve.thresholds)
    axes.fill_between(x, curve.low, curve.high, color=SERIES[0], alpha=0.18, linewidth=0)
    for name, value in _MARKS[curve.measure].items():
        axes.axvline(value, color=GRID, linewidth=1.0, zorder=0)
        axes.annotate(
            name,
            (value, 1),
            (0, 2),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            fontsize=7,
            color=MUTED,
            ha="center",
        )
    for number, guess in enumerate(GUESSES, start=1):
        axes.plot(
            x,
            curve.shares[guess],
            color=SERIES[number],
            linestyle=_DASHES[guess],
            linewidth=1.4,
            label=_NAMES[guess],
        )
    axes.plot(x, curve.shares[ATTACK], color=SERIES[0], linewidth=2.0, label="attack")
    if curve.measure == "mse":
        axes.set_xscale("log")
        x.reverse()  # stricter to the right, as in the other panels
    axes.set(xlim=(x[0], x[-1]), ylim=(-0.02, 1.02))
    axes.set_xlabel(_LABELS[curve.measure], fontsize=8, color=INK)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
