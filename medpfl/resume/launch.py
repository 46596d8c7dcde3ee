"""Continue a sweep: launch it again in its own folder, where jobs that are complete return at once.

Hydra makes the same jobs of the same command line, so those that never started are run too, by the
same launcher. What a folder says is not obeyed blindly: a command line can make Hydra build any
object, so only settings that cannot are taken over, and every job's parts are checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from medpfl.errors import ConfigurationError, MedpflError
from medpfl.report.jobs import COMPLETE, Row, job_folders, plan_of, told_to
from medpfl.report.notes import Notes
from medpfl.report.run_folder import check_free
from medpfl.resume.record import (
    check_resumable,
    finished_images,
    has_record,
    open_notes,
    open_record,
)
from medpfl.resume.request import Request
from medpfl.resume.settings import is_hydras, key_of, quoted
from medpfl.settings.renamed import now_called

_OURS = ("hydra.mode", "hydra.run.dir", "hydra.sweep.dir")
_TAKEN_OVER = ("hydra/launcher", "hydra.launcher.", "hydra.sweeper.", "hydra.verbose")
_COULD_BUILD = re.compile(r"_target_|[{$]")


def sweep_arguments(request: Request, conf: Path) -> list[str]:
    """Return the command line that launches a sweep again in its own folder; changes nothing.

    Args:
        request: names the sweep.
        conf: medpfl's configurations.

    Raises:
        MedpflError: this medpfl cannot continue the sweep, some of it is still running, or other
            settings are asked for than it was started with.
    """
    folder = request.folder
    notes = open_notes(folder / "multirun.yaml")
    _refuse_changes(notes.told, request.overrides)
    _check_source(notes, conf, request.config_dir, folder)
    try:
        jobs = sorted(job_folders(folder))
    except OSError as error:
        raise MedpflError(f"Cannot read {folder}: {error.strerror or error}") from error
    for job in jobs:
        _check_job(job, request.config_dir)
    return [
        f"--config-name={notes.config_name}",
        *([f"--config-dir={request.config_dir}"] if request.config_dir else []),
        "--multirun",
        *_harmless(notes.told, folder),
        f"hydra.sweep.dir={quoted(folder)}",
    ]


def _check_job(folder: Path, config_dir: Path | None) -> None:
    """Refuse a job that cannot be continued, before any other is."""
    if not has_record(folder):
        _check_lost_record(folder)
        return
    record = open_record(folder)
    if not never_began(record):
        check_resumable(folder, record, config_dir)
    if record["status"] != COMPLETE:
        check_free(folder)


def never_began(record: Row) -> bool:
    """Tell a record that the sweep left of a job that could not leave its own."""
    return record.get("config") is None


def _check_lost_record(folder: Path) -> None:
    """Refuse finished images without a record where another job's notes lie beside them."""
    told, plan, number = told_to(folder), plan_of(folder.parent), int(folder.name)
    another = told and number < len(plan) and set(told) != set(plan[number])
    if another and finished_images(folder):
        raise MedpflError(
            f"{folder} has lost its run.json, and its images are of another job: {' '.join(told)}. "
            "Put the file back, or move the folder away: the job then starts anew"
        )


def _refuse_changes(told: Sequence[str], asked: Sequence[str]) -> None:
    recorded = {key_of(override): override.partition("=")[2] for override in told}
    for override in asked:
        if override not in told:
            key, value = key_of(override), override.partition("=")[2]
            raise ConfigurationError(
                "resume= continues a sweep as it was started (recorded -> asked for):\n"
                f"  {key}: {recorded.get(key, '(not set)')} -> {value}\n"
                "Leave this out, or start a new sweep with it."
            )


def _check_source(notes: Notes, conf: Path, config_dir: Path | None, folder: Path) -> None:
    """Make sure that the jobs can be composed from the same configurations as before."""
    main, own = notes.sources.get("main"), notes.sources.get("command-line")
    if main and Path(main).is_dir() and not Path(main).samefile(conf):
        raise ConfigurationError(
            f"{folder} was started with the configurations of {main}. {_one_by_one(folder)}"
        )
    if own and Path(own).resolve() != config_dir:
        raise ConfigurationError(
            f"{folder} was started with --config-dir={own}: give it again beside resume=, if you "
            "trust what is there"
        )
    name = notes.config_name
    bases = [base.resolve() for base in (conf, config_dir) if base is not None]
    files = [(base, (base / f"{name}.yaml").resolve()) for base in bases]
    if not any(file.is_relative_to(base) and file.is_file() for base, file in files):
        raise ConfigurationError(f"{folder} was started with {name}: no such configuration here")


def _harmless(told: Sequence[str], folder: Path) -> Iterator[str]:
    """Yield the settings of the sweep, less those of its folder."""
    for override in told:
        if now := now_called(key_of(override)):
            raise ConfigurationError(
                f"{folder} was started with {override}: {now}. {_one_by_one(folder)}"
            )
        if not is_hydras(override):
            yield override
        elif key_of(override) not in _OURS:
            if not key_of(override).startswith(_TAKEN_OVER) or _COULD_BUILD.search(override):
                raise ConfigurationError(
                    f"{folder} was started with {override}, which resume= does not take over. "
                    f"{_one_by_one(folder)}"
                )
            yield override


def _one_by_one(folder: Path) -> str:
    return f"Continue its jobs one by one: medpfl resume={folder / '0'} and so on."
