"""What a comparison reads of a run: files that somebody may have edited since."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medpfl._parts import defense_names, defense_parts
from medpfl.compare.settings import flat
from medpfl.errors import DataError
from medpfl.image_score import ImageScore
from medpfl.report._shape import at
from medpfl.report.jobs import read_record

_COLUMNS = ("image_id", "ssim", "success")
_LATER = ("grade",)  # older tables have none
_NOT_DEFINED = ("", "nan", "inf", "-inf")
_YES_OR_NO = {"true": True, "false": False}


@dataclass(frozen=True)
class Run:
    """What a comparison needs of a run.

    Args:
        folder: the run's folder.
        label: attack, dataset and defense, in words.
        dataset: the dataset's name.
        preprocess: how pictures became examples.
        status: how the run ended.
        scores: ``metrics.csv``, one row an image, indexed by image id.
        settings: the configuration, flat: ``attack.optimizer.max_steps`` to its value.
        network: the network's name.
        measures: the names of one's own measures, each a column of `scores`, NaN where not finite.
    """

    folder: Path
    label: str
    dataset: str
    preprocess: object
    status: str
    scores: pd.DataFrame
    settings: Mapping[str, object]
    network: str
    measures: tuple[str, ...] = ()


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        DataError: it is not the folder of a run, or its files cannot be read.
    """
    try:
        record = read_record(folder)
        config: dict[str, Any] = record.get("config") or {}
        table = _scores(folder / "metrics.csv", _own_measures(config))
    except FileNotFoundError as fault:
        missing = Path(fault.filename).name
        raise DataError(
            f"{folder} is not the folder of a run: it has no {missing}. Give a folder such as "
            "outputs/2025-01-31/10-00-00, or of a sweep the folder of one job"
        ) from fault
    except OSError as fault:
        name = Path(fault.filename or "run.json").name
        raise DataError(f"{folder}: {name} cannot be read: {fault.strerror or fault}") from fault
    except (ValueError, OverflowError) as fault:
        told = " ".join(str(fault).split())
        raise DataError(f"{folder}: its run.json or metrics.csv cannot be read: {told}") from fault
    names = {part: _named(config, part, folder) for part in ("attack", "dataset")}
    label = f"{names['attack']} on {names['dataset']}{_defended(config)}"
    status = str(record["status"])
    return Run(
        folder=folder,
        label=label,
        dataset=names["dataset"],
        preprocess=config.get("preprocess"),
        status=status,
        scores=table,
        settings=_settings(config),
        network=_network(config.get("model")) or "unknown network",
        measures=tuple(name for name in _own_measures(config) if name in table),
    )


def _own_measures(config: object) -> list[str]:
    """Return the names of the measures that a configuration adds."""
    given = at(config, "metrics.measures")
    named = given.items() if isinstance(given, dict) else ()
    known = (*ImageScore.fixed_columns(), "measures")
    return [name for name, part in named if part is not None and name not in known]


def _scores(path: Path, own: Sequence[str]) -> pd.DataFrame:
    """Read the columns that are compared, and nothing else of a table of any size.

    Args:
        path: the table.
        own: columns of one's own measures, where they are there.

    Raises:
        OSError: it cannot be read.
        ValueError: a column is missing, or holds something else; the message says where.
    """
    with path.open("rb"):  # so that an error has the file's name
        pass
    wanted = {*_COLUMNS, *_LATER, *own}
    table = pd.read_csv(path, usecols=lambda name: name in wanted, dtype=str, keep_default_na=False)
    for name in _COLUMNS:
        if name not in table:
            raise ValueError(f"metrics.csv has no column {name}")
    unknown = (table["success"] == "") & table["ssim"].isin(["", "nan"])
    if len(table) and unknown.all():
        raise ValueError("nobody knows its images, so that nothing can be said of its success")
    table = table[~unknown]
    table.index = pd.Index(table.pop("image_id"), name="image_id")
    if not table.index.is_unique:
        raise ValueError("metrics.csv names an image twice, so nothing can be paired")
    ssim = [_number(image, text) for image, text in table["ssim"].items()]
    success = [_truth(image, text) for image, text in table["success"].items()]
    later: dict[str, object] = {name: table[name] for name in _LATER if name in table}
    for name in own:
        if name in table:
            texts = table[name].items()
            later[name] = [_number(image, text, name, required=False) for image, text in texts]
    return pd.DataFrame({"ssim": ssim, "success": success, **later}, index=table.index)


def _number(image: object, text: str, column: str = "ssim", *, required: bool = True) -> float:
    """Read a finite number; where none is required, NaN for one that is not defined."""
    if not required and text.strip().lower() in _NOT_DEFINED:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"metrics.csv, {image}: {column}={text or '(nothing)'} is not a number")
    return value


def _truth(image: object, text: str) -> bool:
    known = _YES_OR_NO.get(text.lower())  # a spreadsheet writes TRUE
    if known is None:
        raise ValueError(
            f"metrics.csv, {image}: success={text or '(nothing)'} is neither True nor False"
        )
    return known


def _named(config: dict[str, Any], part: str, folder: Path) -> str:
    settings = config.get(part)
    name = settings.get("name") if isinstance(settings, dict) else None
    if not isinstance(name, str):
        raise DataError(
            f"{folder}: run.json does not say which {part} it is of (config.{part}.name)"
        )
    return name


def _settings(config: dict[str, Any]) -> dict[str, object]:
    """Return the configuration, flat, with the order of the defenses as a setting."""
    parts = defense_parts(config.get("defense"))
    if not parts:
        return flat(config)
    return {"defense": ", ".join(parts), **flat({**config, "defense": parts})}


def _defended(config: dict[str, Any]) -> str:
    names = [name for name in defense_names(config.get("defense")) if name != "none"]
    return f", defended ({', '.join(names)})" if names else ""


def _network(part: object) -> str:
    name = _last_name(part)
    if name == "TorchvisionModel" and isinstance(part, dict):
        return str(part.get("name", name))
    return name


def _last_name(part: object) -> str:
    target = str(part.get("_target_", "")) if isinstance(part, dict) else ""
    return target.rpartition(".")[2]
