"""Continue a sweep: launch it again in its own folder, where jobs that are complete return at once.

Hydra makes the same jobs of the same command line, so those that never started are run too, by the
same launcher. What a folder says is not obeyed blindly: a command line can make Hydra build any
object, so only settings that cannot are taken over, and every job's parts are checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from medpfl.errors import ConfigurationError, MedpflError
from medpfl.report.jobs import COMPLETE, Row
from medpfl.report.run_folder import check_free
from medpfl.resume.notes import (
    config_name,
    hydra_notes,
    is_hydras,
    key_of,
    overrides_in,
    quoted,
)
from medpfl.resume.parts import check_parts
from medpfl.resume.request import Request
from medpfl.resume.run import check_resumable, continue_run, open_record, say_complete
from medpfl.runner import run

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
    notes = hydra_notes(folder / "multirun.yaml")
    told = overrides_in(notes)
    _refuse_changes(told, request.overrides)
    _check_source(notes, conf, request.config_dir, folder)
    for job in sorted(path.parent for path in folder.glob("*/run.json")):
        _check_job(job, request.config_dir)
    return [
        f"--config-name={config_name(notes)}",
        *([f"--config-dir={request.config_dir}"] if request.config_dir else []),
        "--multirun",
        *_harmless(told, folder),
        f"hydra.sweep.dir={quoted(folder)}",
    ]


def continue_job(config: DictConfig, overrides: Sequence[str]) -> None:
    """Run a job of a sweep that is launched again, as far as that is still to do.

    Args:
        config: the job's configuration; the recorded one counts where there is one.
        overrides: what the job was told.

    Raises:
        MedpflError: as `medpfl.runner.run`; or the folder holds the run of another job.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    own = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    config_dir = Path(own[0]) if own else None
    if not (folder / "run.json").exists():
        _start(config, folder, overrides, config_dir)
        return
    record = open_record(folder)
    if _never_began(record):
        (folder / "run.json").unlink()
        _start(config, folder, overrides, config_dir)
        return
    if record.get("overrides") != list(overrides):
        raise MedpflError(f"{folder} holds another job of the sweep: {record.get('overrides')}")
    if record["status"] == COMPLETE:
        say_complete(folder)
        return
    check_resumable(folder, record, config_dir)
    continue_run(folder, record)


def _start(
    config: DictConfig, folder: Path, overrides: Sequence[str], config_dir: Path | None
) -> None:
    settings = OmegaConf.to_container(config, resolve=True)
    check_parts(settings, source=str(folder.parent / "multirun.yaml"), config_dir=config_dir)
    run(config, folder, overrides=overrides)


def _check_job(folder: Path, config_dir: Path | None) -> None:
    """Refuse a job that cannot be continued, before any other is."""
    record = open_record(folder)
    if not _never_began(record):
        check_resumable(folder, record, config_dir)
    if record["status"] != COMPLETE:
        check_free(folder)


def _never_began(record: Row) -> bool:
    """Tell a record that the sweep left of a job that could not leave its own."""
    return "config" not in record


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


def _check_source(notes: dict[str, Any], conf: Path, config_dir: Path | None, folder: Path) -> None:
    """Make sure that the jobs can be composed from the same configurations as before."""
    sources = (notes.get("runtime") or {}).get("config_sources") or ()
    found = {source.get("provider"): source.get("path") for source in sources}
    main, own = found.get("main"), found.get("command-line")
    if main and Path(main).is_dir() and not Path(main).samefile(conf):
        raise ConfigurationError(
            f"{folder} was started with the configurations of {main}. {_one_by_one(folder)}"
        )
    if own and Path(own).resolve() != config_dir:
        raise ConfigurationError(
            f"{folder} was started with --config-dir={own}: give it again beside resume=, if you "
            "trust what is there"
        )
    name = config_name(notes)
    bases = [base.resolve() for base in (conf, config_dir) if base is not None]
    files = [(base, (base / f"{name}.yaml").resolve()) for base in bases]
    if not any(file.is_relative_to(base) and file.is_file() for base, file in files):
        raise ConfigurationError(f"{folder} was started with {name}: no such configuration here")


def _harmless(told: Sequence[str], folder: Path) -> Iterator[str]:
    """Yield the settings of the sweep, less those of its folder."""
    for override in told:
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
