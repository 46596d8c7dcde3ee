"""Settings beside ``resume=``: the recorded ones may be repeated, not changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medpfl._parts import defense_names, defense_parts
from medpfl.errors import ConfigurationError
from medpfl.report import _strict_json
from medpfl.report.jobs import Row
from medpfl.resume.settings import is_hydras, key_of, quoted
from medpfl.settings.renamed import now_called, overrides_by_todays_names

_NOT_SET = "(not set)"
_SHOWN = 12


def refuse_changes(
    record: Row, asked: Sequence[str], *, conf: Path, config_dir: Path | None, name: str
) -> None:
    """Compose what is asked for, and refuse it where it is not what is recorded.

    Args:
        record: the ``run.json`` of the run.
        asked: the settings beside ``resume=``.
        conf: medpfl's configurations.
        config_dir: the user's own, or None.
        name: the configuration that the run was composed from.

    Raises:
        ConfigurationError: a setting differs, or there is none of this name.
    """
    hydras = [override for override in asked if is_hydras(override)]
    if hydras:
        raise ConfigurationError(f"resume= goes on in the run's own folder: leave out {hydras[0]}")
    recorded = record.get("config") or {}
    told = [*overrides_by_todays_names(record.get("overrides") or (), recorded), *asked]
    try:
        composed = _compose(told, conf=conf, config_dir=config_dir, name=name)
    except (HydraException, OmegaConfBaseException) as error:
        renamed = next(filter(None, map(now_called, map(key_of, asked))), None)
        raise ConfigurationError(renamed or f"{' '.join(asked)}: {error}") from error
    differences = dict(_differences(recorded, composed))
    if differences:
        # What was asked for by name comes first: choosing a group can change much.
        named = [key for key in map(key_of, asked) if key in differences]
        keys = list(dict.fromkeys((*named, *differences)))
        lines = [f"{key}: {differences[key]}" for key in keys[:_SHOWN]]
        if len(keys) > len(lines):
            lines.append(f"... and {len(keys) - len(lines)} more")
        raise ConfigurationError(
            "resume= continues a run as it was configured (recorded -> asked for):\n  "
            + "\n  ".join(lines)
            + "\nLeave these settings out, or start a new run with them."
        )


def _compose(
    overrides: Sequence[str], *, conf: Path, config_dir: Path | None, name: str
) -> dict[str, Any]:
    # The later of two takes effect; Hydra itself refuses a group that is chosen twice.
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    last = {override.get_key_element().lstrip("+"): override.input_line for override in parsed}
    told = [line for line in last.values() if line is not None]
    if config_dir is not None:
        told.append(f"hydra.searchpath=[{quoted(f'file://{config_dir}')}]")
    with initialize_config_dir(config_dir=str(conf), version_base="1.3"):
        config = compose(name, overrides=told)
    settings = _strict_json.spell(OmegaConf.to_container(config, resolve=True))
    return cast(dict[str, Any], json.loads(_strict_json.dumps(settings)))


def _differences(recorded: object, asked: object, key: str = "") -> Iterator[tuple[str, str]]:
    if key == "defense":
        recorded, asked = _in_todays_form(recorded, asked)
        orders = [f"[{','.join(defense_names(group))}]" for group in (recorded, asked)]
        if orders[0] != orders[1]:
            yield key, " -> ".join(orders)
            return
    if isinstance(recorded, dict) and isinstance(asked, dict):
        for name in dict.fromkeys((*recorded, *asked)):
            inner = f"{key}.{name}" if key else str(name)
            yield from _differences(recorded.get(name, _NOT_SET), asked.get(name, _NOT_SET), inner)
    elif recorded != asked:
        yield key, f"{_shown(recorded)} -> {_shown(asked)}"


def _in_todays_form(recorded: object, asked: object) -> tuple[object, object]:
    """Lift a defense of before there were several, less the settings that it had not yet."""
    if not isinstance(recorded, dict) or "_target_" not in recorded:
        return recorded, asked
    now = defense_parts(asked)
    parts = defense_parts(recorded)
    for name, part in now.items():
        if name in parts and isinstance(part, dict):
            now[name] = {key: value for key, value in part.items() if key in recorded}
    return parts, now


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
