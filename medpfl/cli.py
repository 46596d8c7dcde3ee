"""The door of the command line: light, so that Ctrl-C is handled before slow imports."""

from __future__ import annotations

from medpfl._conf import conf_dir
from medpfl._entry import enter

__all__ = ["conf_dir", "main"]


def main() -> None:
    """Run ``medpfl``; exit 0 where every job is complete."""
    enter("medpfl.command.main:run_command")
