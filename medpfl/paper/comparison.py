"""Tables I and II: reported, measured by the paper's protocol, measured rigorously."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from medpfl._atomic import write_text
from medpfl.metrics.rates import wilson
from medpfl.paper.dots import dot_plot
from medpfl.paper.reported import ROWS, PaperRow
from medpfl.paper.results import Estimate, JobResult, failures
from medpfl.report.console import make_console
from medpfl.report.palette import ERROR_STYLE, WARNING_STYLE
from medpfl.report.tables import format_number, format_percent, markdown_table

HEADER = ("experiment", "measure", "reported", "paper protocol", "rigorous", "predicted")
FACTS = ("experiment", "images", "ceiling", "labels right", "s / image", "device")
THRESHOLD = 0.9
_NO_NUMBER = "-"
_NOTE = (
    "Reported: as printed in the paper; its ASR with the 95 % interval that its number of images "
    "gives. Paper protocol: the SSIM call of the paper's own code on our reconstructions. "
    "Rigorous: SSIM on pixels in [0, 1] with data range 1. ASR: share of the images with an SSIM "
    "of at least 0.9, in percent. Brackets: 95 % intervals (Wilson for ASR, bootstrap for means); "
    "n: images counted. Predicted: one minus the attacked images' share of the class that "
    "saturates the network, which is what an attack that squares in float32 can reach; - where "
    "the network does not saturate. Ceiling: share of the images whose gradient has a square "
    "that float32 can tell from zero."
)


@dataclass(frozen=True, kw_only=True)
class ComparisonTable:
    """A table with a block of four lines an experiment.

    Args:
        name: file name of the figure, such as ``table1``.
        title: the table's title.
    """

    name: str
    title: str

    def make(self, results: Sequence[JobResult], folder: Path, *, note: str) -> Mapping[str, Path]:
        """See `Product.make`."""
        blocks = [block(result) for result in results]
        lines = [line for one in blocks for line in one]
        facts = [fact_line(result) for result in results]
        failed = failures(results)
        self._print(blocks, facts, failed, note)
        said = f"\n{note}\n" if note else ""
        text = (
            f"# {self.title}\n{said}\n{markdown_table(HEADER, lines)}\n"
            f"{markdown_table(FACTS, facts)}\n{_NOTE}\n"
        ) + "".join(f"\n- {line}" for line in failed)
        write_text(folder / "table.md", text)
        figures = dot_plot(folder / self.name, results, title=self.title, note=note)
        return {"table": folder / "table.md", **figures}

    def _print(
        self,
        blocks: Sequence[Sequence[Sequence[str]]],
        facts: Sequence[Sequence[str]],
        failed: Sequence[str],
        note: str,
    ) -> None:
        out = make_console()
        out.print(Text(f"\n  {self.title}", style="bold"))
        if note:
            out.print(Text(f"  {note}", style=WARNING_STYLE))
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in HEADER:
            table.add_column(heading, overflow="fold")
        for lines in blocks:
            for line in lines:
                # The first line names the experiment; repeated, the name would only fill lines.
                name = line[0] if line is lines[0] else ""
                table.add_row(name, *line[1:], end_section=line is lines[-1])
        out.print(table)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in FACTS:
            table.add_column(heading, overflow="fold")
        for line in facts:
            table.add_row(*line)
        out.print(table)
        for line in failed:
            out.print(Text(line, style=ERROR_STYLE), soft_wrap=True)
        out.print(Text(_NOTE, style="dim"))


def describe(result: JobResult) -> str:
    """Return what a job is called in tables, such as ``CPL, covid``."""
    row = ROWS.get(result.row)
    return f"{row.label if row else result.row}, {result.dataset}"


def block(result: JobResult) -> list[list[str]]:
    """Return the four lines of one experiment."""
    row = ROWS[result.row]
    reported = reported_cells(row, result.dataset)
    if result.problem is not None:
        measured = [[result.problem, result.problem, _NO_NUMBER]] + [[_NO_NUMBER] * 3] * 3
    else:
        measured = measured_cells(result, row)
    names = ("ASR %", "SSIM", "MSE", "s / image")
    cells = zip(names, reported, measured, strict=True)
    return [[describe(result), name, told, *own] for name, told, own in cells]


def reported_cells(row: PaperRow, dataset: str) -> list[str]:
    """Return the reported ASR, SSIM, MSE and seconds, blank where the papers have none."""
    told = row.reported.get(dataset)
    if told is None:
        return ["not reported"] + [_NO_NUMBER] * 3
    rate = Estimate(told.asr, *wilson(round(told.asr * told.n), told.n), told.n)
    means = (f"{value:.4g} n {told.n}" for value in (told.ssim, told.mse, told.seconds))
    return [rate.text(0, percent=True), *means]


def measured_cells(result: JobResult, row: PaperRow) -> list[list[str]]:
    """Return paper protocol, rigorous and predicted for ASR, SSIM, MSE and seconds."""
    paper = f"ssim_paper_{row.protocol}"
    share = result.predicted
    percent = _NO_NUMBER if share is None else format_number(100 * share, 1)
    mse = result.mean("mse").text(4)
    # GradInv's is of normalised images; the others' is the same number as ours.
    paper_mse = _NO_NUMBER if row.protocol == "gradinv" else mse
    return [
        [
            result.rate(paper, threshold=THRESHOLD).text(1, percent=True),
            result.rate("success").text(1, percent=True),
            percent,
        ],
        [
            result.mean(paper).text(3),
            result.mean("ssim").text(3),
            _NO_NUMBER if share is None else format_number(share, 3),
        ],
        [paper_mse, mse, _NO_NUMBER],
        [result.mean("seconds").text(2), _NO_NUMBER, _NO_NUMBER],
    ]


def fact_line(result: JobResult) -> list[str]:
    """Return what else a reader needs to believe a row."""
    if result.problem is not None:
        return [describe(result), result.problem, *[_NO_NUMBER] * 4]
    return [
        describe(result),
        str(len(result.scores)),
        format_percent(result.ceiling),
        format_percent(result.label_accuracy),
        format_number(result.mean("seconds").value, 2),
        result.device or "unknown",
    ]
