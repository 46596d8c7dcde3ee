"""What a slot of the configuration needs of the part that stands in it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_origin

_PACKAGE = __name__.partition(".")[0]
# What every class has, and no slot asks for.
_COMMON = {"__init__", "__subclasshook__", "__class_getitem__"}


def is_slot(hint: Any) -> bool:
    """Tell whether a type hint names a kind of part: a protocol or an abstract class."""
    kind = get_origin(hint) or hint
    return bool(getattr(kind, "_is_protocol", False)) or inspect.isabstract(kind)


def names_a_part(hint: Any) -> bool:
    """Tell whether a type hint names a kind of part, or one part that is of this package."""
    own = inspect.isclass(hint) and hint.__module__.partition(".")[0] == _PACKAGE
    return own or is_slot(hint)


def lacking(part: object, needed: Any) -> list[str]:
    """Return what a part lacks of what is needed, in words; nothing where it fits.

    Args:
        part: any object.
        needed: a protocol or a class, whose public members are what is needed.
    """
    kind = get_origin(needed) or needed
    if not is_slot(kind) and isinstance(part, kind):
        return []
    return [fault for name, member in _members(kind) for fault in _lack(part, name, member)]


def slot_words(part: object, needed: Any) -> str:
    """Return what is needed and what this part lacks of it, as goes on after "must be"."""
    kind = get_origin(needed) or needed
    about = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ").rstrip(".")
    missing = ", ".join(lacking(part, needed))
    return f"{_a(kind.__name__)} ({about}); {_a(_kind(part))} has no {missing}"


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'AEIOUaeiou' else 'a'} {word}"


def _kind(part: object) -> str:
    return f"class {part.__name__}" if inspect.isclass(part) else type(part).__name__


def _members(needed: Any) -> Iterator[tuple[str, object]]:
    """Yield the public members of a class and those above it, each once."""
    found: dict[str, object] = {}
    for base in needed.__mro__:
        if base is object or base.__module__ == "typing":
            continue
        for name in (*vars(base), *vars(base).get("__annotations__", ())):
            public = name == "__call__" or not name.startswith("_")
            if public and name not in _COMMON:
                found.setdefault(name, vars(base).get(name))
    yield from sorted(found.items())


def _lack(part: object, name: str, member: object) -> Iterator[str]:
    if inspect.isclass(part) or not hasattr(part, name):
        yield name if name != "__call__" else "call"
    elif inspect.isfunction(member):
        # a torch module can be called with anything, its forward cannot
        own = getattr(part, "forward" if name == "__call__" and hasattr(part, "forward") else name)
        if not callable(own) or not _takes(own, member, strict=is_ours(part)):
            yield f"{'call' if name == '__call__' else name}({', '.join(_names(member))})"


def is_ours(part: object) -> bool:
    """Tell whether a part is of this package."""
    return type(part).__module__.partition(".")[0] == _PACKAGE


def _takes(own: Any, needed: Any, *, strict: bool) -> bool:
    """Tell whether a method can be called as the protocol's is.

    Parts of this package name their arguments as their protocol does, which tells kinds of parts
    apart that are all called with as many. Of others only the number is compared.
    """
    try:
        signature = inspect.signature(own)
    except (TypeError, ValueError):  # some builtins have none
        return True
    parameters = list(inspect.signature(needed).parameters.values())[1:]
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    try:
        signature.bind(*[None] * (len(parameters) - len(named)), **dict.fromkeys(named))
    except TypeError:
        return False
    return not strict or [p.name for p in parameters] == list(signature.parameters)


def _names(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)[1:]
