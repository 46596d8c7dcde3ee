"""MIC's numbers: reported, by their way to count, and by an honest one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from medpfl._atomic import write_text
from medpfl.metrics.rates import wilson
from medpfl.metrics.recovery import THRESHOLDS
from medpfl.outcomes import Status
from medpfl.paper.mic_guesses import GUESSES, Guessed, guessed
from medpfl.paper.reported import MIC_REPORTED, ROWS
from medpfl.paper.results import Estimate, JobResult, failures
from medpfl.report.console import make_console
from medpfl.report.jobs import read_record
from medpfl.report.palette import ERROR_STYLE, WARNING_STYLE
from medpfl.report.tables import csv_table, format_number, markdown_table

HEADER = ("experiment", "reported", "MIC protocol", "PSNR > 30 dB", "PSNR > 40 dB", "SSIM > 0.9")
GUESS_HEADER = ("experiment", "zeros", "mean image", "random pixels", "public images")
FACTS = (
    *("experiment", "sums", "images a sum", "rows", "parameters added", "MB each way"),
    *("read-outs", "expected alone"),
)
_NO_NUMBER = "-"
_NOTE = (
    "Percent of the true images; brackets: 95 % intervals (Wilson), n: images. Reported: as in the "
    "abstract, which does not say of how many. MIC protocol: a read-out rebuilds the true image "
    "that it is nearest to, chosen with the truth, where their mean squared error is below 0.1, "
    "however many read-outs go to the same image. The others: each true image has one read-out at "
    "most. Running update: their code's aggregate, which weighs the last client most; mean: of all "
    "clients, under secure aggregation."
)
_GUESS_NOTE = (
    "The same by MIC's protocol for guesses that took no attack, as many of each as there were "
    "read-outs. Black images and mean images are all alike, and go to the one image that is "
    "nearest; public images are of the kind, and none of them is anybody's in the sum."
)


@dataclass(frozen=True, kw_only=True)
class MicTable:
    """A line an experiment, over its seeds: ``mic.md`` and ``mic.csv``.

    Args:
        title: the table's title.
    """

    title: str

    def make(self, results: Sequence[JobResult], folder: Path, *, note: str) -> Mapping[str, Path]:
        """See `Product.make`."""
        blocks = list(_blocks(results))
        tables = (
            (HEADER, [block.measured() for block in blocks]),
            (GUESS_HEADER, [block.guesses() for block in blocks if block.jobs]),
            (FACTS, [block.facts() for block in blocks if block.jobs]),
        )
        failed = failures(results)
        self._print(tables, failed, note)
        notes = (_NOTE, _GUESS_NOTE, "")
        said = [f"# {self.title}", *([note] if note else [])]
        for (header, lines), below in zip(tables, notes, strict=True):
            said += [markdown_table(header, lines), *([below] if below else [])]
        write_text(folder / "mic.md", "\n\n".join([*said, *(f"- {f}" for f in failed)]) + "\n")
        columns = [*HEADER, *GUESS_HEADER[1:], *FACTS[1:]]
        rows = [[*b.measured(), *b.guesses()[1:], *b.facts()[1:]] for b in blocks if b.jobs]
        write_text(folder / "mic.csv", csv_table(columns, rows))
        return {"table": folder / "mic.md", "for scripts": folder / "mic.csv"}

    def _print(
        self,
        tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]],
        failed: Sequence[str],
        note: str,
    ) -> None:
        out = make_console()
        out.print(Text(f"\n  {self.title}", style="bold"))
        if note:
            out.print(Text(f"  {note}", style=WARNING_STYLE))
        for (header, lines), below in zip(tables, (_NOTE, _GUESS_NOTE, ""), strict=True):
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for heading in header:
                table.add_column(heading, overflow="fold")
            for line in lines:
                table.add_row(*line)
            out.print(table)
            out.print(Text(below, style="dim"))
        for line in failed:
            out.print(Text(line, style=ERROR_STYLE), soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A finished job, and what guesses score on its images."""

    scores: pd.DataFrame
    guessed: Guessed
    rows: int

    @property
    def readouts(self) -> int:
        """M: handed in, of all its sums."""
        return int(self.scores.groupby("capture_id")["readouts"].first().sum())


@dataclass(frozen=True, kw_only=True)
class _Block:
    """One experiment.

    Args:
        row: as in ``conf/paper/row``.
        jobs: those that have numbers.
        problem: why there are none.
    """

    row: str
    jobs: Sequence[_Job]
    problem: str | None

    @property
    def name(self) -> str:
        return ROWS[self.row].label

    @property
    def scores(self) -> pd.DataFrame:
        return pd.concat([job.scores for job in self.jobs])

    def measured(self) -> list[str]:
        """Return the cells under `HEADER`."""
        told = MIC_REPORTED.get(self.row)
        reported = "not reported" if told is None else format_number(100 * told, 2)
        if not self.jobs:
            return [self.name, reported, self.problem or _NO_NUMBER, *[_NO_NUMBER] * 3]
        scores = self.scores
        matched = scores["status"] != str(Status.UNMATCHED)
        honest = [(scores[column] > least) & matched for column, least in THRESHOLDS.values()]
        hits = [scores["mic_protocol"] == 1, *honest]
        return [self.name, reported, *(_rate(int(h.sum()), len(h)) for h in hits)]

    def guesses(self) -> list[str]:
        """Return the cells under `GUESS_HEADER`."""
        cells = [self.name]
        for guess in GUESSES:
            found = [job.guessed for job in self.jobs if guess in job.guessed.rebuilt]
            count = sum(one.rebuilt[guess] for one in found)
            cells.append(_rate(count, sum(one.images for one in found)) if found else _NO_NUMBER)
        return cells

    def facts(self) -> list[str]:
        """Return the cells under `FACTS`."""
        scores, sums = self.scores, sum(job.scores["capture_id"].nunique() for job in self.jobs)
        rows, entries = self.jobs[0].rows, self.jobs[0].guessed.entries
        added, expected = rows * (entries + 1), scores["expected_share"].mean()
        return [
            self.name,
            str(sums),
            format_number(len(scores) / sums, 0),
            f"{rows:,}",
            f"{added:,}",
            format_number(4 * added / 1e6, 1),
            str(sum(job.readouts for job in self.jobs)),
            _NO_NUMBER if pd.isna(expected) else f"{100 * expected:.1f} %",
        ]


def _blocks(results: Sequence[JobResult]) -> Iterator[_Block]:
    for row in dict.fromkeys(result.row for result in results):
        own = [result for result in results if result.row == row]
        problems = [result.problem for result in own if result.problem is not None]
        yield _Block(
            row=row,
            jobs=[_job(result) for result in own if result.problem is None],
            problem=problems[0] if problems else None,
        )


def _job(result: JobResult) -> _Job:
    server = read_record(result.folder)["config"]["server"]
    readouts = int(result.scores.groupby("capture_id")["readouts"].first().sum())
    return _Job(
        scores=result.scores,
        guessed=guessed(result.folder, readouts),
        rows=int(server.get("bins") or server["rows"]),
    )


def _rate(hits: int, n: int) -> str:
    return Estimate(hits / n, *wilson(hits, n), n).text(1, percent=True)
