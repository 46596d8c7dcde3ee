"""Table III: SSIM and MSE against the noise level, in both readings of a level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from medpfl._atomic import write_text
from medpfl.paper.reported import DATASETS, LEVELS, ROWS, SINGLE_IMAGE, TABLE_III
from medpfl.paper.results import JobResult, failures
from medpfl.paper.snr import snr_figure
from medpfl.report.console import make_console
from medpfl.report.palette import ERROR_STYLE, WARNING_STYLE
from medpfl.report.tables import format_number, markdown_table

READINGS = ("inverse", "proportional")
HEADER = ("measured", "no noise", *(f"level {level}" for level in LEVELS))
NOTHING = "-"
_MISSING = "not in this sweep"
_NOTE = (
    "Cells: SSIM ; MSE, or as the line says. Level read inverse: b = 1 / level, as in the code; "
    "proportional: b = 5e-6 x level, as in the text. Reported: one image a cell, except the first "
    "column, which repeats Table I. One image: the attacked image nearest to the published one's "
    "place in the class order. Oracle: the recorded iterate of smallest true error, as published; "
    "no attacker can choose it. Rigorous: the iterate the attacker hands in. ASR: share of images "
    "with a rigorous SSIM of at least 0.9, in percent. Brackets: 95 % intervals."
)


@dataclass(frozen=True, kw_only=True)
class NoiseTable:
    """Table III, and SSIM and ASR against the signal-to-noise ratio.

    Args:
        title: the table's title.
    """

    title: str

    def make(self, results: Sequence[JobResult], folder: Path, *, note: str) -> Mapping[str, Path]:
        """See `Product.make`."""
        datasets = [d for d in DATASETS if any(r.dataset == d for r in results)]
        tables = {dataset: lines(results, dataset) for dataset in datasets}
        failed = failures(results)
        self._print(tables, failed, note)
        said = f"\n{note}\n" if note else ""
        sections = [f"\n## {name}\n\n{markdown_table(HEADER, t)}" for name, t in tables.items()]
        write_text(
            folder / "table.md",
            f"# {self.title}\n{said}{''.join(sections)}\n{_NOTE}\n"
            + "".join(f"\n- {line}" for line in failed),
        )
        figures = snr_figure(folder / "snr", results, title=self.title, note=note)
        return {"table": folder / "table.md", **figures}

    def _print(
        self, tables: Mapping[str, Sequence[Sequence[str]]], failed: Sequence[str], note: str
    ) -> None:
        out = make_console()
        out.print(Text(f"\n  {self.title}", style="bold"))
        if note:
            out.print(Text(f"  {note}", style=WARNING_STYLE))
        for dataset, own in tables.items():
            table = Table(title=dataset, title_justify="left", box=box.SIMPLE_HEAD)
            table.add_column(HEADER[0], no_wrap=True)
            for heading in HEADER[1:]:
                table.add_column(heading, overflow="fold")
            for line in own:
                table.add_row(*line, style=None if line[1] else "bold", end_section=False)
            out.print(table)
        for line in failed:
            out.print(Text(line, style=ERROR_STYLE), soft_wrap=True)
        out.print(Text(_NOTE, style="dim"))


def lines(results: Sequence[JobResult], dataset: str) -> list[list[str]]:
    """Return the lines of one dataset: reported, then a heading and four a reading and attack."""
    own = {(r.row, r.noise): r for r in results if r.dataset == dataset}
    reported = [_pair(cell.ssim, cell.mse) for cell in TABLE_III[dataset]]
    found = [["CPL, as reported", *reported]]
    for row in dict.fromkeys(r.row for r in results):
        for reading in READINGS:
            cells = [own.get((row, name)) for name in noise_names(reading)]
            found += _block(ROWS[row].label, reading, dataset, cells)
    return found


def noise_names(reading: str) -> list[str]:
    """Return the options of ``conf/paper/noise`` in the order of the columns."""
    return ["none", *(f"{reading}_{level}" for level in LEVELS)]


def nearest_place(scores: pd.DataFrame, dataset: str) -> int:
    """Return the row of the attacked image nearest to the published one in class order."""
    return min(round(SINGLE_IMAGE[dataset] * len(scores)), len(scores) - 1)


def _block(
    label: str, reading: str, dataset: str, cells: Sequence[JobResult | None]
) -> list[list[str]]:
    measures: dict[str, Callable[[JobResult], str]] = {
        "one image, oracle": lambda r: _single(r, dataset),
        "mean, oracle": lambda r: _pair(r.mean("ssim_oracle").value, r.mean("mse_oracle").value),
        "mean SSIM, rigorous": lambda r: r.mean("ssim").text(2),
        "ASR %, rigorous": lambda r: r.rate("success").text(0, percent=True),
    }
    heading = [f"{label}, {reading}", *[""] * len(cells)]
    problems = {None if result is None else result.problem for result in cells}
    if len(problems) == 1 and None not in problems:
        return [heading, [f"{problems.pop()}", *[NOTHING] * len(cells)]]
    return [heading] + [
        [name, *(_cell(result, measure) for result in cells)] for name, measure in measures.items()
    ]


def _cell(result: JobResult | None, measure: Callable[[JobResult], str]) -> str:
    if result is None:
        return _MISSING
    return result.problem if result.problem is not None else measure(result)


def _single(result: JobResult, dataset: str) -> str:
    score = result.scores.iloc[nearest_place(result.scores, dataset)]
    return _pair(float(score["ssim_oracle"]), float(score["mse_oracle"]))


def _pair(ssim: float, mse: float) -> str:
    return f"{format_number(ssim, 3)} ; {format_number(mse, 4)}"
