"""Hydra's own notes beside a run or a sweep: how it was started."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml


def hydra_notes(path: Path) -> dict[str, Any]:
    """Read Hydra's settings from its notes; empty where there are none."""
    try:
        notes = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    hydra = notes.get("hydra") if isinstance(notes, dict) else None
    return hydra if isinstance(hydra, dict) else {}


def overrides_in(notes: dict[str, Any]) -> list[str]:
    """Return the overrides of a command line, those of Hydra's settings first."""
    overrides = notes.get("overrides") or {}
    return [str(o) for kind in ("hydra", "task") for o in overrides.get(kind) or ()]


def config_name(notes: dict[str, Any]) -> str:
    """Return the configuration that everything was composed from."""
    return str((notes.get("job") or {}).get("config_name") or "config")


def key_of(override: str) -> str:
    """Return what an override sets."""
    return override.partition("=")[0].lstrip("+~")


def is_hydras(override: str) -> bool:
    """Tell whether an override is about Hydra, not about the experiment."""
    return key_of(override).startswith("hydra")


def command(overrides: Iterable[str]) -> str:
    """Return the command line that starts a run."""
    return " ".join(["medpfl", *overrides])


def quoted(text: object) -> str:
    """Return text as a value that Hydra takes as it is."""
    escaped = str(text).replace("'", "\\'")
    return f"'{escaped}'"
