"""What a frontier's sweep is run for: its table and its picture, for every dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from medpfl._atomic import write_text
from medpfl.paper.frontier.attacks import Attacked, attacked
from medpfl.paper.frontier.picture import picture
from medpfl.paper.frontier.points import Point, points_of
from medpfl.paper.frontier.table import HEADER, NOTE, answer, lines, records, screen
from medpfl.paper.results import JobResult, failures
from medpfl.report.console import make_console
from medpfl.report.palette import ERROR_STYLE, WARNING_STYLE
from medpfl.report.tables import csv_table, markdown_table


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Utility against leakage: ``frontier.md``, ``frontier.csv`` and a picture a dataset.

    Args:
        title: the table's title.
    """

    title: str

    def make(self, results: Sequence[JobResult], folder: Path, *, note: str) -> Mapping[str, Path]:
        """See `Product.make`."""
        jobs = attacked(results, folder)
        found = {dataset: points_of(own) for dataset, own in jobs.items()}
        failed = failures(results)
        self._print(found, failed, note)
        self._write(found, failed, folder, note)
        files = {"frontier": folder / "frontier.md", "for scripts": folder / "frontier.csv"}
        for dataset, points in found.items():
            name = "frontier" if len(found) == 1 else f"frontier-{dataset}"
            drawn = picture(
                folder / name,
                points,
                title=f"{self.title}: {dataset}",
                caption=f"{_caption(jobs[dataset])}\n{note}".strip(),
                synthetic=any(job.synthetic for job in jobs[dataset]),
            )
            files |= {f"{name}, {suffix}": path for suffix, path in drawn.items()}
        return files

    def _write(
        self,
        found: Mapping[str, Sequence[Point]],
        failed: Sequence[str],
        folder: Path,
        note: str,
    ) -> None:
        said = f"\n{note}\n" if note else ""
        sections = [
            f"\n## {dataset}\n\n{answer(points)}\n\n{markdown_table(HEADER, lines(points))}"
            for dataset, points in found.items()
        ]
        told = "".join(f"\n- {line}" for line in failed)
        write_text(
            folder / "frontier.md", f"# {self.title}\n{said}{''.join(sections)}\n{NOTE}\n{told}"
        )
        header: list[str] = ["dataset"]
        rows: list[list[object]] = []
        for dataset, points in found.items():
            header, own = records(dataset, points)
            rows += own
        write_text(folder / "frontier.csv", csv_table(header, rows))

    def _print(
        self, found: Mapping[str, Sequence[Point]], failed: Sequence[str], note: str
    ) -> None:
        out = make_console()
        out.print(Text(f"\n  {self.title}", style="bold"))
        if note:
            out.print(Text(f"  {note}", style=WARNING_STYLE))
        for dataset, points in found.items():
            out.print(screen(dataset, points))
            out.print(Text(f"  {answer(points)}\n", style="bold"))
        for line in failed:
            out.print(Text(line, style=ERROR_STYLE), soft_wrap=True)
        out.print(
            Text(
                "  accuracy: balanced, in %; first: how often the original comes first among the "
                "dataset's images; know: attackers that know the defense; dim: dominated. "
                "Intervals and the rest are in the files.",
                style="dim",
            )
        )


def _caption(jobs: Sequence[Attacked]) -> str:
    """Return what was attacked, and how to read the picture."""
    seeds = len({job.seed for job in jobs})
    rounds = ", ".join(map(str, sorted({r for job in jobs for r in job.attacked_rounds})))
    images = max(len(job.scores) for job in jobs)
    return (
        f"Seeds: {seeds}; up to {images} images a seed and attacker, after {rounds} rounds. "
        "Better is up and to the left. Pale lines: 95 % of the leakage, all seeds of the accuracy. "
        "Full markers: the attacker knows the defense; open: it does not. Efficient: "
        "no point has less leakage, under the stronger attacker, and no less accuracy."
    )
