"""What a sweep leaves behind: ``results.csv`` and ``results.md``, a row a job, failed ones too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medpfl._atomic import write_text
from medpfl.report import _strict_json
from medpfl.report.console import caution, make_console, paths
from medpfl.report.console import error as print_error
from medpfl.report.jobs import (
    COMPLETE,
    FAILED,
    FIRST,
    Row,
    collect,
    job_folders,
    own_measures,
    read_record,
    varying_columns,
    without_values,
)
from medpfl.report.palette import ERROR_STYLE
from medpfl.report.tables import (
    csv_table,
    format_interval,
    format_number,
    format_percent,
    format_value,
    markdown_table,
)

__all__ = ["SweepOutcome", "SweepReport", "collect", "show", "write_report"]

_NOTE = (
    "ASR: share of the images whose reconstruction reaches the SSIM threshold, with its 95 % "
    "interval. Recognisable: share of the images that are at least recognisable, told from other "
    "images of the dataset. Ceiling: share of the images whose gradient, squared in float32, is "
    "not zero. All zeros and mean image: the SSIM of guesses that need no attack. Noise scale and "
    "SNR: means over the images; none where nothing was added. Attack and bound: the mean squared "
    "error of the attack in decibels, and what no attack exceeds on average over images of one "
    "covariance (van Trees); n/a where no bound applies. What follows: means of the measures that "
    "were added, over the images where they are finite."
)
_BRIEF = ("ASR % (95 %)", "recog. %", "n", "SSIM")
# Instead of one another: both do not fit beside two settings in 80 columns.
_NOISE, _TIME = ("noise", "SNR dB"), ("s/image",)
_BOUND = ("noise", "attack dB", "bound dB")
_LONG_HEADINGS = {
    "noise": "noise scale",
    "SNR dB": "SNR (dB)",
    "s/image": "s / image",
    "attack dB": "attack (dB)",
    "bound dB": "bound (dB)",
}
_MOST_MEASURES = 3
"""Of one's own, on the screen; ``results.md`` has all."""


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep went.

    Args:
        jobs: number of jobs; those that never started count where they are known.
        failed: number of jobs that are not complete, for whatever reason.
        results_csv: the table with a row a job.
        results_md: the same for readers.
        rows: what `collect` returned.
        figure: success rates and mean SSIM of the jobs, or None where nothing was measured.
    """

    jobs: int
    failed: int
    results_csv: Path
    results_md: Path
    rows: tuple[Row, ...] = field(repr=False)
    figure: Path | None = None


class SweepReport(Callback):
    """Write and print the sweep's tables, and let a sweep go on past a failed job.

    Without it Hydra's sweeper runs all jobs of a batch, then raises the first failure: later
    batches do not start, and nobody is told that the sweep ended.

    ``last_outcome`` is the outcome of this process's latest sweep, for the exit code: Hydra has no
    way to hand it back to whoever called the decorated function.
    """

    last_outcome: ClassVar[SweepOutcome | None] = None
    _sweep_dir: ClassVar[Path | None] = None
    _failures: ClassVar[Mapping[int, str]] = {}
    _present: ClassVar[Callable[[SweepOutcome], SweepOutcome] | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the sweep's folder."""
        SweepReport.last_outcome = None
        SweepReport._sweep_dir = Path(config.hydra.sweep.dir)
        SweepReport._failures = {}
        SweepReport._present = None

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Put a job's failure in its record and out of the sweep's way."""
        if config.hydra.mode is not RunMode.MULTIRUN or job_return.status is not JobStatus.FAILED:
            return
        number, folder = config.hydra.job.num, Path(config.hydra.runtime.output_dir)
        # The public property would raise it.
        failure: Exception = job_return._return_value
        _record_failure(folder, failure, list(config.hydra.overrides.task))
        told = " ".join(f"{type(failure).__name__}: {failure}".split())
        SweepReport._failures = {**SweepReport._failures, number: told}
        print_error(f"job {number} failed: {failure}\nThe others go on.")
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print the report."""
        if SweepReport._sweep_dir is not None and not job_folders(SweepReport._sweep_dir):
            _refuse_nothing(OmegaConf.to_container(config.hydra, resolve=False))
        self.finish()

    @classmethod
    def finish(cls) -> SweepOutcome | None:
        """Write and print the report of the sweep under way; also after an interrupt.

        Returns:
            How the sweep went, kept as ``last_outcome`` too; None where no sweep was started.
        """
        if cls._sweep_dir is None or not cls._sweep_dir.is_dir():
            return None
        try:
            outcome = write_report(cls._sweep_dir, failures=cls._failures)
        except OSError as fault:
            print_error(
                f"cannot write the sweep's tables to {cls._sweep_dir}: {fault.strerror}. "
                "Each job's own record is in its folder there."
            )
            # Hydra makes a mere warning of a callback's exception; an exit it lets through.
            sys.exit(1)
        SweepReport._sweep_dir = None
        if cls._present is None:
            show(outcome)
        else:
            outcome = cls._present(outcome)
        SweepReport.last_outcome = outcome
        return outcome


def write_report(sweep_dir: Path, *, failures: Mapping[int, str] | None = None) -> SweepOutcome:
    """Write a sweep's ``results.csv``, ``results.md`` and ``results.png``.

    Args:
        sweep_dir: the sweep's folder.
        failures: as for `collect`.

    Returns:
        How the sweep went, and where the tables are.
    """
    rows = tuple(collect(sweep_dir, failures=failures))
    outcome = SweepOutcome(
        jobs=len(rows),
        failed=sum(row["status"] != COMPLETE for row in rows),
        results_csv=sweep_dir / "results.csv",
        results_md=sweep_dir / "results.md",
        rows=rows,
    )
    header = list(rows[0]) if rows else [*FIRST, "path"]
    write_text(outcome.results_csv, csv_table(header, [list(row.values()) for row in rows]))
    write_text(outcome.results_md, _markdown(outcome, sweep_dir))
    return replace(outcome, figure=_draw(outcome, sweep_dir / "results.png"))


def _draw(outcome: SweepOutcome, path: Path) -> Path | None:
    # Here, as Hydra imports this file for every command, and matplotlib takes half a second.
    from medpfl.report.sweep_figure import sweep_figure

    axes = varying_columns(outcome.rows)
    labels = [
        ", ".join(_text(row[axis]) for axis in axes) or str(row["job"]) for row in outcome.rows
    ]
    title = f"Sweep over {', '.join(axes)}" if axes else "Sweep"
    return path if sweep_figure(path, outcome.rows, labels, title=title) else None


def show(outcome: SweepOutcome, *, console: Console | None = None) -> None:
    """Print a sweep's table, its failures and where its files are.

    Args:
        outcome: what `write_report` returned.
        console: where to print; standard output by default.
    """
    out = console or make_console()
    rows = outcome.rows
    axes = varying_columns(rows)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("job", justify="right", no_wrap=True)
    for heading in _short(axes):
        table.add_column(heading, overflow="fold")
    last = _last(rows)
    shown = own_measures(rows)[:_MOST_MEASURES]
    for heading in (*_BRIEF, *shown, *last):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        varied = (_text(row[axis]) for axis in axes)
        table.add_row(str(row["job"]), *varied, *_brief(row, shown, last))
    out.print(Text(f"\n  {_headline(outcome)}", style="bold"))
    out.print(table)
    guesses = _guesses(rows)
    if guesses:
        out.print(Text(f"  {guesses}\n"))
    for row in rows:
        if row["status"] != COMPLETE:
            out.print(Text(f"  job {row['job']} {_ended(row)}"), soft_wrap=True)
    for sentence, jobs in _cautions(rows, outcome.results_csv.parent).items():
        caution(f"{_jobs(jobs)}: {sentence}", console=out)
    named = {"table": outcome.results_md, "numbers": outcome.results_csv}
    if outcome.figure is not None:
        named["figure"] = outcome.figure
    paths(named, console=out)


def _refuse_nothing(hydra: object) -> NoReturn:
    """End a sweep that had no jobs: that nothing failed would be no news."""
    why = " and ".join(without_values(hydra)) or "the settings of the sweep"
    print_error(f"the sweep has no jobs: nothing matches {why}")
    sys.exit(2)


def _record_failure(folder: Path, failure: Exception, overrides: list[str]) -> None:
    """Make sure that ``run.json`` tells of the failure, also where the run could not do it.

    The record of a run that has ended stays as it is: it may be another's.
    """
    record: Row = {"status": "running", "overrides": overrides}
    with suppress(OSError, ValueError):  # no record, or a damaged one: the failure is all there is
        record = read_record(folder)
    if record["status"] == "running":
        told = {"type": type(failure).__name__, "message": str(failure)}
        content = {**record, "status": FAILED, "error": told}
        write_text(folder / "run.json", _strict_json.dumps(content))


def _guesses(rows: Sequence[Row]) -> str:
    """Return what the guesses score that need no attack, over all jobs."""
    words = []
    for name, measure in (("all zeros", "ssim_zeros_mean"), ("mean image", "ssim_mean_image_mean")):
        values = [row[measure] for row in rows if row.get(measure) is not None]
        if values:
            ends = [format_number(value, 3) for value in (min(values), max(values))]
            words.append(f"{name} {' to '.join(dict.fromkeys(ends))}")
    return f"SSIM of guesses without an attack: {', '.join(words)}" if words else ""


def _cautions(rows: Sequence[Row], sweep_dir: Path) -> dict[str, list[int]]:
    """Return what keeps the jobs' numbers from saying what they seem to, with the jobs' numbers."""
    found: dict[str, list[int]] = {}
    for row in rows:
        with suppress(OSError, ValueError, AttributeError):
            summary = read_record(sweep_dir / str(row["path"])).get("summary") or {}
            for sentence in summary.get("cautions", ()):
                found.setdefault(str(sentence), []).append(row["job"])
    return found


def _jobs(numbers: Sequence[int]) -> str:
    names = ", ".join(map(str, numbers))
    return f"job{'' if len(numbers) == 1 else 's'} {names}"


def _markdown(outcome: SweepOutcome, sweep_dir: Path) -> str:
    axes = varying_columns(outcome.rows)
    own = own_measures(outcome.rows)
    bounded = _is_bounded(outcome.rows)
    header = ["job", *axes, *_measures({}, own, bounded=bounded), "status"]
    lines = []
    for row in outcome.rows:
        varied = (_text(row[axis]) for axis in axes)
        measured = _measures(row, own, bounded=bounded).values()
        lines.append([str(row["job"]), *varied, *measured, _ended(row)])
    said = "".join(
        f"- {_jobs(jobs)}: {sentence}.\n"
        for sentence, jobs in _cautions(outcome.rows, sweep_dir).items()
    )
    warned = f"\n## Read with care\n\n{said}" if said else ""
    return f"# {_headline(outcome)}\n\n{markdown_table(header, lines)}\n{_NOTE}\n{warned}"


def _last(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the headings that say most of these jobs, beside their rates."""
    if _is_bounded(rows):
        return _BOUND
    noisy = any(row.get("noise_scale_mean") is not None for row in rows)
    return _NOISE if noisy else _TIME


def _is_bounded(rows: Sequence[Row]) -> bool:
    return any(row.get("bound_psnr_db") is not None for row in rows)


def _brief(row: Row, own: Sequence[str], last: Sequence[str]) -> list[str | Text]:
    """Return the cells of the printed table: what fits beside two settings in 80 columns."""
    if row["status"] != COMPLETE:
        empty = [""] * (len(_BRIEF) - 1 + len(own) + len(last))
        return [Text(row["status"], style=ERROR_STYLE), *empty]
    measured = _measures(row, own, bounded=last == _BOUND)
    rate = f"{measured['ASR'].removesuffix(' %')} {measured['95 %']}"
    leaked = measured["recognisable"].removesuffix(" %")
    keys = ("n", "SSIM", *map(_of_own, own), *(_LONG_HEADINGS[name] for name in last))
    return [rate, leaked, *(measured[key] for key in keys)]


def _short(axes: Sequence[str]) -> list[str]:
    """Return the settings' last names where these still tell them apart."""
    last = [axis.rpartition(".")[2] for axis in axes]
    return last if len(set(last)) == len(last) else list(axes)


def _ended(row: Row) -> str:
    return f"{row['status']}: {row['error']}" if row["error"] else str(row["status"])


def _measures(row: Row, own: Sequence[str], *, bounded: bool) -> dict[str, str]:
    """Return what a job measured, as text by heading; empty where it measured nothing.

    Args:
        row: the job's.
        own: the names of measures that were added; they come last.
        bounded: whether any of the jobs has a bound.
    """
    texts = {
        "n": _text(row.get("n")),
        "ASR": format_percent(row.get("asr")),
        "95 %": format_interval(row.get("asr_low"), row.get("asr_high")),
        "recognisable": format_percent(row.get("leaked")),
        "recognisable, 95 %": format_interval(row.get("leaked_low"), row.get("leaked_high")),
        "ceiling": format_percent(row.get("asr_ceiling")),
        "SSIM": format_number(row.get("ssim_mean"), 3),
        "all zeros": format_number(row.get("ssim_zeros_mean"), 3),
        "mean image": format_number(row.get("ssim_mean_image_mean"), 3),
        "SSIM, median": format_number(row.get("ssim_median"), 3),
        "MSE": format_number(row.get("mse_mean"), 4),
        "PSNR (dB)": format_number(row.get("psnr_db_mean"), 1),
        "labels right": format_percent(row.get("label_accuracy")),
        "s / image": format_number(row.get("seconds_per_image"), 2),
        "noise scale": _scale(row.get("noise_scale_mean")),
        "SNR (dB)": "none" if row.get("snr_db_mean") is None else f"{row['snr_db_mean']:.1f}",
        **(_bounds(row) if bounded else {}),
        **{_of_own(name): format_value(row.get(f"{name}_mean")) for name in own},
    }
    return texts if row.get("n") is not None else dict.fromkeys(texts, "")


def _bounds(row: Row) -> dict[str, str]:
    return {
        "attack (dB)": format_number(row.get("attack_psnr_db"), 1),
        "bound (dB)": format_number(row.get("bound_psnr_db"), 1),
    }


def _of_own(name: str) -> str:
    """Return the heading of a measure that was added, which may be called as a column here is."""
    return f"{name}, mean"


def _scale(value: float | None) -> str:
    return "none" if value is None else f"{value:.2g}"


def _headline(outcome: SweepOutcome) -> str:
    failed = f", {outcome.failed} not complete" if outcome.failed else ", all complete"
    return f"Sweep of {outcome.jobs} job{'' if outcome.jobs == 1 else 's'}{failed}"


def _text(value: object) -> str:
    return "" if value is None else str(value)
