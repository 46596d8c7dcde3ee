"""Read the jobs of a sweep from its folder: those that failed or never started too.

A sweep's folder holds a folder a job, named by the job's number. Nothing but these folders is
needed, so a sweep that broke off can be read as well as one that ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

COMPLETE, FAILED, MISSING, UNREADABLE = "complete", "failed", "missing", "unreadable"
GROUPS = ("dataset", "model", "attack", "defense", "noise")
FIRST = ("job", "status", "error", *GROUPS)

Row = dict[str, Any]


@dataclass(frozen=True)
class _Job:
    """One job: what it was told, how it ended and what it measured."""

    number: int
    overrides: Mapping[str, str]
    choices: Mapping[str, str]
    status: str
    error: str | None
    measures: Mapping[str, object]


def collect(sweep_dir: Path, *, failures: Mapping[int, str] | None = None) -> list[Row]:
    """Read every job of a sweep.

    Args:
        sweep_dir: the sweep's folder.
        failures: `{job number: error}` of jobs known to have failed, whatever lies in their
            folders: a job that finds another's record there leaves it alone.

    Returns:
        A row a job in job order, all with the same keys: job, status, error, the names of the five
        groups, the overrides that vary, every number of the summary, and the job's folder relative
        to the sweep's. What is not known is None.
    """
    plan = planned(_at(_yaml(sweep_dir / "multirun.yaml"), "hydra"))
    folders = {int(p.name) for p in sweep_dir.iterdir() if p.is_dir() and p.name.isdecimal()}
    jobs = [
        _read(sweep_dir, number, plan[number] if number < len(plan) else [])
        for number in sorted(folders | set(range(len(plan))))
    ]
    known = failures or {}
    jobs = [
        replace(job, status=FAILED, error=known[job.number], measures={})
        if job.number in known and job.status == COMPLETE
        else job
        for job in jobs
    ]
    varying = _varying([job.overrides for job in jobs])
    measures = dict.fromkeys(key for job in jobs for key in job.measures)
    keys = list(dict.fromkeys([*FIRST, *varying, *measures, "path"]))
    return [_row(job, keys) for job in jobs]


def varying_columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns that tell the jobs apart: groups, then single settings."""
    if not rows:
        return []
    keys = list(rows[0])
    settings = keys[len(FIRST) : keys.index("n") if "n" in keys else -1]
    return [group for group in GROUPS if len({row[group] for row in rows} - {None}) > 1] + settings


def read_record(folder: Path) -> Row:
    """Read a run's ``run.json``.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is not a run's record.
    """
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if not isinstance(record, dict) or not isinstance(record.get("status"), str):
        raise ValueError("it has no status")
    return record


def _read(sweep_dir: Path, number: int, plan: Sequence[str]) -> _Job:
    folder = sweep_dir / str(number)
    told = _yaml(folder / ".hydra" / "overrides.yaml") or plan
    record: Row = {}
    try:
        record = read_record(folder)
        status, error = record["status"], _one_line(record.get("error"))
    except FileNotFoundError:
        status = MISSING
        error = "it left no run.json" if folder.is_dir() else "it never started"
    except (OSError, ValueError) as fault:
        status, error = UNREADABLE, f"run.json: {fault}"
    summary = record.get("summary") or {}
    overrides = _split(told or record.get("overrides") or [])
    return _Job(
        number=number,
        overrides=overrides,
        # A job that never started would have made the sweep's choices, but for its own overrides.
        choices=_choices(sweep_dir / "multirun.yaml")
        | {group: overrides[group] for group in GROUPS if group in overrides}
        | _choices(folder / ".hydra" / "hydra.yaml"),
        status=status,
        error=error,
        measures={k: v for k, v in summary.items() if not isinstance(v, dict | list)},
    )


def _row(job: _Job, keys: Sequence[str]) -> Row:
    named = {group: job.choices.get(group) for group in GROUPS}
    fixed = {"job": job.number, "status": job.status, "error": job.error, "path": str(job.number)}
    known = {**job.measures, **job.overrides, **named, **fixed}
    return {key: known.get(key) for key in keys}


def overrides_by_job(sweep_dir: Path) -> dict[int, dict[str, str]]:
    """Return what each job of a sweep was told, those that never started too, in job order."""
    told = dict(enumerate(planned(_at(_yaml(sweep_dir / "multirun.yaml"), "hydra"))))
    for folder in sweep_dir.iterdir():
        if folder.is_dir() and folder.name.isdecimal():
            own = _yaml(folder / ".hydra" / "overrides.yaml")
            told[int(folder.name)] = own or told.get(int(folder.name), [])
    return {number: _split(told[number]) for number in sorted(told)}


def planned(hydra: Any) -> list[list[str]]:
    """Return the overrides of all jobs that Hydra's basic sweeper is to launch, in its order.

    Nothing is known of sweeps by another sweeper, nor of those over ``glob``.

    Args:
        hydra: Hydra's own configuration, as plain values.
    """
    if not str(_at(hydra, "sweeper", "_target_")).endswith(".BasicSweeper"):
        return []
    params = _at(hydra, "sweeper", "params") or {}
    told = [f"{key}={value}" for key, value in params.items()]
    told += _at(hydra, "overrides", "task") or []
    axes: dict[str, list[str]] = {}
    try:
        for override in OverridesParser.create().parse_overrides(told):
            key = override.get_key_element()
            values = (
                override.sweep_string_iterator()
                if override.is_sweep_override()
                else [override.get_value_element_as_str()]
            )
            axes[key] = [f"{key}={value}" for value in values]
    except HydraException:
        return []
    return [list(job) for job in product(*axes.values())]


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        # Hydra's notes are a help, not the record: without them less is known of the job.
        return None


def _choices(notes: Path) -> dict[str, str]:
    """Return the chosen option of each config group."""
    choices = _at(_yaml(notes), "hydra", "runtime", "choices")
    return choices if isinstance(choices, dict) else {}


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _split(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (str(override).partition("=") for override in overrides)
    return {key.lstrip("+"): value for key, _, value in pairs}


def _varying(overrides: Sequence[Mapping[str, str]]) -> list[str]:
    keys = dict.fromkeys(key for own in overrides for key in own)
    return [key for key in keys if len({own.get(key) for own in overrides}) > 1]


def _one_line(error: object) -> str | None:
    """Return the error that ``run.json`` describes in one line."""
    if isinstance(error, dict):
        kind, message = error.get("type"), error.get("message")
        error = f"{kind}: {message}" if message else kind
    return " ".join(str(error).split()) if error else None
