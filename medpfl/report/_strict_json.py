"""JSON that every reader takes: no NaN, no infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath


def dumps(value: object) -> str:
    """Return the value as indented JSON text; NaN and infinities become null.

    Args:
        value: mappings, lists and tuples of strings, numbers, booleans, None, paths and enums.

    Raises:
        TypeError: the value holds anything else.
    """
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
