"""The profile of a run, in its folder."""

from __future__ import annotations

from pathlib import Path

from medpfl._atomic import write_text
from medpfl.profiling import Profiler
from medpfl.report._strict_json import dumps


def write_profile(folder: Path, profiler: Profiler) -> None:
    """Write ``profile.json`` and ``profile.md`` where a run is profiled.

    Raises:
        OSError: a file cannot be written.
    """
    profile = profiler.profile()
    if profile is not None:
        write_text(folder / "profile.json", dumps(profile.as_json()))
        write_text(folder / "profile.md", profile.as_markdown())
