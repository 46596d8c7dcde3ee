"""A paper's sweep: says what it will take, and ends in the paper's table or figure."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.text import Text

from medpfl.paper.reported import REPORTED_IMAGES, ROWS
from medpfl.paper.results import JobResult, read_results
from medpfl.report.console import error as print_error
from medpfl.report.console import make_console, paths
from medpfl.report.jobs import planned
from medpfl.report.palette import WARNING_STYLE
from medpfl.report.sweep import SweepOutcome, SweepReport
from medpfl.report.tables import format_seconds

BUDGETS = ("full", "quick")


class Product(Protocol):
    """What a paper's sweep is run for."""

    @property
    def title(self) -> str:
        """What it is, in one line."""
        ...

    def make(self, results: Sequence[JobResult], folder: Path, *, note: str) -> Mapping[str, Path]:
        """Write and print the product.

        Args:
            results: all jobs, those without numbers too.
            folder: where to write.
            note: how the sweep was shortened, if it was; to be said in the product.

        Returns:
            What was written, by name.
        """
        ...


class PaperReport(SweepReport):
    """End a sweep in a product, instead of the plain table of jobs.

    Args:
        product: the table or figure.
    """

    def __init__(self, product: Product) -> None:
        self.product = product
        self._note = ""
        self._expected: list[float] = []
        self._began, self._ended = 0.0, 0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say what is to come and how long it is expected to take."""
        resolve_swept(config)
        super().on_multirun_start(config, **kwargs)
        if config.budget not in BUDGETS:
            print_error(f"budget={config.budget}: choose full or quick")
            # Hydra makes a mere warning of a callback's exception; an exit it lets through.
            sys.exit(2)
        self._note = shortened(config.budget, config.n_images)
        SweepReport._present = self._finish
        jobs = planned(OmegaConf.to_container(config.hydra, resolve=False))
        out = make_console()
        out.print(Text(f"\n  {self.product.title}", style="bold"))
        if self._note:
            out.print(Text(f"  {self._note}", style=WARNING_STYLE))
        out.print(Text(f"  {expected_duration(jobs, config.paper.row, config.n_images)}\n"))
        self._expected = [expected_seconds(job, config.paper.row, config.n_images) for job in jobs]
        self._began, self._ended = time.monotonic(), 0

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Say after every job how long the others will take, at the pace of those that ended."""
        super().on_job_end(config, job_return, **kwargs)
        self._ended += 1
        done, left = self._expected[: self._ended], self._expected[self._ended :]
        if not left or not sum(done):
            return
        seconds = (time.monotonic() - self._began) * sum(left) / sum(done)
        told = f"{self._ended} of {len(self._expected)} jobs, about {format_seconds(seconds)} left"
        make_console().print(Text(f"\n  {told}, at the pace of these jobs\n"))

    def _finish(self, outcome: SweepOutcome) -> SweepOutcome:
        """Make the product; a row that this machine cannot run does not count as failed."""
        results = read_results(outcome)
        folder = outcome.results_csv.parent
        written = self.product.make(results, folder, note=self._note)
        paths({"numbers": outcome.results_csv, **written})
        nothing_ran = all(result.problem is not None for result in results)
        failed = sum(result.failed for result in results)
        return replace(outcome, failed=len(results) if nothing_ran else failed)


def resolve_swept(config: DictConfig) -> None:
    """Write out what a sweep's values refer to, such as those that follow the budget.

    Hydra's notes keep them as they are here, and whoever reads these later sees plain lists.
    """
    params = config.hydra.sweeper.get("params")
    if params is not None and config.budget in BUDGETS:
        with read_write(config), open_dict(config):
            config.hydra.sweeper.params = OmegaConf.to_container(params, resolve=True)


def shortened(budget: str, n_images: int | None) -> str:
    """Return how a run falls short of the papers', or an empty text."""
    images = f"at most {n_images} images a row" if n_images is not None else "all images of a row"
    if budget == "quick":
        return (
            f"PREVIEW (budget=quick): {images}, most attacks with fewer steps; "
            f"the papers attack {REPORTED_IMAGES}"
        )
    if n_images is not None and n_images < REPORTED_IMAGES:
        return f"shortened: {images}; the papers attack {REPORTED_IMAGES}"
    return ""


def expected_duration(jobs: Sequence[Sequence[str]], row: str, n_images: int | None) -> str:
    """Return what a sweep will take on 2 CPU cores, in one line; an estimate from measured times.

    Args:
        jobs: the overrides of every job.
        row: the experiment of jobs that do not choose one.
        n_images: images a job, or None for what the datasets' strides visit, at most 100.
    """
    images = REPORTED_IMAGES if n_images is None else n_images
    chosen = [_row_of(job, row) for job in jobs]
    seconds = sum(expected_seconds(job, row, n_images) for job in jobs)
    skipped = sum(name in ROWS and ROWS[name].seconds is None for name in chosen)
    on_gpu = f", and {skipped} that need a GPU (hours each at full size)" if skipped else ""
    return (
        f"{len(jobs)} jobs of up to {images} images{on_gpu}; about {format_seconds(seconds)} on 2 "
        "idle CPU cores, a multiple on busy ones: each job's end says what is left"
    )


def expected_seconds(job: Sequence[str], row: str, n_images: int | None) -> float:
    """Return what a job takes on 2 idle CPU cores; 0 where it needs a GPU or is not known.

    Args:
        job: its overrides.
        row: the experiment, where the job does not choose one.
        n_images: images, or None for what the datasets' strides visit, at most 100.
    """
    name = _row_of(job, row)
    seconds = ROWS[name].seconds if name in ROWS else None
    return (REPORTED_IMAGES if n_images is None else n_images) * (seconds or 0.0)


def _row_of(job: Sequence[str], row: str) -> str:
    return dict(o.partition("=")[::2] for o in job).get("paper/row", row)
