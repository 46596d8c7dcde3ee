"""`loop`: the batched engine beside a plain loop over torch.optim.LBFGS, on the same images."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from medpfl.bench.compiling import CompileWatch
from medpfl.bench.machine import show_note, show_table
from medpfl.bench.plain import PlainResult, plain_attack
from medpfl.bench.updates import (
    Attempt,
    Clock,
    Updates,
    attack_updates,
    compute_updates,
    dataset_overrides,
    score,
)
from medpfl.outcomes import Status
from medpfl.seeding import generator
from medpfl.settings.build import instantiate
from medpfl.types import Observation, Reconstruction

ATTACKS = ("dlg", "idlg", "cpl")

_COLUMNS = (
    "attack",
    "engine",
    "images",
    "plain s/image",
    "batched s/image",
    "plain ms/evaluation",
    "batched ms/evaluation",
    "throughput",
    "throughput in CPU s",
    "compiling, s",
    "solved, plain",
    "solved, batched",
    "same success",
)

_NOTE = (
    "Throughput: evaluations of the objective's gradient a second, over all images, batched "
    "against plain. Both start every image from the same numbers. Time to compile is apart and in "
    "no other column. CPU seconds are what the process itself computed, which other work on the "
    "machine hardly changes."
)


@dataclass(frozen=True)
class Engine:
    """The engine in one setting, on the plain loop's images.

    Args:
        name: in words.
        attempt: what it made of them; its seconds are without those of compiling.
        compiling: seconds of compiling, or None where nothing is compiled.
    """

    name: str
    attempt: Attempt
    compiling: float | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the comparison can be told."""
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument(
        "--dataset", default="phantom", help="an option of conf/dataset; %(default)s"
    )
    parser.add_argument("--images", type=int, default=24, help="images to attack; %(default)s")
    parser.add_argument(
        "--steps", type=int, default=20, help="optimiser steps at most; %(default)s"
    )
    parser.add_argument("--rows", default="auto", help="images side by side; %(default)s")
    parser.add_argument("--compile", action="store_true", help="add a row with attack.compile=true")
    parser.add_argument(
        "--override", nargs="+", default=[], metavar="KEY=VALUE", help="settings of medpfl"
    )


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Print a table with a row an attack, and one more where it is compiled, too.

    Raises:
        MedpflError: a mistake in the settings.
    """
    rows = [row for name in arguments.attacks for row in _compare(arguments, name)]
    title = f"The batched engine beside a plain loop: {arguments.dataset}, seed 0"
    show_table(title, _COLUMNS, rows, command=command)
    show_note(_NOTE)


def _compare(arguments: argparse.Namespace, name: str) -> Iterator[tuple[str, ...]]:
    overrides = (
        f"attack={name}",
        "device=cpu",
        *dataset_overrides(arguments.dataset),
        f"n_images={arguments.images}",
        f"attack.optimizer.max_steps={arguments.steps}",
        f"attack.rows={arguments.rows}",
        *arguments.override,
    )
    updates = compute_updates(overrides).with_gradient()
    engines = [Engine("batched", attack_updates(updates))]
    if arguments.compile:
        engines.append(_compiled(overrides))
    plain = _plain(updates, arguments.steps)
    for engine in engines:
        yield _shown(name, plain, engine)


def _compiled(overrides: Sequence[str]) -> Engine:
    updates = compute_updates([*overrides, "attack.compile=true"]).with_gradient()
    watch = CompileWatch(updates.experiment.device)
    attempt = attack_updates(updates, profiler=watch)
    compiling = watch.compiling
    return Engine("compiled", attempt.without(compiling), compiling)


def _plain(updates: Updates, steps: int) -> Attempt:
    attack = updates.config.attack
    start, labels = instantiate(attack.start), instantiate(attack.labels)
    results, clock = [], Clock()
    for update in updates.each:
        seen = update.observation
        stream = generator(updates.experiment.seed, "start", seen.capture_id, 0)
        dummy = start(seen, (1, *seen.spec.shape), stream)
        scores = torch.randn(1, seen.spec.num_classes, generator=stream)
        result = plain_attack(seen, dummy, labels.labels(seen), scores, steps=steps)
        results.append(_reconstruction(seen, result))
    return score(updates, results, clock)


def _reconstruction(seen: Observation, result: PlainResult) -> Reconstruction:
    return Reconstruction(
        capture_id=seen.capture_id,
        inputs=result.inputs,
        labels=torch.zeros(1, dtype=torch.int64),
        objective=float("nan"),
        status=Status.OUT_OF_STEPS,
        steps=0,
        evaluations=result.evaluations,
        seconds=result.seconds,
    )


def _shown(name: str, plain: Attempt, engine: Engine) -> tuple[str, ...]:
    batched, images = engine.attempt, len(plain.scores)
    pairs = zip(plain.scores, batched.scores, strict=True)
    return (
        name,
        engine.name,
        str(images),
        f"{plain.per_image:.2f}",
        f"{batched.per_image:.2f}",
        f"{plain.per_evaluation_ms:.2f}",
        f"{batched.per_evaluation_ms:.2f}",
        f"{plain.per_evaluation_ms / batched.per_evaluation_ms:.1f}x",
        # Compiling takes threads, too, whose time cannot be told from that of computing.
        "" if engine.compiling else f"{_cpu(plain) / _cpu(batched):.1f}x",
        "" if engine.compiling is None else f"{engine.compiling:.0f}",
        f"{plain.solved} of {images}",
        f"{batched.solved} of {images}",
        f"{sum(a.success == b.success for a, b in pairs)} of {images}",
    )


def _cpu(attempt: Attempt) -> float:
    """Return the process's own seconds an evaluation."""
    return attempt.cpu_seconds / max(1, attempt.evaluations)
