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

from medpfl.report import _provenance, _strict_json
from medpfl.report.console import make_console
from medpfl.report.jobs import COMPLETE, Row
from medpfl.report.record import RunRecord
from medpfl.resume.changes import refuse_changes
from medpfl.resume.record import check_resumable, open_notes, open_record, say_complete
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
    told = record.get("overrides") or ()
    if any(override not in told for override in request.overrides):
        notes = open_notes(request.folder / ".hydra" / "hydra.yaml")
        asked = [o for o in request.overrides if o not in (*notes.told, *told)]
        refuse_changes(
            record, asked, conf=conf, config_dir=request.config_dir, name=notes.config_name
        )
    if record["status"] == COMPLETE:
        say_complete(request.folder)
        return
    check_resumable(request.folder, record, request.config_dir)
    continue_run(request.folder, record)


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
