"""The secret behind hashed ids: a file of the user's own, which no output ever shows."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from medpfl._atomic import create_text
from medpfl._paths import expanded, is_file, looking, printable
from medpfl.errors import DataError

SHORTEST, LONGEST = 32, 4096
_STATE_VARIABLE = "XDG_STATE_HOME"
_MAKE_ONE = (
    "make one with: (umask 077; python3 -c 'import secrets; print(secrets.token_hex(32))' > FILE)"
)


def read_salt(salt_file: str | None) -> bytes:
    """Return the secret, which stays the same from run to run.

    Args:
        salt_file: a file of 32 characters or more; None for the user's own, which is made on first
            use: ``$XDG_STATE_HOME/medpfl/ids.salt``, by default below ``~/.local/state``.

    Raises:
        DataError: the file is missing, unreadable, too short or too long, or it cannot be made.
    """
    if salt_file is not None:
        return _read(expanded(salt_file, setting="dataset.salt_file"), "dataset.salt_file")
    setting = f"{_STATE_VARIABLE} (where dataset.ids=hashed keeps its salt)"
    path = _state_folder(setting) / "medpfl" / "ids.salt"
    with looking(f"{setting}: {printable(path)}"):
        if not is_file(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):  # another process was first: its salt is the one
                create_text(path, f"{secrets.token_hex(32)}\n")
    return _read(path, setting)


def _state_folder(setting: str) -> Path:
    folder = os.environ.get(_STATE_VARIABLE) or "~/.local/state"
    path = expanded(folder, setting=setting)
    if not path.is_absolute():
        raise DataError(f"{setting}={printable(folder)}: must be a full path")
    return path


def _read(path: Path, setting: str) -> bytes:
    told = f"{setting}={printable(path)}"
    with looking(told):
        if not is_file(path):
            raise DataError(f"{told}: no such file; {_MAKE_ONE}")
        with path.open("rb") as file:
            salt = file.read(LONGEST + 1).strip()
    if not SHORTEST <= len(salt) <= LONGEST:
        raise DataError(
            f"{told}: a salt has {SHORTEST} to {LONGEST} characters; {_MAKE_ONE} "
            "(ids that were made with another salt are no longer found)"
        )
    return salt
