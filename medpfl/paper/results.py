"""What the jobs of a paper's sweep measured, and why some measured nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medpfl.metrics.bootstrap import bootstrap_mean
from medpfl.metrics.rates import is_zero_gradient, wilson
from medpfl.paper.expected import predicted_success
from medpfl.report.jobs import COMPLETE, Row, overrides_by_job, read_record
from medpfl.report.sweep import SweepOutcome
from medpfl.report.tables import MISSING, format_number

_FAILED = "failed"
_NOT_RUN = {
    "was not found": "no data: set MEDPFL_DATA_ROOT",
    "no CUDA device": "not run: needs a GPU",
    "model.weights=imagenet": "not run: no ImageNet weights on this machine",
}
"""Reasons that lie with the machine, by what their message says; all others are failures."""


@dataclass(frozen=True)
class Estimate:
    """A rate or a mean, over n images, with its 95 % interval (NaN where n tells nothing)."""

    value: float
    low: float
    high: float
    n: int

    def text(self, digits: int, *, percent: bool = False) -> str:
        """Return text such as ``74.7 [65.4, 82.3] n 99``; percentages are without their sign."""
        if self.n == 0:
            return MISSING
        scale = 100 if percent else 1
        value, low, high = (
            format_number(scale * v, digits) for v in (self.value, self.low, self.high)
        )
        interval = "" if math.isnan(self.low) else f" [{low}, {high}]"
        return f"{value}{interval} n {self.n}"


@dataclass(frozen=True)
class JobResult:
    """One job of the sweep.

    Args:
        number: the job's number.
        row: the experiment, as in ``conf/paper/row``.
        dataset: the attacked dataset.
        noise: as in ``conf/paper/noise``, or None where the sweep has none.
        problem: why there are no numbers, in a reader's words; None where there are.
        error: the failure in full, or None.
        failed: whether the problem is a failure, rather than something this machine lacks.
        scores: ``metrics.csv`` of a complete job, else empty.
        device: what it computed on, or None.
        folder: the job's folder.
    """

    number: int
    row: str
    dataset: str
    noise: str | None
    problem: str | None
    error: str | None
    failed: bool
    scores: pd.DataFrame
    device: str | None
    folder: Path

    def rate(self, column: str, *, threshold: float | None = None) -> Estimate:
        """Return the share of images that are true in a column, or reach a threshold in it.

        An undefined number does not reach it.
        """
        values = self.scores[column]
        hits = values.astype(bool) if threshold is None else values >= threshold
        n, successes = len(values), int(hits.sum())
        return Estimate(successes / n, *wilson(successes, n), n)

    def mean(self, column: str) -> Estimate:
        """Return the mean over the images where the column is defined."""
        return mean_of(self.scores[column])

    @property
    def ceiling(self) -> float:
        """The share of images with a gradient."""
        norms = self.scores["gradient_norm"]
        return 1 - sum(is_zero_gradient(float(norm)) for norm in norms) / len(norms)

    @property
    def predicted(self) -> float | None:
        """The success rate that the class shares predict."""
        labels = [int(label) for label in self.scores["label"]]
        return predicted_success(labels, [float(p) for p in self.scores["true_probability"]])

    @property
    def label_accuracy(self) -> float:
        """The share of images whose label was inferred rightly."""
        return float((self.scores["label"] == self.scores["label_inferred"]).mean())


def mean_of(values: Iterable[float]) -> Estimate:
    """Return the mean of the finite values, with its bootstrap interval."""
    kept = [float(v) for v in values if math.isfinite(v)]
    if not kept:
        return Estimate(math.nan, math.nan, math.nan, 0)
    return Estimate(sum(kept) / len(kept), *bootstrap_mean(kept), len(kept))


def failures(results: Iterable[JobResult]) -> list[str]:
    """Return a line for each job that failed: cells have room for its number alone."""
    return [
        f"job {r.number} failed: {r.error}"
        for r in results
        if r.problem is not None and r.problem.startswith(_FAILED)
    ]


def read_results(outcome: SweepOutcome) -> list[JobResult]:
    """Read the jobs of a paper's sweep, those that never started too.

    Of a job that did not end, nothing is shown but that: the images that were finished first are
    those that were easy, and their mean would flatter the attack.
    """
    folder = outcome.results_csv.parent
    told = overrides_by_job(folder)
    return [_read(folder / str(row["path"]), row, told.get(row["job"], {})) for row in outcome.rows]


def _read(folder: Path, row: Row, told: dict[str, str]) -> JobResult:
    complete = row["status"] == COMPLETE
    record: Row = {}
    with suppress(OSError, ValueError):  # a job that never started has no record
        record = read_record(folder)
    config = record.get("config") or {}
    scores = pd.read_csv(folder / "metrics.csv") if complete else pd.DataFrame()
    return JobResult(
        number=row["job"],
        row=told.get("paper/row") or _at(config, "paper", "row") or "",
        dataset=told.get("dataset") or _at(config, "dataset", "name") or str(row["dataset"]),
        noise=told.get("paper/noise"),
        problem=None if complete else _problem(row, folder),
        error=row["error"],
        failed=not complete and not _lies_with_the_machine(row),
        scores=scores,
        device=record.get("device"),
        folder=folder,
    )


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _lies_with_the_machine(row: Row) -> bool:
    return any(sign in str(row["error"]) for sign in _NOT_RUN)


def _problem(row: Row, folder: Path) -> str:
    for sign, words in _NOT_RUN.items():
        if sign in str(row["error"]):
            return words
    if row["status"] == "interrupted":
        return f"interrupted after {_finished(folder)} images"
    if row["status"] == "missing":
        return "not started: the sweep was interrupted"
    if row["status"] == "running":
        return "broken off: the process ended"
    return f"{_FAILED}: job {row['job']}"


def _finished(folder: Path) -> int:
    path = folder / "metrics.csv"
    return len(pd.read_csv(path)) if path.is_file() else 0
