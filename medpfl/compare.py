"""``medpfl-compare RUN_A RUN_B``: two attacks on the same images, compared image by image."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from medpfl.errors import DataError, MedpflError
from medpfl.metrics.bootstrap import bootstrap_mean
from medpfl.metrics.grades import Grade
from medpfl.metrics.paired import mcnemar_exact
from medpfl.metrics.rates import wilson
from medpfl.report.console import error as print_error
from medpfl.report.console import make_console
from medpfl.report.palette import WARNING_STYLE
from medpfl.report.tables import format_interval, format_number, format_percent

_MISTAKE = 2
_COLUMNS = ("image_id", "ssim", "success")
_LATER = ("grade",)  # older tables have none
_MOST_DIFFERENCES = 12


@dataclass(frozen=True)
class Run:
    """What a comparison needs of a run.

    Args:
        folder: the run's folder.
        label: attack, dataset and defense, in words.
        dataset: the dataset's name.
        preprocess: how pictures became examples.
        status: how the run ended.
        scores: ``metrics.csv``, one row an image, indexed by image id.
        settings: the configuration, flat: ``attack.optimizer.max_steps`` to its value.
        network: the network's name.
    """

    folder: Path
    label: str
    dataset: str
    preprocess: object
    status: str
    scores: pd.DataFrame
    settings: Mapping[str, object]
    network: str


@dataclass(frozen=True)
class Comparison:
    """Two runs on the images that both attacked.

    Args:
        n: images in common.
        successes: of A and of B, among these.
        only_a: images that A alone rebuilt.
        only_b: images that B alone rebuilt.
        p_value: exact McNemar test of equal success rates.
        ssim: mean SSIM of A and of B.
        ssim_difference: mean of A minus B.
        ssim_interval: 95 % bootstrap interval of `ssim_difference`; NaN for fewer than 5 images.
        images: the images in common.
    """

    n: int
    successes: tuple[int, int]
    only_a: int
    only_b: int
    p_value: float
    ssim: tuple[float, float]
    ssim_difference: float
    ssim_interval: tuple[float, float]
    images: tuple[str, ...] = ()


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        DataError: it is not the folder of a run, or its files cannot be read.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        scores = pd.read_csv(folder / "metrics.csv")
        config, status = record["config"], str(record["status"])
        dataset, attack = str(config["dataset"]["name"]), str(config["attack"]["name"])
        label = f"{attack} on {dataset}{_defended(config)}"
        columns = [*_COLUMNS, *(name for name in _LATER if name in scores)]
        table = scores[columns].set_index("image_id")
    except FileNotFoundError as fault:
        missing = Path(fault.filename).name
        raise DataError(
            f"{folder} is not the folder of a run: it has no {missing}. Give a folder such as "
            "outputs/2025-01-31/10-00-00, or of a sweep the folder of one job"
        ) from fault
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise DataError(f"{folder}: its run.json or metrics.csv cannot be read: {fault}") from fault
    if not table.index.is_unique:
        raise DataError(f"{folder}: metrics.csv names an image twice, so nothing can be paired")
    return Run(
        folder=folder,
        label=label,
        dataset=dataset,
        preprocess=config.get("preprocess"),
        status=status,
        scores=table,
        settings=_flat(config),
        network=_last_name(config.get("model")),
    )


def compare(a: Run, b: Run) -> Comparison:
    """Compare two runs on the images that both attacked.

    Raises:
        DataError: they attacked different datasets, or have no image in common.
    """
    if a.dataset != b.dataset:
        raise DataError(
            f"the runs attack different datasets, {a.dataset} and {b.dataset}: their images cannot "
            "be paired"
        )
    common = a.scores.index.intersection(b.scores.index)
    if len(common) == 0:
        raise DataError(
            f"the runs have no image in common: {len(a.scores)} in {a.folder}, {len(b.scores)} in "
            f"{b.folder}. Attack the same images: same dataset, split, stride and n_images"
        )
    first, second = a.scores.loc[common], b.scores.loc[common]
    hit_a, hit_b = first["success"].astype(bool), second["success"].astype(bool)
    only_a, only_b = int((hit_a & ~hit_b).sum()), int((hit_b & ~hit_a).sum())
    difference = [float(d) for d in first["ssim"] - second["ssim"]]
    return Comparison(
        n=len(common),
        successes=(int(hit_a.sum()), int(hit_b.sum())),
        only_a=only_a,
        only_b=only_b,
        p_value=mcnemar_exact(only_a, only_b),
        ssim=(float(first["ssim"].mean()), float(second["ssim"].mean())),
        ssim_difference=sum(difference) / len(difference),
        ssim_interval=bootstrap_mean(difference),
        images=tuple(common),
    )


def show(a: Run, b: Run, found: Comparison) -> None:
    """Print a comparison, and what keeps it from being one of like with like."""
    out = make_console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("")
    for heading in ("A", "B"):
        table.add_column(heading, justify="right")
    table.add_row("run", *_labels(a, b))
    rates = (
        f"{format_percent(k / found.n)} {format_interval(*wilson(k, found.n))}"
        for k in found.successes
    )
    table.add_row("ASR, 95 % interval", *rates)
    leaked = [_recognisable(run, found) for run in (a, b)]
    if None not in leaked:
        table.add_row("at least recognisable", *(str(text) for text in leaked))
    table.add_row("rebuilt by this run alone", str(found.only_a), str(found.only_b))
    table.add_row("mean SSIM", *(format_number(value, 3) for value in found.ssim))
    out.print(Text(f"\n  {found.n} images in common", style="bold"))
    out.print(table)
    low, high = found.ssim_interval
    interval = "" if math.isnan(low) else f", 95 % interval [{low:+.3f}, {high:+.3f}]"
    out.print(f"  success, McNemar exact:  p = {found.p_value:.3g}, two-sided")
    out.print(f"  SSIM, A minus B:         {found.ssim_difference:+.3f}{interval} (bootstrap)")
    for line in _differences(a, b):
        out.print(f"  {line}", soft_wrap=True)
    for note in _notes(a, b, found):
        out.print(Text(f"  note: {note}", style=WARNING_STYLE))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``medpfl-compare``; exit 2 for runs that cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="medpfl-compare", description="Compare two runs on the images that both attacked."
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="a run's folder")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="another run's folder")
    given = parser.parse_args(arguments)
    try:
        a, b = read_run(given.run_a), read_run(given.run_b)
        show(a, b, compare(a, b))
    except MedpflError as mistake:
        print_error(str(mistake))
        sys.exit(_MISTAKE)


def _labels(a: Run, b: Run) -> tuple[str, str]:
    """Return the runs' names, with their networks where they would be the same."""
    if a.label != b.label:
        return a.label, b.label
    return f"{a.label}, {a.network}", f"{b.label}, {b.network}"


def _recognisable(run: Run, found: Comparison) -> str | None:
    """Return the share of the common images that are at least recognisable; None if ungraded."""
    if "grade" not in run.scores:
        return None
    grades = run.scores.loc[list(found.images), "grade"]
    if not grades.isin([str(grade) for grade in Grade]).all():
        return None
    count = int((grades != Grade.NOTHING).sum())
    return f"{format_percent(count / found.n)} {format_interval(*wilson(count, found.n))}"


def _differences(a: Run, b: Run) -> list[str]:
    """Return the settings that differ, a line each, and how many more there are."""
    missing = "not set"
    keys = dict.fromkeys([*a.settings, *b.settings])
    differing = [k for k in keys if a.settings.get(k, missing) != b.settings.get(k, missing)]
    if not differing:
        return ["settings:                 the same"]
    lines = ["settings that differ, A -> B:"]
    lines += [
        f"  {key}: {a.settings.get(key, missing)} -> {b.settings.get(key, missing)}"
        for key in differing[:_MOST_DIFFERENCES]
    ]
    more = len(differing) - _MOST_DIFFERENCES
    return [*lines, f"  and {more} more"] if more > 0 else lines


def _flat(tree: object, prefix: str = "") -> dict[str, object]:
    """Return the leaves of nested mappings by their dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, object] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _last_name(part: object) -> str:
    target = str(part.get("_target_", "")) if isinstance(part, dict) else ""
    return target.rpartition(".")[2] or "unknown network"


def _defended(config: dict[str, Any]) -> str:
    target = str(config.get("defense", {}).get("_target_", ""))
    name = target.rpartition(".")[2]
    return "" if name in ("", "NoDefense") else f", defended ({name})"


def _notes(a: Run, b: Run, found: Comparison) -> list[str]:
    notes = [
        f"{name} has {len(run.scores) - found.n} more images, left out"
        for name, run in (("A", a), ("B", b))
        if len(run.scores) > found.n
    ]
    notes += [
        f"{name} is {run.status}: images that ended early are the easy ones"
        for name, run in (("A", a), ("B", b))
        if run.status != "complete"
    ]
    if a.preprocess != b.preprocess:
        notes.append("the runs preprocess differently: the pictures are not quite the same")
    return notes
