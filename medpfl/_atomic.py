"""Private files that are there whole or not at all, in folders that one process writes to."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
_BEGIN, _END = ".medpfl-", ".tmp"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name only once it is complete and on the disk.

    Whatever goes wrong before that, a file that was there stays as it was, and no part of the new
    one remains; a process that is killed leaves a hidden file for `remove_temporaries`.

    Args:
        path: the file to write, readable by its owner alone; its folder exists.

    Raises:
        OSError: the file cannot be written, for instance on a full disk.
    """
    with _written(path.parent, lambda temporary: os.replace(temporary, path)) as file:
        yield file


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def create_text(path: Path, text: str) -> None:
    """Write a UTF-8 file that must not be there yet; of several at once, one succeeds.

    Raises:
        FileExistsError: the file is there already.
        OSError: the file cannot be written.
    """

    def publish(temporary: Path) -> None:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a disk without hard links
            path.touch(PRIVATE_FILE, exist_ok=False)
            os.replace(temporary, path)

    with _written(path.parent, publish) as file:
        file.write(text.encode("utf-8"))


def remove_temporaries(folder: Path) -> None:
    """Remove the half-written files that a killed process left in a folder.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in folder.glob(f"{_BEGIN}*{_END}"):
        path.unlink(missing_ok=True)


def make_private_folder(path: Path) -> None:
    """Create a folder, and its parents, or take the access of others from one that is there.

    Raises:
        OSError: the folder cannot be created, or is someone else's.
    """
    path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    path.chmod(PRIVATE_FOLDER)


def hold(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed or the process ends, however it ends.

    Returns:
        The descriptor to close; None where the system or the disk knows no locks.

    Raises:
        BlockingIOError: another process holds the folder.
        OSError: there is no such folder, or it cannot be opened.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # some network disks
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _written(folder: Path, publish: Callable[[Path], None]) -> Iterator[BinaryIO]:
    """Open a hidden file, and publish it under its name once it is complete and on the disk."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=_BEGIN, suffix=_END)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # mkstemp asks for 0600, from which an umask can still take away.
            temporary.chmod(PRIVATE_FILE)
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(temporary)
    finally:
        temporary.unlink(missing_ok=True)
