"""What captured rounds gave away, beside what the global model could do by then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean, median

from rich import box
from rich.table import Table

from medpfl._atomic import write_text
from medpfl.image_score import ImageScore
from medpfl.metrics.rates import wilson
from medpfl.report.rounds_file import RoundScore
from medpfl.report.tables import csv_table, format_interval, format_number, format_percent

FILE = "leakage.csv"


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """One captured round; field names are the columns of ``leakage.csv``.

    Args:
        round: rounds that the global model was trained for.
        accuracy: of the global model on held-out images; None where that was not measured.
        auc: of the same.
        n: images attacked in this round.
        asr: share of them that reached the threshold.
        asr_low: lower end of the 95 % Wilson interval of `asr`.
        asr_high: upper end.
        ssim_mean: mean SSIM.
        ssim_median: median SSIM.
        gradient_norm_median: median norm of the attacked updates, in the unit of a gradient.
    """

    round: int
    accuracy: float | None
    auc: float | None
    n: int
    asr: float
    asr_low: float
    asr_high: float
    ssim_mean: float
    ssim_median: float
    gradient_norm_median: float


def leakage_by_round(
    scores: Sequence[ImageScore], rounds: Sequence[RoundScore]
) -> tuple[Leakage, ...]:
    """Return a row for each captured round, in order.

    Args:
        scores: rows of ``metrics.csv``.
        rounds: rows of ``rounds.csv``.
    """
    utility = {score.round: score for score in rounds}
    captured = sorted({score.round for score in scores})
    return tuple(
        _row(number, [s for s in scores if s.round == number], utility.get(number))
        for number in captured
    )


def _row(number: int, scores: Sequence[ImageScore], utility: RoundScore | None) -> Leakage:
    successes = sum(score.success for score in scores)
    low, high = wilson(successes, len(scores))
    return Leakage(
        round=number,
        accuracy=None if utility is None else utility.accuracy,
        auc=None if utility is None else utility.auc,
        n=len(scores),
        asr=successes / len(scores),
        asr_low=low,
        asr_high=high,
        ssim_mean=fmean(score.ssim for score in scores),
        ssim_median=median(score.ssim for score in scores),
        gradient_norm_median=median(norms_of(scores)[number]),
    )


def norms_of(scores: Sequence[ImageScore]) -> Mapping[int, list[float]]:
    """Return the norms of the attacked updates by round, each update once."""
    updates = {(s.round, s.capture_id): s.gradient_norm for s in scores}
    norms: dict[int, list[float]] = {}
    for (number, _), norm in updates.items():
        norms.setdefault(number, []).append(norm)
    return norms


def write_leakage(folder: Path, rows: Sequence[Leakage]) -> None:
    """Write ``leakage.csv``.

    Raises:
        OSError: it cannot be written.
    """
    header = [field.name for field in fields(Leakage)]
    write_text(folder / FILE, csv_table(header, [astuple(row) for row in rows]))


def leakage_table(rows: Sequence[Leakage]) -> Table:
    """Return the table for the console."""
    title = "  Leakage against training"
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1), title=title, title_justify="left", title_style=""
    )
    for name in ("round", "accuracy", "AUC", "ASR", "of", "SSIM", "gradient"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row.round),
            format_percent(row.accuracy),
            format_number(row.auc, 2),
            format_percent(row.asr),
            f"{format_interval(row.asr_low, row.asr_high)} {row.n}",
            format_number(row.ssim_mean),
            f"{row.gradient_norm_median:.3g}",
        )
    return table
