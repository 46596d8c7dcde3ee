"""What ``medpfl-dp`` does: reads its flags, and answers."""

from __future__ import annotations

import io
import sys

from medpfl.dp.flags import Asked, read_flags


def run_command() -> None:
    """Print the epsilon and the bound of what the command line describes.

    Raises:
        MedpflError: the flags do not describe a mechanism.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may know no box characters
            stream.reconfigure(errors="backslashreplace")
    _answer(read_flags(sys.argv[1:]))


def _answer(asked: Asked) -> None:
    # What follows needs numerical libraries: flags, help and mistakes come before it.
    from medpfl.dp.answers import answer
    from medpfl.dp.show import show, show_json

    found = answer(asked)
    if asked.json:
        show_json(found)
    else:
        show(found)
