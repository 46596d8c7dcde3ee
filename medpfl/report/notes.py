"""Hydra's own notes beside a run or a sweep: how it was started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from medpfl._yaml import read_file
from medpfl.report._shape import MAPS, PLAIN_MAP, TEXT, TEXTS, at, check_shape

_SHAPE = {
    "hydra.overrides.hydra": TEXTS,
    "hydra.overrides.task": TEXTS,
    "hydra.job.config_name": TEXT,
    "hydra.runtime.choices": PLAIN_MAP,
    "hydra.runtime.config_sources": MAPS,
    "hydra.sweeper._target_": TEXT,
    "hydra.sweeper.params": PLAIN_MAP,
}
_SOURCE = {"provider": TEXT, "path": TEXT}


@dataclass(frozen=True)
class Notes:
    """What is read from Hydra's ``hydra.yaml`` or ``multirun.yaml``.

    Args:
        hydra_overrides: what the command line said about Hydra.
        overrides: what it said about the experiment.
        config_name: the configuration that everything was composed from.
        choices: the chosen option of each group.
        sources: where configurations were read, `{who named the folder: folder}`.
        sweeper: the class that made the jobs.
        swept: what the configuration itself sweeps over.
    """

    hydra_overrides: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    config_name: str = "config"
    choices: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    sweeper: str = ""
    swept: Mapping[str, object] = field(default_factory=dict)

    @property
    def told(self) -> list[str]:
        """All overrides, those of Hydra's settings first."""
        return [*self.hydra_overrides, *self.overrides]


def read_notes(path: Path) -> Notes:
    """Read Hydra's notes; of a file that is not there, nothing is known.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else than Hydra writes; the message says where.
    """
    try:
        return notes_in(read_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return Notes()


def notes_in(tree: object) -> Notes:
    """Return the notes that plain values of Hydra's settings hold.

    Raises:
        ValueError: they are of another shape; the message says where.
    """
    check_shape(tree, _SHAPE)
    sources: Any = at(tree, "hydra.runtime.config_sources") or ()
    for source in sources:
        check_shape(source, _SOURCE)
    choices: Any = at(tree, "hydra.runtime.choices") or {}
    read: Any = {name: at(tree, name) for name in _SHAPE}
    return Notes(
        hydra_overrides=tuple(read["hydra.overrides.hydra"] or ()),
        overrides=tuple(read["hydra.overrides.task"] or ()),
        config_name=read["hydra.job.config_name"] or "config",
        choices={group: str(name) for group, name in choices.items() if name is not None},
        sources={s["provider"]: s["path"] for s in sources if s.get("provider") and s.get("path")},
        sweeper=read["hydra.sweeper._target_"] or "",
        swept=read["hydra.sweeper.params"] or {},
    )


def overrides_of_job(folder: Path) -> tuple[str, ...]:
    """Return what one job of a sweep was told; nothing where that is not noted.

    Raises:
        OSError: the note cannot be read.
        ValueError: it is not a list of texts.
    """
    try:
        told = read_file(folder / ".hydra" / "overrides.yaml")
    except (FileNotFoundError, NotADirectoryError):
        return ()
    check_shape({"overrides": told}, {"overrides": TEXTS})
    return tuple(cast(list[str], told or ()))
