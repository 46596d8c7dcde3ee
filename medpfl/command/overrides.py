"""Settings as typed: whether they can be read, and whether there is such an option."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from medpfl._conf import is_option
from medpfl._near import did_you_mean
from medpfl.errors import ConfigurationError

Groups = Mapping[str, frozenset[str]]

# Groups of which several options may be chosen, in a list: they act one after another.
_LISTED = ("defense",)


def check_overrides(settings: Sequence[str], folders: Sequence[Path]) -> None:
    """Refuse settings that cannot be read, and choices that a group does not have.

    Args:
        settings: as typed.
        folders: the configurations: medpfl's own first, then the user's.

    Raises:
        ConfigurationError: names the setting, and the options of its group.
    """
    overrides = [_parsed(setting) for setting in settings]
    required = options_of(folders[:1])
    known = options_of([*folders, *_search_path(overrides)])
    for override in overrides:
        group = override.key_or_group
        if group in required or group in known or group == "hydra" or "/" in group:
            _check_choice(override, known.get(group, frozenset()), group in required)


def options_of(folders: Sequence[Path]) -> Groups:
    """Return the options of every group that the folders hold."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            group = path.parent.relative_to(folder).as_posix()
            if group != "." and is_option(path.stem):
                found.setdefault(group, set()).add(path.stem)
    return {group: frozenset(options) for group, options in found.items()}


def _parsed(setting: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(setting)
    except (HydraException, RecursionError) as error:
        reason = str(error).split("\n", 1)[0] or "it cannot be read"
        raise ConfigurationError(
            f"{setting}: {reason}. A setting is written key=value without spaces; a value with "
            "signs such as = , { [ in it stands in quotes: 'key=\"value\"'"
        ) from error
    if not override.key_or_group:
        raise ConfigurationError(f"{setting}: the name of a setting is missing before the =")
    return override


def _check_choice(override: Override, options: frozenset[str], required: bool) -> None:
    group, typed = override.key_or_group, override.input_line
    listed = (
        f"choose one of {', '.join(sorted(options))}" if options else "choose an option by name"
    )
    if override.is_delete():
        if required:
            raise ConfigurationError(f"{typed}: every run needs one, so {listed}")
        return
    if required and (override.is_add() or override.is_force_add()) and override.package is None:
        raise ConfigurationError(f"{typed}: {group} is chosen without a + in front: {group}=OPTION")
    for choice in _choices(override, typed, listed):
        if not isinstance(choice, str) and str(choice) not in options:
            raise ConfigurationError(f"{typed}: {listed}")
        if required and str(choice) not in options:
            near = did_you_mean(str(choice), options)
            raise ConfigurationError(f"{typed}: no such option{near} C{listed[1:]}")


def _choices(override: Override, typed: str | None, listed: str) -> Iterator[object]:
    """Yield each option that a setting names, of lists and sweeps every one; none for a pattern."""
    if override.is_sweep_override() and isinstance(override.value(), Glob):
        return
    for value in _values(override):
        if override.key_or_group not in _LISTED or not isinstance(value, list):
            yield value
        elif not value:
            raise ConfigurationError(f"{typed}: the list is empty: {listed}")
        elif len(set(map(str, value))) < len(value):
            raise ConfigurationError(f"{typed}: name each once")
        else:
            yield from value


def _values(override: Override) -> Iterator[object]:
    if not override.is_sweep_override():
        yield override.value()
        return
    for text in override.sweep_string_iterator():
        # Hydra gives the values of a sweep as text; a list is read as it is in a single job.
        yield _parsed(f"value={text}").value() if str(text).startswith("[") else text


def _search_path(overrides: Sequence[Override]) -> Iterator[Path]:
    """Yield the folders that ``hydra.searchpath`` adds."""
    for override in overrides:
        if override.key_or_group != "hydra.searchpath" or override.is_sweep_override():
            continue
        given = override.value()
        for entry in given if isinstance(given, list) else [given]:
            folder = Path(os.path.expanduser(str(entry).removeprefix("file://")))
            if str(entry).startswith("pkg://"):
                continue
            if not isinstance(given, list) or not folder.is_dir():
                raise ConfigurationError(
                    f"{override.input_line}: {folder} is no folder. Give a list of folders in "
                    "square brackets, or one with --config-dir=FOLDER"
                )
            yield folder
