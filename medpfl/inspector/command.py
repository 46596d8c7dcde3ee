"""What ``medpfl-inspect`` does: reads its flags, looks at the model, and answers."""

from __future__ import annotations

import io
import sys

from medpfl.inspector.flags import Asked, read_flags

SUSPICIOUS = 3


def run_command() -> None:
    """Print what is found in the model that the command line names.

    Raises:
        MedpflError: there is none, or the flags are wrong.
        SystemExit: with 3 where it is suspicious.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may not exist in the locale
            stream.reconfigure(errors="backslashreplace")
    if _answered(read_flags(sys.argv[1:])):
        sys.exit(SUSPICIOUS)


def _answered(asked: Asked) -> bool:
    """Print the answer; return whether something suspicious is in it."""
    # What follows needs torch: flags, help and mistakes come before it.
    from medpfl.inspector.answers import answer, hashes
    from medpfl.inspector.show import show, show_hashes, show_json

    if asked.hash:
        show_hashes(hashes(asked), as_json=asked.json)
        return False
    answers = answer(asked)
    if asked.json:
        show_json(answers)
    else:
        show(answers)
    return any(one.verdict.suspicious for one in answers)
