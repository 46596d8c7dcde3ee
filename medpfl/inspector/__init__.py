"""``medpfl-inspect MODEL``: what a client can see of a model before it trains it.

This is the command's door, light as `medpfl.cli`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from medpfl._entry import enter


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``medpfl-inspect``; exit 3 for a suspicious model, 2 for what is none."""
    if arguments is not None:
        sys.argv[1:] = arguments
    enter("medpfl.inspector.command:run_command")
