"""`success`: whether one image behind an update is always found, over datasets and networks."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medpfl.bench.machine import show_note, show_table
from medpfl.bench.updates import Attempt, attack_updates, compute_updates, dataset_overrides
from medpfl.data.roots import DATA_ROOT_VARIABLE
from medpfl.errors import MedpflError
from medpfl.image_score import ImageScore
from medpfl.metrics import summarise
from medpfl.metrics.rates import is_zero_gradient
from medpfl.report.console import make_console
from medpfl.report.tables import format_interval, format_number, format_percent, format_seconds

NETWORKS: dict[str, tuple[str, ...]] = {
    "dlg_cnn": ("model=dlg_cnn",),
    "idlg_cnn": ("model=idlg_cnn",),
    "cpl_cnn": ("model=cpl_cnn",),
    "cpl_cnn+adam": ("model=cpl_cnn", "federation/pretrain=adam_step"),
}
"""The papers' networks, CPL's with and without the Adam step that it trains for."""

PUBLISHED = ("brain_mri", "covid", "melanoma")

_COLUMNS = (
    "dataset",
    "network",
    "images",
    "with a gradient",
    "solved of these",
    "ASR",
    "95 %",
    "mean SSIM",
    "smallest SSIM",
    "s / image",
    "solved of the others",
)

_NOTE = (
    "With a gradient: its squared norm is not zero in float32. Solved: SSIM of at least 0.9. "
    "ASR, SSIM and seconds are over the images with a gradient; float64 finds some of the others, "
    "too."
)


@dataclass(frozen=True)
class Case:
    """One dataset on one network.

    Args:
        dataset: an option of conf/dataset, or ``name@folder``.
        network: a key of `NETWORKS`.
    """

    dataset: str
    network: str

    def overrides(self) -> list[str]:
        """Return its settings."""
        return [*dataset_overrides(self.dataset), *NETWORKS[self.network]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the table can be told."""
    has_data = bool(os.environ.get(DATA_ROOT_VARIABLE))
    parser.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME[@FOLDER]",
        default=list(PUBLISHED) if has_data else ["phantom"],
        help=f"options of conf/dataset, such as covid@${DATA_ROOT_VARIABLE}/covid_640px for images "
        f"that lie elsewhere; {', '.join(PUBLISHED)} where {DATA_ROOT_VARIABLE} is set, else "
        "phantom",
    )
    parser.add_argument(
        "--attack", default="scale_free", help="an option of conf/attack; %(default)s"
    )
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument(
        "--images", type=int, help="images of each dataset; what its stride visits, at most 100"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; %(default)s")
    parser.add_argument(
        "--override",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of medpfl for every case, such as attack.rows=32 or dataset.select=random",
    )


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Print a row a case, and below the table each image that was not found.

    A case that cannot run (too few images, a dataset that is not there) is said below the table.

    Raises:
        MedpflError: no case could run.
    """
    rows: list[tuple[str, ...]] = []
    failures: list[str] = []
    fault: MedpflError | None = None
    for case in (Case(d, m) for d in arguments.datasets for m in arguments.models):
        own = [
            f"attack={arguments.attack}",
            f"device={arguments.device}",
            f"n_images={arguments.images or 'null'}",
        ]
        overrides = [*own, *case.overrides(), *arguments.override]
        try:
            attempt = attack_updates(compute_updates(overrides))
        except MedpflError as error:  # the other cases are worth as much without this one
            fault = error
            failures.append(f"{case.dataset}, {case.network} could not run: {error}")
            continue
        cells = _shown(case, attempt)
        make_console(stderr=True).print(" | ".join(cells), soft_wrap=True)
        rows.append(cells)
        failures += _failures(case, attempt)
    if fault is not None and not rows:
        raise fault
    title = f"Success of {arguments.attack}, one image an update"
    show_table(title, _COLUMNS, rows, command=command)
    show_note(_NOTE)
    for line in failures or ["Every image with a gradient was found."]:
        show_note(line)


def _shown(case: Case, attempt: Attempt) -> tuple[str, ...]:
    seen = [s for s in attempt.scores if not is_zero_gradient(s.gradient_norm)]
    others = [s for s in attempt.scores if is_zero_gradient(s.gradient_norm)]
    head = (case.dataset, case.network, str(len(attempt.scores)), str(len(seen)))
    tail = f"{sum(s.success for s in others)} of {len(others)}"
    if not seen:
        return (*head, "0 of 0", *("n/a",) * 5, tail)
    summary = summarise(seen)
    return (
        *head,
        f"{sum(s.success for s in seen)} of {len(seen)}",
        format_percent(summary.asr),
        format_interval(summary.asr_low, summary.asr_high),
        format_number(summary.ssim_mean, 4),
        format_number(min(s.ssim for s in seen), 4),
        format_seconds(summary.seconds_per_image),
        tail,
    )


def _failures(case: Case, attempt: Attempt) -> Iterator[str]:
    """Say of each image that has a gradient and was not found, how its attack ended."""
    for s in attempt.scores:
        if not s.success and not is_zero_gradient(s.gradient_norm):
            yield f"Not found: {case.dataset}, {case.network}: {_ending(s)}"


def _ending(s: ImageScore) -> str:
    return (
        f"{s.image_id}: {s.status}, SSIM {s.ssim:.4f}, objective {s.objective:.3g}, gradient norm "
        f"{s.gradient_norm:.3g}, true class at {s.true_probability:.6f}"
    )
