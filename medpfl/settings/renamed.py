"""Settings by names that they had before: what they are called now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medpfl.batch_norm import of_the_pair

_FEDERATION = "medpfl.federated.Federation"
_NOW = "federation.batch_norm"
_PAIR = {"federation.mode": "eval", "federation.buffers": "private"}
_POLICIES = (
    f"is now {_NOW}: eval_public for mode=eval, train_private for mode=train, train_shared for "
    "mode=train with buffers=shared"
)


def now_called(key: str) -> str | None:
    """Return what to set in place of a setting that has another name now; None of any other."""
    return f"{key} {_POLICIES}" if key in _PAIR else None


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded configuration by today's names, to the same effect.

    What cannot be translated is left as it is, for `now_called` to be said of it.
    """
    group = config.get("federation")
    if not isinstance(group, dict) or group.get("_target_") != _FEDERATION:
        return dict(config)
    own = {key: group[name] for key in _PAIR if (name := key.rpartition(".")[2]) in group}
    policy = of_the_pair(*{**_PAIR, **own}.values())
    if not own or policy is None or "batch_norm" in group:
        return dict(config)
    rest = {name: value for name, value in group.items() if f"federation.{name}" not in _PAIR}
    return {**config, "federation": {**rest, "batch_norm": policy}}


def overrides_by_todays_names(overrides: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Return recorded overrides by today's names.

    Args:
        overrides: as they were told.
        config: what they have led to, `translated`.
    """
    kept = [told for told in overrides if _key(told) not in _PAIR]
    if len(kept) == len(overrides):
        return kept
    return [*kept, f"{_NOW}={(config.get('federation') or {}).get('batch_norm')}"]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
