"""What happens around Hydra's jobs."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from medpfl.report.console import error
from medpfl.report.run_folder import resume_command

_AT_LEAST = 256 * 1024  # bytes: Hydra's notes and a record, several times over


class OutputFolder(Callback):
    """Refuse an output folder that cannot be used, before Hydra writes to it or fails on it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of a single run."""
        folder, key = config.hydra.run.dir, "hydra.run.dir"
        if folder and os.path.lexists(Path(folder) / "run.json"):
            _refuse(
                f"{folder} already holds a run (run.json). Give another folder with {key}=..., or "
                f"continue that run with {resume_command(Path(folder))}"
            )
        with _refusing(folder, key):
            _try_folder(Path(folder), config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of a sweep, and look into those that its jobs will use."""
        folder, key = config.hydra.sweep.dir, "hydra.sweep.dir"
        with _refusing(folder, key):
            _try_folder(Path(folder), config)
            taken = [path for path in Path(folder).iterdir() if path.name.isdecimal()]
            for job in sorted(taken):
                _try_folder(job, config)


@contextmanager
def _refusing(folder: str, key: str) -> Iterator[None]:
    if not folder:
        _refuse(f"{key} is empty: give the folder that the results go to")
    try:
        yield
    except (OSError, ValueError) as problem:
        inside = getattr(problem, "filename", None) or folder
        where = "" if str(inside) == folder else f" ({inside})"
        reason = getattr(problem, "strerror", None) or problem
        _refuse(
            f"cannot write to the output folder {folder}: {reason}{where}. "
            f"Give another one with {key}=..."
        )


def _try_folder(folder: Path, config: DictConfig) -> None:
    """Write what Hydra writes first: to a folder for its notes, and beside it a log.

    Raises:
        OSError: names the place that cannot be written to.
    """
    made = not folder.is_dir()
    notes = folder if config.hydra.output_subdir is None else folder / config.hydra.output_subdir
    for place in dict.fromkeys((folder, notes)):
        place.mkdir(parents=True, exist_ok=True)
        _try_to_write(place)
    for name in ("config.yaml", "hydra.yaml", "overrides.yaml"):
        if notes != folder and (notes / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(notes / name))
    log = folder / f"{config.hydra.job.name}.log"
    there = log.exists()
    with _naming(log):
        log.open("ab").close()
    if not there:
        log.unlink()
    if notes != folder and made:
        notes.rmdir()


def _try_to_write(folder: Path) -> None:
    probe = folder / ".writable"
    with _naming(folder):
        try:
            # An empty file can be made on a disk that is full.
            probe.write_bytes(b" " * _AT_LEAST)
        finally:
            probe.unlink(missing_ok=True)


@contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Give an error the place that it is about: writing to an open file does not tell."""
    try:
        yield
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror, str(place)) from problem


def _refuse(message: str) -> NoReturn:
    error(message)
    # Hydra reports an exception of a callback as a warning; an exit it lets through.
    sys.exit(2)
