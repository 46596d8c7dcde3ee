"""Measure the engine: ``python -m medpfl.bench PART --help``; without a part, a short round."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

import torch

from medpfl.bench import (
    against_breaching,
    breaching_side,
    dpsgd,
    evaluation,
    gpu,
    inspection,
    loop,
    malicious,
    success,
)
from medpfl.bench.machine import show_note
from medpfl.errors import MedpflError
from medpfl.report.console import error

PARTS: dict[str, ModuleType] = {
    "loop": loop,
    "evaluation": evaluation,
    "breaching": against_breaching,
    "success": success,
    "dpsgd": dpsgd,
    "gpu": gpu,
    "malicious": malicious,
    "inspection": inspection,
}

# Minutes on two cores: one image behind an update, and breaching's deep leakage as it ships.
_SHORT_BREACHING = ["breaching", "--batches", "1", "--updates", "4"]
_SHORT_BREACHING += ["--configurations", "deepleakage"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, and return the exit status.

    Args:
        arguments: the command line; that of the process by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    try:
        for command in _commands(given):
            chosen = parser.parse_args(command)
            if chosen.threads is not None:
                torch.set_num_threads(chosen.threads)
            PARTS[chosen.part].run(chosen, command)
    except MedpflError as mistake:
        error(str(mistake))
        return 2
    return 0


def _commands(given: list[str]) -> list[list[str]]:
    """Return what was asked for; of nothing, the plain loop and, if it is there, breaching."""
    if given:
        return [given]
    if breaching_side.is_installed():
        return [["loop"], _SHORT_BREACHING]
    show_note(breaching_side.HOW_TO_GET)
    return [["loop"]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m medpfl.bench", description=__doc__)
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    for name, module in PARTS.items():
        summary = (module.__doc__ or "").splitlines()[0].partition(": ")[2]
        part = parts.add_parser(name, help=summary, description=summary)
        part.add_argument("--threads", type=int, help="torch's threads, for both sides")
        module.add_arguments(part)
    return parser


if __name__ == "__main__":
    sys.exit(main())
