"""Figure 6: what an attack makes of the same images at every noise level, in both readings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure
from rich.text import Text

from medpfl.defenses.noise import MedPFLLevel
from medpfl.paper.noise_table import READINGS, noise_names
from medpfl.paper.results import JobResult, failures
from medpfl.report.console import make_console
from medpfl.report.figures import (
    as_picture,
    head_inches,
    new_figure,
    save_both,
    write_head,
)
from medpfl.report.palette import ERROR_STYLE, FAILURE, GRID, INK, MUTED, SUCCESS
from medpfl.report.record import VictimRecord, load_victim

_CELL, _GAP = 1.05, 0.24
_LEFT = 1.25
_THRESHOLD = 0.9

Victims = Mapping[str, VictimRecord]


@dataclass(frozen=True, kw_only=True)
class NoiseFigure:
    """Reconstructions under noise: levels down, images across, a panel a reading.

    Args:
        name: file name, such as ``figure6``.
        title: the figure's title.
        images: images shown.
    """

    name: str
    title: str
    images: int = 3

    def make(self, results: Sequence[JobResult], folder: Path, *, note: str) -> Mapping[str, Path]:
        """See `Product.make`."""
        out = make_console()
        out.print(Text(f"\n  {self.title}", style="bold"))
        for problem in sorted({r.problem for r in results if r.problem is not None}):
            out.print(Text(f"  {problem}"))
        for line in failures(results):
            out.print(Text(f"  {line}", style=ERROR_STYLE), soft_wrap=True)
        jobs = {str(r.noise): _victims(r) for r in results if r.problem is None}
        shown = common_images(list(jobs.values()))[: self.images]
        return self._draw(jobs, shown, folder / self.name, note) if shown else {}

    def _draw(
        self, jobs: Mapping[str, Victims], shown: Sequence[str], stem: Path, note: str
    ) -> dict[str, Path]:
        caption = (
            "Above each picture its SSIM; a blue frame: at least 0.9.\n"
            f"Reconstructions are those that the attacker hands in.\n{note}"
        ).strip()
        grid = _Grid(columns=len(shown), rows=1 + len(noise_names("inverse")), caption=caption)
        originals = next(iter(jobs.values()))
        for side, reading in enumerate(READINGS):
            grid.head(side, f"levels read {reading}")
            grid.label(side, 0, "original")
            for column, image_id in enumerate(shown):
                grid.picture(side, 0, column, originals[image_id], original=True)
            for row, noise in enumerate(noise_names(reading), start=1):
                grid.label(side, row, noise_label(noise))
                if noise not in jobs:
                    grid.missing(side, row)
                    continue
                for column, image_id in enumerate(shown):
                    grid.picture(side, row, column, jobs[noise][image_id], original=False)
        write_head(grid.figure, self.title, caption, synthetic=False)
        return save_both(grid.figure, stem)


def common_images(jobs: Sequence[Victims]) -> list[str]:
    """Return the ids of the images that every job attacked, in order."""
    return [name for name in jobs[0] if all(name in job for job in jobs)] if jobs else []


def noise_label(noise: str) -> str:
    """Return what a row is called, its Laplace scale b beside it."""
    if noise == "none":
        return "no noise"
    name, _, level = noise.partition("_")
    reading: Literal["inverse", "proportional"] = "inverse" if name == "inverse" else "proportional"
    # Read as the defense reads it, so that the label cannot say anything else.
    law = MedPFLLevel(
        level=int(level), reading="inverse" if reading == "inverse" else "proportional"
    )
    return f"level {level}\nb = {law.scale:.2g}"


def _victims(result: JobResult) -> dict[str, VictimRecord]:
    files = sorted((result.folder / "reconstructions").glob("*.npz"))
    return {victim.scores[0].image_id: victim for victim in map(load_victim, files)}


class _Grid:
    """Two panels of pictures, placed in inches."""

    def __init__(self, *, columns: int, rows: int, caption: str) -> None:
        self._panel = _LEFT + columns * _CELL
        self._width = 2 * self._panel + 0.15
        self._head = head_inches(caption, self._width) + 0.4
        self._height = self._head + rows * (_CELL + _GAP)
        self.figure: Figure = new_figure(self._width, self._height)

    def head(self, side: int, text: str) -> None:
        """Write a panel's heading."""
        self._text(side * self._panel + _LEFT, self._head - 0.22, text, 9, INK, "bold")

    def label(self, side: int, row: int, text: str) -> None:
        """Name a row."""
        self._text(side * self._panel + 0.15, self._top(row) + _CELL / 2, text, 8, INK, "normal")

    def missing(self, side: int, row: int) -> None:
        """Say that a row was not measured."""
        left, top = side * self._panel + _LEFT, self._top(row) + _CELL / 2
        self._text(left, top, "not in this sweep", 8, MUTED, "normal")

    def picture(
        self, side: int, row: int, column: int, victim: VictimRecord, *, original: bool
    ) -> None:
        """Draw one picture with its SSIM."""
        left, top = side * self._panel + _LEFT + column * _CELL, self._top(row)
        side_inches = _CELL - 0.07
        axes = self.figure.add_axes(
            (
                left / self._width,
                1 - (top + side_inches) / self._height,
                side_inches / self._width,
                side_inches / self._height,
            )
        )
        image = victim.original[0] if original else victim.reconstruction[0]
        axes.imshow(as_picture(image), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        ssim = victim.scores[0].ssim
        edge = GRID if original else SUCCESS if ssim >= _THRESHOLD else FAILURE
        for spine in axes.spines.values():
            spine.set(color=edge, linewidth=0.6 if original else 1.6)
        if not original:
            axes.set_title(f"{ssim:.2f}", fontsize=7, color=MUTED, pad=2)

    def _top(self, row: int) -> float:
        return self._head + row * (_CELL + _GAP)

    def _text(
        self, left: float, top: float, text: str, size: int, colour: str, weight: str
    ) -> None:
        self.figure.text(
            left / self._width,
            1 - top / self._height,
            text,
            fontsize=size,
            color=colour,
            fontweight=weight,
            va="center",
        )
