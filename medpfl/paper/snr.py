"""SSIM and ASR against the update's signal-to-noise ratio: the axis that a level hides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from medpfl.metrics.rates import wilson
from medpfl.paper.reported import ROWS
from medpfl.paper.results import JobResult
from medpfl.report.figures import head_inches, new_figure, save_both, write_head
from medpfl.report.palette import GRID, INK, MUTED, SERIES

BIN_DB = 5.0
_MARKERS = ("o", "D", "s", "^")


@dataclass(frozen=True)
class Bin:
    """The images whose update arrived within one range of signal-to-noise ratios.

    Args:
        centre_db: middle of the range.
        ssim: median SSIM.
        asr: success rate.
        low: lower end of its 95 % interval.
        high: upper end.
        n: images.
    """

    centre_db: float
    ssim: float
    asr: float
    low: float
    high: float
    n: int


def snr_figure(
    stem: Path, results: Sequence[JobResult], *, title: str, note: str
) -> dict[str, Path]:
    """Draw SSIM of every image, and ASR by ranges of 5 dB, for each attack, as PNG and PDF.

    Args:
        stem: the files' path without suffix.
        results: the jobs; those without noise or without numbers are left out.
        title: the figure's title.
        note: how the sweep was shortened, if it was.

    Returns:
        The two files by name; none where no job had noise.
    """
    clouds = noisy_images(results)
    if not clouds:
        return {}
    figure = new_figure(7.4, 6.2)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for place, (row, cloud) in enumerate(clouds.items()):
        _draw(top, bottom, cloud, ROWS[row].label, place)
    bottom.axhline(0.0, color=MUTED, linewidth=0.6)
    top.axhline(0.9, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    top.set(ylabel="SSIM", ylim=(-0.1, 1.03))
    bottom.set(ylabel="attack success rate", ylim=(-0.03, 1.03))
    bottom.set(xlabel="signal-to-noise ratio of the update (dB): less noise to the right")
    for axes in (top, bottom):
        axes.grid(color=GRID, linewidth=0.5)
        axes.tick_params(colors=MUTED, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    top.legend(fontsize=8, frameon=False, loc="upper left")
    n = sum(len(cloud) for cloud in clouds.values())
    caption = (
        f"{n} attacked updates of all datasets, levels and readings. Dots: images; lines: medians "
        f"of {BIN_DB:g} dB; bars: 95 %.\n{note}"
    ).strip()
    head = head_inches(caption, figure.get_figwidth()) + 0.1
    top_edge = 1 - head / figure.get_figheight()
    figure.subplots_adjust(left=0.1, right=0.97, top=top_edge, bottom=0.09, hspace=0.08)
    write_head(figure, f"{title}: by signal-to-noise ratio", caption, synthetic=False)
    return save_both(figure, stem)


def noisy_images(results: Sequence[JobResult]) -> dict[str, pd.DataFrame]:
    """Return the images with a finite signal-to-noise ratio, by experiment."""
    found: dict[str, list[pd.DataFrame]] = {}
    for result in results:
        if result.problem is not None or result.noise in (None, "none"):
            continue
        finite = result.scores[np.isfinite(result.scores["snr_db"].astype(float))]
        found.setdefault(result.row, []).append(finite)
    return {row: pd.concat(parts) for row, parts in found.items() if sum(map(len, parts))}


def binned(cloud: pd.DataFrame, width_db: float = BIN_DB) -> list[Bin]:
    """Return the ranges of signal-to-noise ratios that hold images, in increasing order."""
    number = [math.floor(float(snr) / width_db) for snr in cloud["snr_db"]]
    bins = []
    for index in sorted(set(number)):
        inside = cloud[[own == index for own in number]]
        n, hits = len(inside), int(inside["success"].astype(bool).sum())
        centre = (index + 0.5) * width_db
        bins.append(Bin(centre, float(inside["ssim"].median()), hits / n, *wilson(hits, n), n))
    return bins


def _draw(top: Axes, bottom: Axes, cloud: pd.DataFrame, label: str, place: int) -> None:
    colour, marker = SERIES[place % len(SERIES)], _MARKERS[place % len(_MARKERS)]
    bins = binned(cloud)
    # Side by side, so that the intervals of two attacks do not hide one another.
    centres = [b.centre_db + 0.5 * place for b in bins]
    top.scatter(cloud["snr_db"], cloud["ssim"], s=20, color=colour, alpha=0.7, linewidths=0)
    top.plot(
        centres, [b.ssim for b in bins], color=colour, marker=marker, markersize=4, label=label
    )
    asr = np.array([b.asr for b in bins])
    spread = [asr - [b.low for b in bins], [b.high for b in bins] - asr]
    bottom.errorbar(
        centres,
        asr,
        yerr=np.maximum(spread, 0),
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=2,
    )
