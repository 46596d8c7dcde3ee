"""`evaluation`: one evaluation of the objective, plain and batched in turn: for busy machines."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from medpfl.attacks.composition import Parts
from medpfl.attacks.matching import MatchingObjective, rows_at_once
from medpfl.attacks.victim_rows import VictimRows
from medpfl.bench.loop import ATTACKS
from medpfl.bench.machine import show_note, show_table
from medpfl.bench.plain import plain_closure
from medpfl.bench.updates import Updates, compute_updates, dataset_overrides
from medpfl.settings.build import instantiate
from medpfl.types import Observation

_COLUMNS = (
    "attack",
    "rows",
    "at once",
    "plain, ms",
    "batched, ms a row",
    "throughput",
    "objectives agree to",
)

_NOTE = (
    "The fastest of many evaluations of the objective and its gradient, plain and batched in turn, "
    "so that a machine that is slow for a while is slow for both. Optimisers are left out."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the comparison can be told."""
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument(
        "--dataset", default="phantom", help="an option of conf/dataset; %(default)s"
    )
    parser.add_argument("--rows", type=int, default=24, help="images side by side; %(default)s")
    parser.add_argument("--turns", type=int, default=15, help="times of each; %(default)s")


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Print a table with a row an attack.

    Raises:
        MedpflError: a mistake in the settings.
    """
    rows = [_compare(arguments, name) for name in arguments.attacks]
    title = f"An evaluation, plain and batched in turn: {arguments.dataset}, seed 0"
    show_table(title, _COLUMNS, rows, command=command)
    show_note(_NOTE)


def _compare(arguments: argparse.Namespace, name: str) -> tuple[str, ...]:
    updates = compute_updates(
        [
            f"attack={name}",
            "device=cpu",
            *dataset_overrides(arguments.dataset),
            f"n_images={arguments.rows}",
        ]
    )
    batched, points, at_once = _batched(updates)
    plain = _plain(updates, points)
    rows = len(points)
    values = torch.stack([next(plain) for _ in range(rows)])
    apart = float(((batched() - values) / values.abs().clamp_min(1e-30)).abs().max())
    each, all_rows = float("inf"), float("inf")
    for _ in range(arguments.turns):
        each = min(each, _seconds(lambda: next(plain)))
        all_rows = min(all_rows, _seconds(batched) / rows)
    return (
        name,
        str(rows),
        str(at_once),
        f"{1e3 * each:.2f}",
        f"{1e3 * all_rows:.2f}",
        f"{each / all_rows:.1f}x",
        f"{apart:.0e}",
    )


def _batched(updates: Updates) -> tuple[Callable[[], Tensor], Tensor, int]:
    """Return the evaluation of all rows, their points `(B, D)`, and the rows evaluated at once."""
    attack = updates.config.attack
    seen = [u.observation for u in updates.each]
    rows = VictimRows(
        parts=Parts(
            start=instantiate(attack.start),
            labels=instantiate(attack.labels),
            distance=instantiate(attack.distance),
            priors=(),
            projections=(),
            channels="free",
            boxed=False,
        ),
        members=1,
        shared=all(o.payload is seen[0].payload for o in seen),
        seed=updates.experiment.seed,
        device=updates.experiment.device,
    )
    unknowns = rows.unknowns(seen[0])
    at_once = min(len(seen), rows_at_once(seen[0].payload, unknowns))
    objective = MatchingObjective(
        payload=seen[0].payload,
        unknowns=unknowns,
        distance=instantiate(attack.distance),
        dtype=torch.float32,
        chunk=at_once,
    )
    started = [rows.row(rows.key(o), torch.float32) for o in seen]
    targets = started[0].target.join(*(row.target for row in started[1:]))
    points = torch.stack([row.start for row in started])
    return lambda: objective(points, targets)[0], points, at_once


def _plain(updates: Updates, points: Tensor) -> Iterator[Tensor]:
    """Yield the objective at one image's point after another's, round and round."""
    labels = instantiate(updates.config.attack.labels)
    closures = []
    for update, point in zip(updates.each, points, strict=True):
        seen: Observation = update.observation
        pixels = torch.Size(seen.spec.shape).numel()
        dummy = point[:pixels].reshape(1, *seen.spec.shape).clone().requires_grad_()
        scores = point[pixels:].unsqueeze(0).clone().requires_grad_()
        closures.append(plain_closure(seen, dummy, labels.labels(seen), scores))
    while True:
        for closure in closures:
            yield closure()


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
