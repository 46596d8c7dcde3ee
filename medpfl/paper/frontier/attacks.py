"""The jobs of a frontier's sweep: a federation each, trained under a defense and attacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medpfl.errors import DataError
from medpfl.paper.results import JobResult
from medpfl.report.diary import ROUNDS
from medpfl.report.jobs import overrides_by_job, read_record
from medpfl.report.rounds_file import RoundScore, read_rounds

_DRAWN = "medpfl.data.Phantom"


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """One complete job.

    Args:
        point: the setting of a defense, as in ``conf/paper/defense``.
        defense: the curve that it lies on.
        setting: its strength in words.
        attacker: as in ``conf/paper/attacker``.
        kind: ``naive`` or ``adaptive``.
        seed: the job's.
        scores: ``metrics.csv``.
        utility: of the network after the last round; None where nothing was measured.
        summary: of ``run.json``.
        synthetic: whether the images are drawn.
        attacked_rounds: after how many rounds of training updates were attacked.
    """

    point: str
    defense: str
    setting: str
    attacker: str
    kind: str
    seed: str
    scores: pd.DataFrame = field(repr=False)
    utility: RoundScore | None
    summary: Mapping[str, Any] = field(default_factory=dict, repr=False)
    synthetic: bool = False
    attacked_rounds: tuple[int, ...] = ()


def attacked(results: Sequence[JobResult], folder: Path) -> dict[str, list[Attacked]]:
    """Return the complete jobs of a sweep by dataset, in their order.

    Args:
        results: all jobs.
        folder: the sweep's.
    """
    told = overrides_by_job(folder)
    found: dict[str, list[Attacked]] = {}
    for result in results:
        if result.problem is None:
            job = _attacked(result, told.get(result.number, {}))
            found.setdefault(result.dataset, []).append(job)
    return found


def _attacked(result: JobResult, told: Mapping[str, str]) -> Attacked:
    record = read_record(result.folder)
    config = record.get("config") or {}
    paper, dataset = config.get("paper") or {}, config.get("dataset") or {}
    defense = str(paper.get("defense") or "none")
    kind = str(paper.get("attacker") or "naive")
    return Attacked(
        point=told.get("paper/defense", defense),
        defense=defense,
        setting=str(paper.get("setting") or ""),
        attacker=told.get("paper/attacker", kind),
        kind=kind,
        seed=told.get("seed", str(config.get("seed"))),
        scores=result.scores,
        utility=_after_training(result.folder / ROUNDS),
        summary=record.get("summary") or {},
        synthetic=dataset.get("_target_") == _DRAWN,
        attacked_rounds=tuple(sorted({int(r) for r in result.scores["round"]})),
    )


def _after_training(path: Path) -> RoundScore | None:
    rounds: tuple[RoundScore, ...] = ()
    with suppress(OSError, DataError):  # without utility a point is not drawn, and says so
        rounds = read_rounds(path)
    return rounds[-1] if rounds else None
