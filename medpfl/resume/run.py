"""Continue one run.

Its configuration is taken from ``run.json``: resolved as it was when the run began, and there whole
or not at all. Hydra's ``.hydra/config.yaml`` still holds interpolations, which may mean something
else today, and is not there for every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from medpfl import __version__
from medpfl.errors import MedpflError
from medpfl.report import _provenance, _strict_json
from medpfl.report.console import make_console, paths
from medpfl.report.jobs import COMPLETE, Row, read_record
from medpfl.report.record import RunRecord
from medpfl.resume.changes import refuse_changes
from medpfl.resume.notes import command, config_name, hydra_notes, overrides_in
from medpfl.resume.parts import check_parts
from medpfl.resume.request import Request
from medpfl.runner import carry_out


def resume_run(request: Request, conf: Path) -> None:
    """Attack what a run has left, or say that nothing is left.

    Args:
        request: names the run.
        conf: medpfl's configurations.

    Raises:
        MedpflError: the folder holds no run that this medpfl can continue, or other settings are
            asked for than it was started with.
    """
    record = open_record(request.folder)
    notes = hydra_notes(request.folder / ".hydra" / "hydra.yaml")
    told = [*overrides_in(notes), *record.get("overrides", ())]
    asked = [override for override in request.overrides if override not in told]
    if asked:
        refuse_changes(
            record,
            asked,
            conf=conf,
            config_dir=request.config_dir,
            name=config_name(notes),
        )
    if record["status"] == COMPLETE:
        say_complete(request.folder)
        return
    check_resumable(request.folder, record, request.config_dir)
    continue_run(request.folder, record)


def open_record(folder: Path) -> Row:
    """Read the ``run.json`` of a run that may have stopped anywhere.

    Raises:
        MedpflError: there is none, or it cannot be read.
    """
    try:
        return read_record(folder)
    except FileNotFoundError as error:
        raise MedpflError(_no_run(folder)) from error
    except (OSError, ValueError) as error:
        raise MedpflError(
            f"{folder / 'run.json'} is not a run's record ({error}): run the experiment again"
        ) from error


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
            f"{command(record.get('overrides', ()))}"
        )
    if not isinstance(record.get("config"), dict):
        raise MedpflError(
            f"{folder / 'run.json'} has no configuration: the run failed before it began. "
            f"Run it anew: {command(record.get('overrides', ()))}"
        )
    check_parts(record["config"], source=str(folder / "run.json"), config_dir=config_dir)


def continue_run(folder: Path, record: Row) -> None:
    """Attack what a run has left, with the configuration on record.

    Raises:
        MedpflError: as `medpfl.runner.run`; or another process writes to the folder.
    """
    config = OmegaConf.create(_literal(_strict_json.unspell(record["config"])))
    reopened = RunRecord.reopen(folder)
    out = make_console()
    out.print(f"\n  resumed: {len(reopened.scores)} finished images are kept")
    for note in (*_damage(reopened), *_changed_since(record)):
        out.print(f"  note: {note}", soft_wrap=True)
    carry_out(cast(DictConfig, config), reopened)


def say_complete(folder: Path) -> None:
    """Say that a run has nothing left."""
    make_console().print("\n  complete already: nothing is left to attack")
    paths({"folder": folder})


def _literal(value: object) -> Any:
    """Return the value with every ``${`` in its texts escaped: all was resolved when recorded."""
    match value:
        case dict():
            return {key: _literal(item) for key, item in value.items()}
        case list():
            return [_literal(item) for item in value]
        case str():
            return value.replace("${", "\\${")
    return value


def _damage(record: RunRecord) -> Iterator[str]:
    for name in record.damaged:
        yield f"{name} could not be read and is computed again"


def _changed_since(record: Mapping[str, Any]) -> Iterator[str]:
    """Say what may make the images attacked now differ from the earlier ones."""
    now = {**_provenance.versions(), "commit": _provenance.commit()}
    then = {**(record.get("versions") or {}), "commit": record.get("commit")}
    for name, version in now.items():
        if then.get(name) != version:
            yield f"begun with {name} {then.get(name)}, goes on with {version}"


def _no_run(folder: Path) -> str:
    if not folder.is_dir():
        return f"resume={folder}: no such folder"
    told = overrides_in(hydra_notes(folder / ".hydra" / "hydra.yaml"))
    if told:
        return f"{folder}: the run was stopped before it began. Run it again: {command(told)}"
    return (
        f"{folder} holds no run (run.json) and no sweep (multirun.yaml): give the folder that "
        "medpfl printed as output"
    )
