"""What type hints say of the values of settings, and of the parts that fill a slot."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig

from medpfl.errors import ConfigurationError
from medpfl.settings.ranges import Range
from medpfl.settings.slots import lacking, names_a_part, slot_words

ClassT = TypeVar("ClassT", bound=type)

_WORDS: Mapping[object, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", "text"),
    bool: ("true or false", "true or false"),
    NoneType: ("null", "null"),
}


def checked(place: str) -> Callable[[ClassT], ClassT]:
    """Return a class decorator that checks a constructor's arguments against its type hints.

    A configuration was checked before; this is for parts that are made in Python, and for what a
    part that is not medpfl's has turned out to be.

    Args:
        place: where the part stands in the configuration, for the message: ``attack.start``.
    """

    def decorate(cls: ClassT) -> ClassT:
        construct = cls.__init__  # type: ignore[misc]

        @wraps(construct)
        def __init__(self: object, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            hints = hints_of(cls)
            given = inspect.signature(construct).bind(self, *args, **kwargs).arguments
            for name, value in given.items():
                check_value(f"{place}.{name}", value, hints.get(name, Any), built=True)
            construct(self, *args, **kwargs)

        cls.__init__ = __init__  # type: ignore[misc]
        return cls

    return decorate


def hints_of(target: Any) -> dict[str, Any]:
    """Return the type hints of what a class or function takes, ranges included.

    Of a dataclass they come field by field: one that it inherits may be declared in another file,
    whose names mean nothing in its own.
    """
    sources = [target]
    if inspect.isclass(target):
        sources = [target.__init__, *([target] if hasattr(target, "__dataclass_fields__") else [])]
    hints: dict[str, Any] = {}
    for source in sources:
        try:
            hints |= get_type_hints(source, include_extras=True)
        except (NameError, TypeError, AttributeError):
            continue  # a user's own class may import names for type checkers alone
    return hints


def check_value(key: str, value: object, hint: Any, *, built: bool = False) -> None:
    """Refuse a value that a setting's type hint does not allow, with the setting's name.

    Args:
        key: the setting.
        value: what it is given.
        hint: its type, with ranges.
        built: whether groups have become parts.

    Raises:
        ConfigurationError: it is of the wrong type, out of range, or a part of another kind.
    """
    for option in _options(hint):
        if get_origin(option) is Mapping and _is_mapping(value):
            for name, item in _items(value):
                below = _key_below(key, value, name)
                check_value(below, item, get_args(option)[1], built=built)
            return
    if not _fits(value, hint):
        raise wrong_value(key, value, _words(hint, value, built))


def wrong_value(key: str, value: object, wanted: str) -> ConfigurationError:
    """Return the error that says what a setting must be, its value written as in YAML."""
    return ConfigurationError(f"{key}={_told(value)}: must be {wanted}")


def _told(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, DictConfig) and "_target_" in value:
        return f"{{_target_: {value['_target_']}, ...}}"
    if isinstance(value, int | float | str | list | tuple | dict | DictConfig | ListConfig):
        text = str(value)
        return text if len(text) <= 80 else f"{text[:77]}..."
    return type(value).__name__


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_mapping(value: object) -> bool:
    return isinstance(value, DictConfig | Mapping) and "_target_" not in value


def _items(value: Any) -> Iterable[tuple[str, object]]:
    return ((str(name), value[name]) for name in value)


def _key_below(key: str, value: object, name: str) -> str:
    # a group that is shared by interpolation keeps its own name
    return value._get_full_key(name) if isinstance(value, DictConfig) else f"{key}.{name}"


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Annotated:
        kind, *extras = get_args(hint)
        ranges = [extra for extra in extras if isinstance(extra, Range)]
        return _fits(value, kind) and all(value in interval for interval in ranges)  # type: ignore[operator]
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Literal:  # whether it is one of them, its constructor says best
        return type(value) in {type(choice) for choice in get_args(hint)}
    if hint in (bool, str, NoneType):
        return isinstance(value, hint)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return _is_number(value) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
    if origin in (Sequence, list, tuple):
        kind = get_args(hint)[0]
        is_list = isinstance(value, ListConfig | list | tuple)
        return is_list and all(_fits(item, kind) for item in value)  # type: ignore[attr-defined]
    if origin is Mapping:
        return isinstance(value, DictConfig | Mapping)
    if names_a_part(hint):
        if isinstance(value, DictConfig):
            return "_target_" in value
        return not lacking(value, hint)
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(hint: Any, value: object, built: bool) -> str:
    """Return what a value must be, as it is not: its range where it is of the right type."""
    origin = get_origin(hint)
    if origin is Annotated:
        kind, *extras = get_args(hint)
        wanted = extras if _fits(value, kind) else [_words(kind, value, built), *_advice(extras)]
        return "; ".join(map(str, wanted))
    if origin in (Union, UnionType):
        return " or ".join(_words(option, value, built) for option in get_args(hint))
    if origin is Literal:
        return " or ".join(str(choice) for choice in get_args(hint))
    if origin in (Sequence, list, tuple):
        return f"a list of {_plural(get_args(hint)[0])} in square brackets"
    if hint is float and _is_number(value):
        return "a finite number"
    if hint in _WORDS:
        return _WORDS[hint][0]
    if not names_a_part(hint):
        return "a group"
    return slot_words(value, hint) if built else "a group with a _target_"


def _advice(extras: Iterable[object]) -> list[object]:
    return [extra for extra in extras if not isinstance(extra, Range)]


def _plural(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        kind, *extras = get_args(hint)
        return f"{_plural(kind)}, each {'; '.join(map(str, extras))},"
    return _WORDS[hint][1] if hint in _WORDS else "values"
