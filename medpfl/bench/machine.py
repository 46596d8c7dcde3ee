"""What every table is headed by: the machine, and the command that made it."""

from __future__ import annotations

import os
import platform
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from medpfl.report.console import make_console
from medpfl.report.tables import markdown_table


def machine() -> str:
    """Return the hardware, threads, versions and date in one line."""
    parts = [f"{_processor()}, {os.cpu_count()} cores", f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts += [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    return ", ".join([*parts, time.strftime("%Y-%m-%d")])


def show_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, command: Sequence[str]
) -> None:
    """Print a Markdown table with its title, the machine and the command above it.

    Args:
        title: what was measured.
        header: the column names.
        rows: the cells, each row as long as the header.
        command: the arguments of ``python -m medpfl.bench``.
    """
    console = make_console()
    called = f"python -m medpfl.bench {shlex.join(command)}".rstrip()
    for paragraph in (f"### {title}", machine(), f"    {called}"):
        console.print(f"{paragraph}\n", soft_wrap=True)
    console.print(markdown_table(header, rows), soft_wrap=True)


def show_note(text: str) -> None:
    """Print a paragraph below a table."""
    make_console().print(f"{text}\n", soft_wrap=True)


def _processor() -> str:
    """Return the processor's model; `platform.processor` knows it on no Linux."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
