"""JSON that every reader takes: no NaN, no infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import PurePath

_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def dumps(value: object) -> str:
    """Return the value as indented JSON text; NaN and infinities become null.

    Args:
        value: mappings, lists and tuples of strings, numbers, booleans, None, paths and enums.

    Raises:
        TypeError: the value holds anything else.
    """
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def spell(value: object) -> object:
    """Return the value with its NaNs and infinities as words, for `unspell` to read back."""
    return _map(value, lambda v: str(v) if isinstance(v, float) and not math.isfinite(v) else v)


def unspell(value: object) -> object:
    """Return the value with the words ``nan``, ``inf`` and ``-inf`` as numbers."""
    return _map(value, lambda v: _WORDS.get(v, v) if isinstance(v, str) else v)


def _map(value: object, change: Callable[[object], object]) -> object:
    match value:
        case Mapping():
            return {key: _map(item, change) for key, item in value.items()}
        case list() | tuple():
            return [_map(item, change) for item in value]
    return change(value)


def _plain(value: object) -> object:
    match value:
        case float():
            return float(value) if math.isfinite(value) else None
        case Enum():
            return _plain(value.value)
        case PurePath():
            return str(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value
