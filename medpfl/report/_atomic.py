"""Private files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name only once it is complete and on the disk.

    Whatever goes wrong before that, a file that was there stays as it was, and no part of the new
    one remains.

    Args:
        path: the file to write, readable by its owner alone; its folder exists.

    Raises:
        OSError: the file cannot be written, for instance on a full disk.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # mkstemp asks for 0600, from which an umask can still take away.
            temporary.chmod(PRIVATE_FILE)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def claim(path: Path) -> None:
    """Create an empty private file.

    Raises:
        FileExistsError: the file is there already; of several claims at once, one succeeds.
        OSError: the file cannot be created.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE_FILE)
    os.close(descriptor)
    path.chmod(PRIVATE_FILE)


def make_private_folder(path: Path) -> None:
    """Create a folder, and its parents, or take the access of others from one that is there.

    Raises:
        OSError: the folder cannot be created, or is someone else's.
    """
    path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    path.chmod(PRIVATE_FOLDER)
