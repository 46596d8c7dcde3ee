"""What differs between the configurations of two runs."""

from __future__ import annotations

from collections.abc import Mapping

_MOST_DIFFERENCES = 12
_MISSING = "not set"


def flat(tree: object, prefix: str = "") -> dict[str, object]:
    """Return the leaves of nested mappings by their dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, object] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def differences(a: Mapping[str, object], b: Mapping[str, object]) -> list[str]:
    """Return the settings that differ, a line each, and how many more there are.

    Args:
        a: what `flat` returned of the first run's configuration.
        b: the same of the second's.
    """
    keys = dict.fromkeys([*a, *b])
    differing = [key for key in keys if a.get(key, _MISSING) != b.get(key, _MISSING)]
    if not differing:
        return ["settings:                 the same"]
    lines = ["settings that differ, A -> B:"]
    lines += [
        f"  {key}: {a.get(key, _MISSING)} -> {b.get(key, _MISSING)}"
        for key in differing[:_MOST_DIFFERENCES]
    ]
    more = len(differing) - _MOST_DIFFERENCES
    return [*lines, f"  and {more} more"] if more > 0 else lines
