"""`inspection`: how often planted models are caught, and honest ones, and what hiding costs."""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from medpfl.bench import concentration, hidden_rows
from medpfl.bench.honest_models import Images, images_of, kinds, states
from medpfl.bench.machine import show_note, show_table
from medpfl.bench.malicious_models import cases, sent
from medpfl.data.roots import DATA_ROOT_VARIABLE
from medpfl.inspection import wide
from medpfl.inspection.examine import examine
from medpfl.inspection.received import Received
from medpfl.inspection.verdict import Verdict
from medpfl.metrics.rates import wilson
from medpfl.report.console import make_console
from medpfl.report.tables import format_rate
from medpfl.types import ServerPayload

_SIZE, _VOLUME = 64, 16
_TABLES = ("malicious", "honest", "hidden", "updates")
_COLUMNS = ("models", "caught", "by its weights alone", "checks that caught it")
_HONEST = ("models", "false alarms", "of which by weights alone", "kinds of network")
_NOTE = (
    "By weights alone: without the check for a wide layer ahead of the first convolution. "
    "Rates with 95 % Wilson intervals. An honest network counts once for every state that it is "
    "in; these come of one training, so that they are not independent."
)


@dataclass
class Tally:
    """What was found in some models.

    Args:
        verdicts: one a model.
        kinds: what they are called.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)

    def rate(self, *, alone: bool = False) -> str:
        """Return how many are suspicious, by all checks or by weights alone."""
        count = sum(bool(_checks(v, alone=alone)) for v in self.verdicts)
        low, high = wilson(count, len(self.verdicts))
        return format_rate(count / len(self.verdicts), len(self.verdicts), low=low, high=high)

    def checks(self) -> str:
        """Return how often each check has found something."""
        counts: dict[str, int] = defaultdict(int)
        for verdict in self.verdicts:
            for check in _checks(verdict, alone=False):
                counts[check] += 1
        return ", ".join(f"{name} {count}" for name, count in counts.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the tables can be told."""
    has_data = bool(os.environ.get(DATA_ROOT_VARIABLE))
    parser.add_argument(
        "--dataset",
        default="brain_mri" if has_data else "phantom_many",
        help="what networks are trained on, an option of conf/dataset; %(default)s",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="how often small networks are drawn; %(default)s"
    )
    parser.add_argument(
        "--small", action="store_true", help="leave out networks of more than 20 million parameters"
    )
    parser.add_argument(
        "--tables",
        nargs="+",
        choices=_TABLES,
        default=list(_TABLES),
    )


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Print the tables.

    Raises:
        MedpflError: there are no such images.
    """
    images = images_of(arguments.dataset, _SIZE)
    if "malicious" in arguments.tables:
        _show_malicious(images.resized(32), command)
    if "honest" in arguments.tables:
        _show_honest(arguments, images, command)
    if "hidden" in arguments.tables:
        hidden_rows.show(images.resized(32), command)
    if "updates" in arguments.tables:
        concentration.show(images.resized(32), command)


def _show_malicious(images: Images, command: Sequence[str]) -> None:
    tallies: dict[str, Tally] = defaultdict(Tally)
    for case in cases(images):
        verdict = _examined(case.payload, images)
        for family in (case.family, "all"):
            tallies[family].verdicts.append(verdict)
        if len(tallies["all"].verdicts) % 20 == 0:
            _aside(f"{tallies['all'].rate()} until here")
        if not _checks(verdict, alone=True):
            _aside(f"not caught by its weights: {case.family}: {case.name}")
    rows = [
        (name, tally.rate(), tally.rate(alone=True), tally.checks())
        for name, tally in _all_last(tallies)
    ]
    show_table("Models that malicious servers plant", _COLUMNS, rows, command=command)


def _show_honest(arguments: argparse.Namespace, images: Images, command: Sequence[str]) -> None:
    volumes = images_of("phantom3d", _VOLUME)
    tallies: dict[str, Tally] = defaultdict(Tally)
    for kind in kinds(arguments.seeds, large=not arguments.small):
        own = volumes if kind.volumes else images
        for state, model in states(kind, own):
            verdict = _examined(sent(model), own.resized(kind.size))
            for name in (state, "all"):
                tallies[name].verdicts.append(verdict)
                tallies[name].kinds.add(kind.name)
            for finding in verdict.alarms:
                _aside(f"false alarm: {kind}, {state}: {finding.check} {finding.measured}")
        _aside(f"{kind.name}: {tallies['all'].rate()} until here")
    rows = [
        (name, tally.rate(), tally.rate(alone=True), str(len(tally.kinds)))
        for name, tally in _all_last(tallies)
    ]
    show_table("Honest models", _HONEST, rows, command=command)
    show_note(_NOTE)


def _examined(payload: ServerPayload, images: Images) -> Verdict:
    return examine(Received.of_payload(payload, images.spec.shape))


def _checks(verdict: Verdict, *, alone: bool) -> set[str]:
    found = {finding.check for finding in verdict.alarms}
    return found - {wide.NAME} if alone else found


def _all_last(tallies: dict[str, Tally]) -> Iterator[tuple[str, Tally]]:
    yield from ((name, tally) for name, tally in tallies.items() if name != "all")
    yield "all", tallies["all"]


def _aside(text: str) -> None:
    make_console(stderr=True).print(text, soft_wrap=True)
