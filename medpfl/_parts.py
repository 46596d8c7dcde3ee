"""The defense of a configuration, part by part: today's form and that of older records."""

from __future__ import annotations

from collections.abc import Mapping

_FLAT = {"NoDefense": "none", "Perturbation": "perturbation"}


def defense_parts(group: object) -> dict[str, object]:
    """Return the parts of the group ``defense`` by name, in their order.

    Records from before there were several hold one part where its name stands today, and so do
    configurations of one's own that give no ``# @package defense.NAME``.

    Args:
        group: plain values, or a configuration; nothing is found in what is neither.
    """
    if not hasattr(group, "keys"):
        return {}
    found: Mapping[str, object] = group  # type: ignore[assignment]
    if "_target_" not in found:
        return {str(name): found[name] for name in found}
    last = str(found["_target_"]).rpartition(".")[2]
    return {_FLAT.get(last, last): group}


def defense_names(group: object) -> tuple[str, ...]:
    """Return the names of the parts, in their order; ``none`` is one."""
    return tuple(defense_parts(group))
