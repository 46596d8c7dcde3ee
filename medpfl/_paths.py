"""Looking at the file system: whatever it refuses becomes one message that names the setting."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medpfl.errors import DataError

_NO_PERMISSION = (
    "no permission to read it: give yourself access (chmod u+r on a file, chmod u+rx on a folder "
    "and on those above it), or ask its owner"
)


def printable(path: str | os.PathLike[str]) -> str:
    """Return a path as text that every console, table and JSON file takes.

    Bytes of a file's name that are no UTF-8, which Python keeps as lone surrogates, become ``%E9``
    and the like; every other path stays as it is.
    """
    return "".join(
        f"%{ord(letter) & 0xFF:02X}" if "\ud800" <= letter <= "\udfff" else letter
        for letter in os.fspath(path)
    )


def expanded(text: str, *, setting: str) -> Path:
    """Return the path that a setting gives, with the home folder in place of ``~``.

    Raises:
        DataError: it cannot be a path.
    """
    if "\0" in text:
        raise DataError(f"{setting} holds a NUL character, which no path can: give another path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise DataError(
            f"{setting}={printable(text)}: the home folder of this user is not known; "
            "give the path in full"
        ) from None


@contextmanager
def looking(setting: str) -> Iterator[None]:
    """Turn what the file system refuses inside into an error for people.

    Args:
        setting: what the path was given with, and its value, such as ``dataset.root=images``.

    Raises:
        DataError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        place = printable(error.filename) if isinstance(error.filename, str) else ""
        known = not place or setting.endswith(place) or error.errno == errno.ENAMETOOLONG
        raise DataError(f"{setting}: {'' if known else f'{place}: '}{why(error)}") from None


def why(error: OSError) -> str:
    """Return why the file system refused, and what to do, without the path."""
    if isinstance(error, PermissionError):
        return _NO_PERMISSION
    if error.errno == errno.ENAMETOOLONG:
        return "the path is longer than the file system takes: give a shorter one"
    return error.strerror or type(error).__name__


def is_folder(path: Path) -> bool:
    """Tell whether a path is a folder; ``Path.is_dir`` also says no where it may not look.

    Raises:
        OSError: it cannot be told.
    """
    return _is(path, stat.S_ISDIR)


def is_file(path: Path) -> bool:
    """Tell whether a path is a file, as `is_folder` does."""
    return _is(path, stat.S_ISREG)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted by name.

    Raises:
        OSError: it cannot be listed.
    """
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted.

    Raises:
        OSError: it cannot be listed, or its entries may not be looked at; names the folder alone.
    """
    try:
        return [entry.name for entry in entries(folder) if entry.is_dir()]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return kind(mode)
