"""Which parts a configuration from a given folder may name: building a part runs its code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from medpfl.errors import ConfigurationError

_NAMED = re.compile(r"_target_\s*:\s*['\"]?([\w.]+)")


def check_parts(config: object, *, source: str, config_dir: Path | None = None) -> None:
    """Refuse a recorded configuration that would run code from outside medpfl.

    Args:
        config: the configuration, as plain values.
        source: where it was read, for the message.
        config_dir: the user's own configurations; the parts that these name are trusted too.

    Raises:
        ConfigurationError: a ``_target_`` is neither a class of medpfl nor named in `config_dir`.
    """
    trusted = set() if config_dir is None else set(_named_in(config_dir))
    for target in _targets(config):
        if target not in trusted and not is_own(target):
            raise ConfigurationError(
                f"{source} names a part that is not medpfl's: {target}. Whoever wrote this file "
                "could make it run any program. If the part is your own, give the folder of the "
                "configuration that names it, with --config-dir=..."
            )


def is_own(target: str) -> bool:
    """Tell whether a ``_target_`` is a class of this package."""
    module, _, name = target.rpartition(".")
    if not module.startswith("medpfl."):
        return False
    try:
        found = getattr(import_module(module), name, None)
    except (ImportError, ValueError):
        return False
    return inspect.isclass(found) and found.__module__.startswith("medpfl.")


def _targets(config: object) -> Iterator[str]:
    match config:
        case dict():
            if "_target_" in config:
                yield str(config["_target_"])
            for value in config.values():
                yield from _targets(value)
        case list():
            for value in config:
                yield from _targets(value)


def _named_in(config_dir: Path) -> Iterator[str]:
    for path in sorted(config_dir.rglob("*.yaml")):
        yield from _NAMED.findall(path.read_text(encoding="utf-8", errors="replace"))
