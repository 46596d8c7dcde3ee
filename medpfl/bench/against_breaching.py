"""`breaching`: the breaching library beside medpfl, on the same updates, scored the same way."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import torch

from medpfl.bench import breaching_side
from medpfl.bench.machine import show_note, show_table
from medpfl.bench.updates import (
    Attempt,
    Clock,
    Updates,
    attack_updates,
    compute_updates,
    dataset_overrides,
    score,
)
from medpfl.errors import ConfigurationError
from medpfl.report.console import make_console
from medpfl.report.tables import format_number, format_percent, format_seconds

ONE_IMAGE = ("deepleakage", "deepleakage, labels given")
"""What is compared where an update hides one image; elsewhere, all that fits an image gradient."""

_COLUMNS = (
    "images an update",
    "attacker",
    "steps at most",
    "updates",
    "solved",
    "ASR",
    "mean SSIM",
    "s / image",
    "CPU s / image",
    "s / solved image",
    "against medpfl",
    "against medpfl in CPU s",
)

_NOTE = (
    "Solved: SSIM of at least 0.9 after one-to-one matching. breaching is told the true labels, "
    "except by `deepleakage` as it ships, which optimises them; medpfl infers them. A step of "
    "breaching's L-BFGS (deepleakage, wei, beyondinfering) is up to 20 iterations. Seconds are "
    "wall time, one after another in one process; CPU seconds are what the process itself "
    "computed, which other work on the machine hardly changes."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the comparison can be told."""
    parser.add_argument(
        "--dataset", default="phantom", help="an option of conf/dataset; %(default)s"
    )
    parser.add_argument(
        "--attack",
        nargs="+",
        default=["scale_free"],
        metavar="NAME",
        help="medpfl's, options of conf/attack, each with settings of its own, such as "
        "'scale_free attack.restarts=1'; the first is what others are held against",
    )
    parser.add_argument("--model", default="dlg_cnn", help="an option of conf/model; %(default)s")
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 2, 4, 8], help="images an update; 1 2 4 8"
    )
    parser.add_argument("--updates", type=int, default=4, help="updates of each size; %(default)s")
    parser.add_argument(
        "--configurations",
        nargs="+",
        metavar="NAME",
        help="breaching's configurations, or all; deepleakage for one image, else all",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=1.0,
        help="what breaching's own numbers of iterations are multiplied by (1: as it ships)",
    )
    parser.add_argument(
        "--override",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of medpfl, such as dataset.root=... or attack.restarts=2",
    )


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Print the table; without breaching, medpfl's rows alone.

    Raises:
        MedpflError: a mistake in the settings.
    """
    installed = breaching_side.is_installed()
    rows = [row for n in arguments.batches for row in _compare(arguments, n, installed)]
    beside = f" beside breaching {version('breaching')}" if installed else ""
    own = ", ".join(arguments.attack)
    title = f"medpfl's {own}{beside}: {arguments.dataset}, {arguments.model}"
    show_table(title, _COLUMNS, rows, command=command)
    if installed:
        show_note(f"{_NOTE} breaching's budget: {arguments.budget:g} of its own iterations.")
    else:
        show_note(breaching_side.HOW_TO_GET)


def _compare(
    arguments: argparse.Namespace, batch: int, installed: bool
) -> Iterator[tuple[str, ...]]:
    first, *others = arguments.attack
    updates = _updates(arguments, batch, first)
    own = attack_updates(updates)
    yield _shown(batch, f"medpfl {first}", _steps(updates), updates, own, own)
    for other in others:
        same = _updates(arguments, batch, other)
        _check_same(updates, same, first, other)
        attempt = attack_updates(same)
        yield _shown(batch, f"medpfl {other}", _steps(same), same, attempt, own)
    if not installed:
        return
    wanted = arguments.configurations or (ONE_IMAGE if batch == 1 else ["all"])
    for name in breaching_side.known_configurations(wanted):
        chosen = breaching_side.settings(name, budget=arguments.budget)
        theirs = _attacked(updates, chosen)
        yield _shown(batch, f"breaching {name}", str(chosen.iterations), updates, theirs, own)


def _updates(arguments: argparse.Namespace, batch: int, attack: str) -> Updates:
    """Return the updates as an attack with settings of its own sees them."""
    name, *settings = attack.split()
    return compute_updates(
        (
            f"attack={name}",
            "device=cpu",
            *dataset_overrides(arguments.dataset),
            f"model={arguments.model}",
            "dataset.select=random",
            f"n_images={batch * arguments.updates}",
            f"federation.batch_size={batch}",
            *arguments.override,
            *settings,
        )
    ).with_gradient()


def _steps(updates: Updates) -> str:
    return str(updates.config.attack.optimizer.max_steps)


def _check_same(updates: Updates, others: Updates, first: str, other: str) -> None:
    """Raise a `ConfigurationError` where two attacks are given different updates."""
    pairs = zip(updates.each, others.each, strict=True)
    for ours, theirs in pairs:
        a, b = ours.observation.tensors, theirs.observation.tensors
        if a.keys() != b.keys() or not all(torch.equal(a[name], b[name]) for name in a):
            raise ConfigurationError(
                f"--attack: {first} and {other} bring different networks or images, so that they "
                "cannot be compared on the same updates: set these with --override"
            )


def _attacked(updates: Updates, chosen: breaching_side.Settings) -> Attempt:
    """Run breaching on each update in turn."""
    seed, clock = updates.experiment.seed, Clock()
    found = [
        breaching_side.reconstruct(u.observation, u.truth.labels, chosen, seed=seed)
        for u in updates.each
        if u.truth is not None
    ]
    return score(updates, found, clock)


def _shown(
    batch: int, attacker: str, steps: str, updates: Updates, attempt: Attempt, own: Attempt
) -> tuple[str, ...]:
    """Return a row, and say on standard error that it is there: the whole table takes a while."""
    images = len(attempt.scores)
    mean = sum(s.ssim for s in attempt.scores) / max(1, images)
    cells = (
        str(batch),
        attacker,
        steps,
        str(len(updates.each)),
        f"{attempt.solved} of {images}",
        format_percent(attempt.solved / max(1, images)),
        format_number(mean),
        format_seconds(attempt.per_image),
        format_seconds(attempt.cpu_per_image),
        format_seconds(attempt.per_solved) if attempt.solved else "none solved",
        "" if attempt is own else _times(own.per_solved, attempt.per_solved, attempt.seconds),
        ""
        if attempt is own
        else _times(own.cpu_per_solved, attempt.cpu_per_solved, attempt.cpu_seconds),
    )
    make_console(stderr=True).print(" | ".join(cells), soft_wrap=True)
    return cells


def _times(own: float, theirs: float, spent: float) -> str:
    """Say how many times as many seconds as medpfl the other one takes a solved image.

    Where the other one solved nothing, all that it spent is a lower bound of what one image takes.
    """
    if math.isinf(own):
        return "medpfl solved none"
    return f"at least {spent / own:.3g}x" if math.isinf(theirs) else f"{theirs / own:.3g}x"
