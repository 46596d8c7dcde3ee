"""What a file must hold where it is read: a name, what stands there, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

_SHOWN = 40
_MOST_LEVELS = 50
_LONGEST = 1e11  # seconds: what is longer, or infinite, or not a number, was not measured


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Args:
        words: what it is, for a message.
        fits: tells whether a value is one.
    """

    words: str
    fits: Callable[[object], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < _LONGEST


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _is_list_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(fits(item) for item in value)


def _is_map_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, dict)
        and all(isinstance(key, str) and fits(item) for key, item in value.items())
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


TEXT = Kind("text", _is_text)
TEXTS = Kind("a list of texts", _is_list_of(_is_text))
NUMBER = Kind("a number", _is_number)
SECONDS = Kind("a number of seconds", lambda v: _is_number(v) and _is_time(v))
TEXT_MAP = Kind("names with a text each", _is_map_of(_is_text))
PLAIN_MAP = Kind("names with a single value each", _is_map_of(_is_plain))
NUMBER_MAPS = Kind(
    "names with numbers each", _is_map_of(_is_map_of(lambda v: v is None or _is_number(v)))
)
MAP = Kind("names with values", _is_map_of(lambda _: True))
MAPS = Kind("a list of names with values", _is_list_of(MAP.fits))


def check_shape(tree: object, shape: Mapping[str, Kind]) -> None:
    """Compare what a file holds with what is read from it; what is missing or null is allowed.

    Args:
        tree: plain values.
        shape: ``{dotted name: kind}``; everything else in the file may be anything.

    Raises:
        ValueError: names the first place that holds something else.
    """
    for name, kind in shape.items():
        value, above = tree, ""
        for key in name.split("."):
            if value is None:
                break
            if not isinstance(value, dict):
                raise ValueError(f"{above or 'it'} must be names with values, is {_shown(value)}")
            value, above = value.get(key), f"{above}.{key}" if above else key
        if value is not None and not kind.fits(value):
            raise ValueError(f"{name} must be {kind.words}, is {_shown(value)}")


def check_depth(tree: object) -> None:
    """Refuse plain values that are nested deeper than anything reads them.

    Raises:
        ValueError: they are.
    """
    waiting = [(tree, 0)]
    while waiting:
        value, level = waiting.pop()
        if level > _MOST_LEVELS:
            raise ValueError(f"it is nested deeper than {_MOST_LEVELS} levels")
        inner = list(value.values()) if isinstance(value, dict) else value
        if isinstance(inner, list):
            waiting.extend((item, level + 1) for item in inner)


def at(tree: object, name: str) -> object:
    """Return what stands at a dotted name; None where there is nothing."""
    value = tree
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "names with values"
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
