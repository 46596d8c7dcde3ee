"""``medpfl-compare RUN_A RUN_B``: two attacks on the same images, compared image by image.

This is the command's door, light as `medpfl.cli`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from medpfl._entry import enter


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``medpfl-compare``; exit 2 for runs that cannot be compared."""
    if arguments is not None:
        sys.argv[1:] = arguments
    enter("medpfl.compare.command:run_command")
