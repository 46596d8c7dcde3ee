"""Checks settings against the constructors that they are for, before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from medpfl.errors import ConfigurationError
from medpfl.settings.hints import check_value, hints_of, wrong_value
from medpfl.settings.renamed import now_called

# Keys that Hydra reads; these two would hand a part settings in place of other parts.
_REFUSED = ("_recursive_", "_convert_")


def check_settings(config: DictConfig, *, filled_in: Collection[str] = ()) -> None:
    """Compare a config group, and all that it holds, with the signatures of its ``_target_``s.

    Choices are the constructors' own business; a value of the wrong type would make them fail with
    a message about their code instead of the setting.

    Args:
        config: the group.
        filled_in: what the outermost ``_target_`` is given beside its settings.

    Raises:
        ConfigurationError: a setting is unknown, missing, of the wrong type or out of range.
    """
    for name in sorted(OmegaConf.missing_keys(config)):
        raise ConfigurationError(f"Missing mandatory value: {name}")
    for node in _calls(config):
        target = target_of(node)
        _check_hydras_own(node, target)
        given = {str(key): node[key] for key in node if not _is_hydras_own(str(key))}
        _check_names(node, target, given, filled_in if node is config else ())
        hints = hints_of(target)
        for name, value in given.items():
            check_value(node._get_full_key(name), value, hints.get(name, Any))


def target_of(node: DictConfig) -> Any:
    """Return the class or function that a group's ``_target_`` names.

    Raises:
        ConfigurationError: there is none, or it cannot be called.
    """
    key, path = node._get_full_key("_target_"), node["_target_"]
    if not isinstance(path, str):
        raise wrong_value(key, path, "the name of a class or function, such as medpfl.optim.LBFGS")
    try:
        target = resolve_name(path)
    except (ImportError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise ConfigurationError(f"{key}={path}: cannot be found ({error})") from error
    if not callable(target):
        kind = type(target).__name__
        raise ConfigurationError(f"{key}={path}: must be a class or function, but is a {kind}")
    return target


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


def _check_hydras_own(node: DictConfig, target: Any) -> None:
    for name in _REFUSED:
        if name in node:
            raise ConfigurationError(f"{node._get_full_key(name)}: leave it out, medpfl sets it")
    positional = node.get("_args_", ListConfig([]))
    if not isinstance(positional, ListConfig):
        raise wrong_value(node._get_full_key("_args_"), positional, "a list in square brackets")
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        raise wrong_value(node._get_full_key("_partial_"), partial, "true or false")
    if partial and inspect.isclass(target):
        raise ConfigurationError(
            f"{node._get_full_key('_partial_')}=true: is for functions, and {target.__name__} is a "
            "class: leave it out"
        )


def _check_names(
    node: DictConfig, target: Any, given: Mapping[str, object], filled_in: Collection[str]
) -> None:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some builtins have none
        return
    parameters = signature.parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = sorted(set(given) - set(parameters))
    if unknown and not any_name:
        key = node._get_full_key(unknown[0])
        if now := now_called(key):
            raise ConfigurationError(now)
        choices = ", ".join(n for n in parameters) or "nothing: it takes no settings"
        raise ConfigurationError(f"{key}: no such setting; choose from {choices}")
    args = list(node.get("_args_", ()))
    bind = signature.bind_partial if node.get("_partial_") else signature.bind
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and name not in (*given, *filled_in) and p.kind not in _VARIABLE
    ]
    if missing and not args and not node.get("_partial_"):
        raise ConfigurationError(f"{node._get_full_key(missing[0])}: must be set")
    try:
        bind(*args, **{**given, **dict.fromkeys(filled_in)})
    except TypeError as error:
        key = node._get_full_key("_args_")
        raise ConfigurationError(f"{key}={args}: {target.__name__}: {error}") from error


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
