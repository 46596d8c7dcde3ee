"""Read the jobs of a sweep from its folder: those that failed or never started too.

A sweep's folder holds a folder a job, named by the job's number. Nothing but these folders is
needed, so a sweep that broke off can be read as well as one that ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from medpfl._parts import defense_names
from medpfl.report._shape import (
    MAP,
    NUMBER,
    NUMBER_MAPS,
    PLAIN_MAP,
    SECONDS,
    TEXT,
    TEXTS,
    at,
    check_depth,
    check_shape,
)
from medpfl.report.notes import Notes, notes_in, overrides_of_job, read_notes
from medpfl.settings.renamed import translated

COMPLETE, FAILED, MISSING, UNREADABLE = "complete", "failed", "missing", "unreadable"
GROUPS = ("dataset", "model", "attack", "defense", "noise")
FIRST = ("job", "status", "error", *GROUPS)

_SHOWN_NUMBERS = (
    "n asr asr_low asr_high asr_ceiling ssim_mean ssim_median mse_mean psnr_db_mean "
    "label_accuracy seconds_per_image"
)
_SHAPE = {
    "status": TEXT,
    "error": PLAIN_MAP,
    "config": MAP,
    "overrides": TEXTS,
    "versions": PLAIN_MAP,
    "commit": TEXT,
    "resumed": TEXTS,
    "seconds": SECONDS,
    "summary": MAP,
    "summary.measures": NUMBER_MAPS,
    "summary.defense": MAP,
    "summary.readout": MAP,
    "summary.readout.recovered": NUMBER_MAPS,
    **{f"summary.{name}": NUMBER for name in _SHOWN_NUMBERS.split()},
}

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
    notes = _notes(sweep_dir / "multirun.yaml")
    plan = _planned(notes)
    folders = {int(folder.name) for folder in job_folders(sweep_dir)}
    jobs = [
        _read(sweep_dir, number, plan[number] if number < len(plan) else [], notes)
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


def own_measures(rows: Sequence[Row]) -> list[str]:
    """Return the names of the measures that were added to these jobs: ``mine_n``, ``mine_mean``."""
    keys = rows[0] if rows else {}
    names = (key.removesuffix("_n") for key in keys if key.endswith("_n"))
    return [name for name in names if f"{name}_mean" in keys]


def job_folders(sweep_dir: Path) -> list[Path]:
    """Return the folders of a sweep's jobs, in no order."""
    # isdigit and isdecimal take digits of every script; Hydra writes these.
    return [
        p for p in sweep_dir.iterdir() if p.name.isascii() and p.name.isdecimal() and p.is_dir()
    ]


def read_record(folder: Path) -> Row:
    """Read a run's ``run.json``, its settings by today's names.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is not a run's record; the message says where.
    """
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deep to be read") from error
    check_depth(record)
    check_shape(record, _SHAPE)
    if not isinstance(record, dict) or record.get("status") is None:
        raise ValueError("it has no status")
    if record.get("config") is not None:
        record["config"] = translated(record["config"])
    return record


def _read(sweep_dir: Path, number: int, plan: Sequence[str], sweep: Notes) -> _Job:
    folder = sweep_dir / str(number)
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
    overrides = _split(told_to(folder) or plan or record.get("overrides") or [])
    return _Job(
        number=number,
        overrides=overrides,
        # A job that never started would have made the sweep's choices, but for its own overrides.
        choices={
            **sweep.choices,
            **{group: overrides[group] for group in GROUPS if group in overrides},
            **_notes(folder / ".hydra" / "hydra.yaml").choices,
            **_several(record.get("config")),
        },
        status=status,
        error=error,
        measures=_numbers(summary),
    )


def _several(config: object) -> dict[str, str]:
    """Return the defenses that a job composed, of which Hydra notes no choice."""
    names = defense_names(at(config, "defense"))
    return {"defense": f"[{','.join(names)}]"} if len(names) > 1 else {}


def _numbers(summary: Mapping[str, Any]) -> dict[str, object]:
    """Return a summary's single values, those of one's own measures last: ``mine_mean``."""
    own, defense = summary.get("measures") or {}, at(summary, "defense.means")
    means = defense if isinstance(defense, dict) else {}
    return {
        **{key: value for key, value in summary.items() if not isinstance(value, dict | list)},
        **{f"{name}_mean": value for name, value in means.items()},
        **_of_readouts(summary.get("readout") or {}),
        **{f"{name}_{key}": value for name, means in own.items() for key, value in means.items()},
    }


def _of_readouts(readout: Mapping[str, Any]) -> dict[str, object]:
    """Return a summary of read-outs as single values: ``readout_precision``, ``recovered_psnr_30``.

    What is of the whole run, such as the number of images, stands beside it already.
    """
    recovered = readout.get("recovered") or {}
    return {
        **{f"readout_{k}": v for k, v in readout.items() if k != "n" and not isinstance(v, dict)},
        **{f"recovered_{name}": shares.get("share") for name, shares in recovered.items()},
    }


def _row(job: _Job, keys: Sequence[str]) -> Row:
    named = {group: job.choices.get(group) for group in GROUPS}
    fixed = {"job": job.number, "status": job.status, "error": job.error, "path": str(job.number)}
    known = {**job.measures, **job.overrides, **named, **fixed}
    return {key: known.get(key) for key in keys}


def overrides_by_job(sweep_dir: Path) -> dict[int, dict[str, str]]:
    """Return what each job of a sweep was told, those that never started too, in job order."""
    told = dict(enumerate(plan_of(sweep_dir)))
    for folder in job_folders(sweep_dir):
        number = int(folder.name)
        told[number] = [*told_to(folder)] or told.get(number, [])
    return {number: _split(told[number]) for number in sorted(told)}


def told_to(folder: Path) -> tuple[str, ...]:
    """Return the overrides of one job as Hydra noted them; nothing where it did not."""
    try:
        return overrides_of_job(folder)
    except (OSError, ValueError):
        return ()


def plan_of(sweep_dir: Path) -> list[list[str]]:
    """Return what each job of a sweep is to be told, where that is known; see `planned`."""
    return _planned(_notes(sweep_dir / "multirun.yaml"))


def planned(hydra: object) -> list[list[str]]:
    """Return the overrides of all jobs that Hydra's basic sweeper is to launch, in its order.

    Nothing is known of sweeps by another sweeper, nor of those over ``glob``.

    Args:
        hydra: Hydra's own configuration, as plain values.
    """
    try:
        return _planned(notes_in({"hydra": hydra}))
    except ValueError:
        return []


def without_values(hydra: object) -> list[str]:
    """Return the settings of a sweep that has no jobs which may be why: those without a value.

    Args:
        hydra: Hydra's own configuration, as plain values.
    """
    try:
        swept = list(_parsed(notes_in({"hydra": hydra})))
    except (ValueError, HydraException):
        return []
    swept = [override for override in swept if override.is_sweep_override()]
    empty = [o for o in swept if not isinstance(o.value(), Glob) and not list(_values(o))]
    globs = [o for o in swept if isinstance(o.value(), Glob)]
    return [str(override.input_line) for override in empty or globs]


def _planned(notes: Notes) -> list[list[str]]:
    if not notes.sweeper.endswith(".BasicSweeper"):
        return []
    try:
        overrides = {override.get_key_element(): override for override in _parsed(notes)}
        axes = [[f"{key}={value}" for value in _values(o)] for key, o in overrides.items()]
    except HydraException:
        return []
    return [list(job) for job in product(*axes)]


def _parsed(notes: Notes) -> list[Override]:
    told = [f"{key}={value}" for key, value in notes.swept.items()] + [*notes.overrides]
    return OverridesParser.create().parse_overrides(told)


def _values(override: Override) -> Iterator[str]:
    if override.is_sweep_override():
        return override.sweep_string_iterator()
    return iter([override.get_value_element_as_str()])


def _notes(path: Path) -> Notes:
    try:
        return read_notes(path)
    except (OSError, ValueError):
        # Hydra's notes are a help, not the record: without them less is known of the job.
        return Notes()


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
