"""Checks settings against the constructors that they are for, before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig

from medpfl.errors import ConfigurationError

_WORDS: Mapping[object, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", "text"),
    bool: ("true or false", "true or false"),
    NoneType: ("null", "null"),
}


def check_settings(config: DictConfig) -> None:
    """Compare a config group, and all that it holds, with the signatures of its ``_target_``s.

    Ranges and choices are the constructors' own business; a value of the wrong type would make
    them fail with a message about their code instead of the setting.

    Raises:
        ConfigurationError: a setting is unknown, missing, or of the wrong type.
    """
    for node in _calls(config):
        target = _target(node)
        parameters = inspect.signature(target).parameters
        given = {str(key): node[key] for key in node if not _is_hydras_own(str(key))}
        _check_names(node, parameters, given)
        hints = _hints(target)
        for name, value in given.items():
            if not _fits(value, hints.get(name, Any)):
                raise wrong_value(node._get_full_key(name), value, _words(hints[name]))


def wrong_value(key: str, value: object, wanted: str) -> ConfigurationError:
    """Return the error that says what a setting must be, its value written as in YAML."""
    told = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    return ConfigurationError(f"{key}={told}: must be {wanted}")


def _calls(value: object) -> Iterator[DictConfig]:
    """Yield every group with a ``_target_``, the outermost first."""
    if isinstance(value, DictConfig):
        if "_target_" in value:
            yield value
        for key in value:
            yield from _calls(value[key])
    elif isinstance(value, ListConfig):
        for item in value:
            yield from _calls(item)


def _is_hydras_own(key: str) -> bool:
    return key.startswith("_") and key.endswith("_")


def _target(node: DictConfig) -> Any:
    path = node["_target_"]
    try:
        return resolve_name(path)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        key = node._get_full_key("_target_")
        raise ConfigurationError(f"{key}={path}: cannot be found ({error})") from error


def _hints(target: Any) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return get_type_hints(function)
    except (NameError, TypeError):  # a user's own class may import names for type checkers alone
        return {}


def _check_names(
    node: DictConfig, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, object]
) -> None:
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) or "_args_" in node:
        return
    unknown = sorted(set(given) - set(parameters))
    if unknown:
        key = node._get_full_key(unknown[0])
        raise ConfigurationError(f"{key}: no such setting; choose from {', '.join(parameters)}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in given]
    if missing and not node.get("_partial_"):
        raise ConfigurationError(f"{node._get_full_key(missing[0])}: must be set")


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Literal:  # whether it is one of them, its constructor says best
        return type(value) in {type(choice) for choice in get_args(hint)}
    if hint in (bool, str, NoneType):
        return isinstance(value, hint)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin in (Sequence, list, tuple):
        kind = get_args(hint)[0]
        return isinstance(value, ListConfig) and all(_fits(item, kind) for item in value)
    if getattr(origin or hint, "_is_protocol", False):
        return isinstance(value, DictConfig)
    return True


def _words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(option) for option in get_args(hint))
    if origin is Literal:
        return " or ".join(str(choice) for choice in get_args(hint))
    if origin in (Sequence, list, tuple):
        kind = get_args(hint)[0]
        return f"a list of {_WORDS[kind][1] if kind in _WORDS else 'values'} in square brackets"
    if hint in _WORDS:
        return _WORDS[hint][0]
    return "a group with a _target_"
