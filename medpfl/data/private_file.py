"""Small files for their owner's eyes, there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ONLY_THE_OWNER = 0o600


def create_private(path: Path, text: str) -> None:
    """Write a file that is not there yet; where another process was first, its file stays.

    Raises:
        OSError: the file cannot be written.
    """
    with _written(path.parent, text) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:  # a disk without hard links
            if not path.exists():
                os.replace(temporary, path)


def replace_private(path: Path, text: str) -> None:
    """Write a file, or put a new one in the place of one that is there.

    Raises:
        OSError: the file cannot be written.
    """
    with _written(path.parent, text) as temporary:
        os.replace(temporary, path)


@contextmanager
def _written(folder: Path, text: str) -> Iterator[Path]:
    """Write a hidden file beside the one that is wanted; it is gone afterwards."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".medpfl-", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # mkstemp asks for 0600, from which an umask can still take away.
            temporary.chmod(_ONLY_THE_OWNER)
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
