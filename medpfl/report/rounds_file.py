"""``rounds.csv``: how well the global model did after each round."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import pairwise
from pathlib import Path

from medpfl._atomic import write_text
from medpfl.errors import DataError
from medpfl.report.tables import csv_table


@dataclass(frozen=True, kw_only=True)
class RoundScore:
    """One row of ``rounds.csv``; field names are the column names, in this order.

    Args:
        round: how many rounds the model was trained for; 0 is before any.
        accuracy: this and the others as in `medpfl.federated.evaluate.Utility`.
        balanced_accuracy: in [0, 1].
        auc: in [0, 1].
        loss: in nats.
    """

    round: int
    accuracy: float
    balanced_accuracy: float
    auc: float
    loss: float


COLUMNS = tuple(field.name for field in fields(RoundScore))
"""The columns of ``rounds.csv``, in order."""


def write_rounds(path: Path, rounds: Sequence[RoundScore]) -> None:
    """Write all rounds so far; the file is there whole or as it was, and its owner's alone.

    Args:
        path: the file.
        rounds: in order.

    Raises:
        OSError: the file cannot be written.
        ValueError: a round is there twice, or out of order.
    """
    numbers = [score.round for score in rounds]
    if numbers != sorted(set(numbers)):
        raise ValueError(f"rounds must ascend, each there once: {numbers}")
    write_text(path, csv_table(COLUMNS, [astuple(score) for score in rounds]))


def read_rounds(path: Path) -> tuple[RoundScore, ...]:
    """Read a file that `write_rounds` wrote, and that somebody may have edited since.

    Columns of other names are passed over; an empty cell is NaN.

    Raises:
        OSError: it cannot be read.
        DataError: it is no such table; the message names the line.
    """
    try:
        # a spreadsheet writes a mark in front
        reader = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), strict=True)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"it has no column {missing[0]}")
        rounds = tuple(_score(row, reader.line_num) for row in reader)
        for before, score in pairwise(rounds):
            if score.round <= before.round:
                raise ValueError(f"round {score.round} follows round {before.round}")
    except (ValueError, csv.Error) as fault:
        raise DataError(
            f"{path} is not the table of a run's rounds: {fault}. Delete it, or put back the one "
            "that the run wrote"
        ) from fault
    return rounds


def _score(row: Mapping[str, str | None], line: int) -> RoundScore:
    text = {name: (row[name] or "").strip() for name in COLUMNS}
    if not text["round"].isdecimal():
        raise ValueError(f"line {line}: round={text['round'] or '(nothing)'} is no whole number")
    return RoundScore(
        round=int(text["round"]),
        **{name: _number(name, text[name], line) for name in COLUMNS if name != "round"},
    )


def _number(name: str, text: str, line: int) -> float:
    if not text:
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"line {line}: {name}={text[:40]} is not a number") from None
