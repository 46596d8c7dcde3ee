"""What ``medpfl-compare`` does with its two folders."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import medpfl
from medpfl.compare.pairs import compare
from medpfl.compare.runs import read_run
from medpfl.compare.table import show


def run_command() -> None:
    """Compare the two runs that the command line names.

    Raises:
        MedpflError: they cannot be read, or not be compared.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may not exist in the locale
            stream.reconfigure(errors="backslashreplace")
    parser = argparse.ArgumentParser(
        prog="medpfl-compare", description="Compare two runs on the images that both attacked."
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="a run's folder")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="another run's folder")
    parser.add_argument("--version", action="version", version=f"medpfl {medpfl.__version__}")
    given = parser.parse_args()
    a, b = read_run(given.run_a), read_run(given.run_b)
    show(a, b, compare(a, b))
