"""The record of a run that stopped, and whether this medpfl can go on from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medpfl import __version__
from medpfl.errors import MedpflError
from medpfl.report.console import make_console, paths
from medpfl.report.jobs import Row, read_record
from medpfl.report.notes import Notes, read_notes
from medpfl.resume.parts import check_parts
from medpfl.resume.settings import command


def has_record(folder: Path) -> bool:
    """Tell whether a folder holds the ``run.json`` of a run.

    Raises:
        MedpflError: the folder is closed to us.
    """
    try:
        return (folder / "run.json").exists()
    except OSError as error:
        raise _closed(folder / "run.json", error) from error


def open_record(folder: Path) -> Row:
    """Read the ``run.json`` of a run that may have stopped anywhere.

    Raises:
        MedpflError: there is none, or it cannot be read.
    """
    path = folder / "run.json"
    try:
        return read_record(folder)
    except FileNotFoundError as error:
        raise MedpflError(_no_run(folder)) from error
    except OSError as error:
        raise _closed(path, error) from error
    except ValueError as error:
        raise MedpflError(
            f"{path} is not a run's record ({error}): run the experiment again"
        ) from error


def open_notes(path: Path) -> Notes:
    """Read Hydra's notes where something depends on them.

    Raises:
        MedpflError: they are there, and cannot be read.
    """
    try:
        return read_notes(path)
    except OSError as error:
        raise MedpflError(f"Cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise MedpflError(f"{path} is not what Hydra wrote ({error}): start anew") from error


def check_resumable(folder: Path, record: Row, config_dir: Path | None) -> None:
    """Make sure that this medpfl can continue a run as it began; changes nothing.

    Raises:
        MedpflError: another version made it, its configuration is unknown, or names parts that
            are not to be trusted.
    """
    version = (record.get("versions") or {}).get("medpfl")
    if version != __version__ and version is not None:
        raise MedpflError(
            f"{folder} was run with medpfl {version}, and this is medpfl {__version__}: what is "
            f"left might be attacked differently. Continue with medpfl {version}, or run anew: "
            f"{command(record.get('overrides') or ())}"
        )
    if not isinstance(record.get("config"), dict):
        raise MedpflError(
            f"{folder / 'run.json'} has no configuration: the run failed before it began. "
            f"Run it anew: {command(record.get('overrides') or ())}"
        )
    check_parts(record["config"], source=str(folder / "run.json"), config_dir=config_dir)


def finished_images(folder: Path) -> int:
    """Return how many victims of a run are on disk, whether or not its record is."""
    return len(list((folder / "reconstructions").glob("*.npz")))


def say_complete(folder: Path) -> None:
    """Say that a run has nothing left."""
    make_console().print("\n  complete already: nothing is left to attack")
    paths({"folder": folder})


def _closed(path: Path, error: OSError) -> MedpflError:
    return MedpflError(
        f"Cannot read {path}: {error.strerror or error}. "
        "Everything in the folder must be yours to read and to write."
    )


def _no_run(folder: Path) -> str:
    if not folder.is_dir():
        return f"resume={folder}: no such folder"
    told: Sequence[str] = open_notes(folder / ".hydra" / "hydra.yaml").told
    kept = finished_images(folder)
    if kept:
        return (
            f"{folder} has lost its run.json: with which configuration its {kept} finished images "
            "were made is not on record. Put the file back, or run anew into another folder: "
            f"{command(told)}"
        )
    if told:
        return f"{folder}: the run was stopped before it began. Run it again: {command(told)}"
    return (
        f"{folder} holds no run (run.json) and no sweep (multirun.yaml): give the folder that "
        "medpfl printed as output"
    )
