"""The folder of a run: who may write there, and what to say to others."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from medpfl._atomic import hold
from medpfl.errors import MedpflError


def resume_command(folder: Path) -> str:
    """Return the command line that continues the run or sweep in a folder."""
    return f"medpfl resume={shlex.quote(str(folder))}"


def check_free(folder: Path) -> None:
    """Make sure that no other process is writing to a run's folder.

    Raises:
        MedpflError: one is, or the folder cannot be opened.
    """
    try:
        descriptor = held(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    if descriptor is not None:
        os.close(descriptor)


def held(folder: Path) -> int | None:
    """Lock a run's folder, as `medpfl._atomic.hold` does.

    Raises:
        MedpflError: another process holds it.
        OSError: it cannot be opened.
    """
    try:
        return hold(folder)
    except BlockingIOError as error:
        raise MedpflError(
            f"{folder}: another medpfl is writing to this folder. Wait until it has ended, or "
            "end it."
        ) from error


def occupied(folder: Path) -> MedpflError:
    """Return the error of a new run in a folder that is not free."""
    return MedpflError(
        f"{folder} already holds a run (run.json), or is a file: nothing was written. "
        "Give another folder with hydra.run.dir=..., move that one away, or, to continue a run "
        f"that did not end, use {resume_command(folder)}"
    )


def unwritable(folder: Path, error: OSError) -> MedpflError:
    """Return the error of a folder that cannot be used."""
    return MedpflError(
        f"Cannot write the run's folder {folder}: {error.strerror or error}. "
        "Give a folder that you own and can write to with hydra.run.dir=..."
    )
