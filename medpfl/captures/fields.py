"""The values of a JSON file, each taken as one kind or refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from medpfl.errors import DataError

T = TypeVar("T")

_SHOWN = 60
_LONGEST_TEXT = 10_000
_MOST_LEVELS = 20


@dataclass(frozen=True)
class Fields:
    """An object of a JSON file.

    Args:
        values: what it holds.
        place: the file, for messages.
        above: where in the file it stands, with a dot at the end, or nothing.
    """

    values: Mapping[str, object]
    place: str
    above: str = ""

    def wrong(self, name: str, wanted: str, found: str | None = None) -> DataError:
        """Return the error that says what must stand at a name, and what was found instead."""
        told = f"is {shown(self.values.get(name))}" if found is None else found
        return DataError(
            f"{self.place}: {self.above}{name} must be {wanted}, and {told}. "
            "Take the capture again, or correct the file where you wrote it by hand"
        )

    def require(self, names: Iterable[str]) -> None:
        """Refuse an object that lacks one of these names, or has others.

        Raises:
            DataError: names the first that is missing or unknown.
        """
        wanted = set(names)
        for fault, those in (
            ("is missing", wanted - self.values.keys()),
            ("is not a name that this format has", self.values.keys() - wanted),
        ):
            if those:
                name = shown(sorted(those)[0])
                raise DataError(
                    f"{self.place}: {self.above.rstrip('.') or 'the file'}: {name} {fault}. "
                    "docs/capture-format.md lists the names; what is not known is null"
                )

    def inner(self, name: str, names: Iterable[str] | None = None) -> Fields:
        """Return the object at a name, which must have exactly these names, or any where None."""
        value = self.values[name]
        if not isinstance(value, dict):
            raise self.wrong(name, "names with values in braces")
        inner = Fields(value, self.place, f"{self.above}{name}.")
        if names is not None:
            inner.require(names)
        return inner

    def maybe(self, name: str, take: Callable[[str], T]) -> T | None:
        """Return what is taken from a name, or None where null stands there."""
        return None if self.values[name] is None else take(name)

    def choice(self, name: str, choices: Iterable[str]) -> str:
        """Return one of the choices."""
        value, allowed = self.values[name], list(choices)
        if not isinstance(value, str) or value not in allowed:
            raise self.wrong(name, " or ".join(allowed))
        return value

    def text(self, name: str) -> str:
        """Return text that can be printed."""
        value = self.values[name]
        if not is_text(value):
            raise self.wrong(name, f"text of at most {_LONGEST_TEXT} printable characters")
        return str(value)

    def truth(self, name: str) -> bool:
        """Return true or false."""
        value = self.values[name]
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def whole(self, name: str, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`."""
        value = self.values[name]
        if not is_whole(value, low, high):
            raise self.wrong(name, f"a whole number from {low:,} to {high:,}")
        return int(value)  # type: ignore[call-overload, no-any-return]

    def number(self, name: str, low: float = -math.inf) -> float:
        """Return a finite number of at least `low`."""
        value = self.values[name]
        if not is_number(value) or value < low:  # type: ignore[operator]
            least = "" if low == -math.inf else f" of at least {low:g}"
            raise self.wrong(name, f"a finite number{least}")
        return float(value)  # type: ignore[arg-type]

    def items(self, name: str, fits: Callable[[object], bool], wanted: str) -> list[object]:
        """Return a list whose items all fit."""
        value = self.values[name]
        if not isinstance(value, list | tuple):
            raise self.wrong(name, f"a list of {wanted}")
        for item in value:
            if not fits(item):
                raise self.wrong(name, f"a list of {wanted}", f"has {shown(item)} among them")
        return list(value)

    def wholes(self, name: str, low: int, high: int) -> tuple[int, ...]:
        """Return a list of whole numbers from `low` to `high`."""
        wanted = f"whole numbers from {low:,} to {high:,}"
        return tuple(self.items(name, lambda v: is_whole(v, low, high), wanted))  # type: ignore[arg-type]

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of finite numbers."""
        return tuple(float(v) for v in self.items(name, is_number, "finite numbers"))  # type: ignore[arg-type]

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of printable texts."""
        return tuple(str(v) for v in self.items(name, is_text, "printable texts"))


def is_text(value: object) -> bool:
    """Tell whether a value is text that every console takes; lone surrogates are not."""
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT and value.isprintable()


def is_whole(value: object, low: int, high: int) -> bool:
    """Tell whether a value is a whole number from `low` to `high`; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object) -> bool:
    """Tell whether a value is a number that a float holds."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def shown(value: object) -> str:
    """Return a value for a message: in ASCII, and short."""
    if isinstance(value, dict | list):
        return "names with values" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, int) and not is_number(value):
        return "a number of hundreds of digits"
    text = "null" if value is None else json.dumps(value, default=repr)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def first_line(error: BaseException) -> str:
    """Return the first line of what a library says, as far as it can be printed."""
    line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in line[:200])


def parsed(content: bytes, place: str) -> Fields:
    """Return the object that strict JSON holds: no NaN, no name twice, text that can be printed.

    Raises:
        DataError: it is no such file.
    """
    try:
        value: object = json.loads(
            content.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_name_twice
        )
        _check_plain(value)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: not readable as JSON ({first_line(error)}). Take the capture again, or "
            "restore the file"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: must hold names with values in braces, and holds {shown(value)}")
    return Fields(value, place)


def _no_constant(word: str) -> object:
    raise ValueError(f"{word} is no number of JSON")


def _no_name_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands there twice")
    return values


def _check_plain(tree: object) -> None:
    """Refuse what no message could show: deep nesting, lone surrogates, control characters."""
    waiting = [(tree, 0)]
    while waiting:
        value, level = waiting.pop()
        names = (
            [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
        )
        if not all(name.isprintable() for name in names):
            raise ValueError("it holds text that cannot be printed")
        if level > _MOST_LEVELS:
            raise ValueError(f"nested deeper than {_MOST_LEVELS} levels")
        inner = list(value.values()) if isinstance(value, dict) else value
        if isinstance(inner, list):
            waiting.extend((item, level + 1) for item in inner)
