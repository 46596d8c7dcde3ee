"""``medpfl-dp``: what somebody's noise is worth, as an epsilon and as a bound on reconstruction.

This is the command's door, light as `medpfl.cli`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from medpfl._entry import enter


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``medpfl-dp``; exit 2 for settings that cannot be accounted for."""
    if arguments is not None:
        sys.argv[1:] = arguments
    enter("medpfl.dp.command:run_command")
