"""Settings as a command line has them: text."""

from __future__ import annotations

from collections.abc import Iterable


def key_of(override: str) -> str:
    """Return what an override sets."""
    return override.partition("=")[0].lstrip("+~")


def is_hydras(override: str) -> bool:
    """Tell whether an override is about Hydra, not about the experiment."""
    return key_of(override).startswith("hydra")


def command(overrides: Iterable[str]) -> str:
    """Return the command line that starts a run."""
    return " ".join(["medpfl", *overrides])


def quoted(text: object) -> str:
    """Return text as a value that Hydra takes as it is."""
    escaped = str(text).replace("'", "\\'")
    return f"'{escaped}'"
