"""Tasks as an ordinary user: root may read everything, and would find no closed folder closed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sessions import FORKS

NOBODY = 65534


@contextmanager
def own_folder() -> Iterator[Path]:
    """Give an empty folder that every user can get to; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="medpfl-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for path, _, _ in os.walk(folder):
            os.chmod(path, 0o755)
        shutil.rmtree(folder)


def give_away(folder: Path) -> None:
    """Make the ordinary user the owner of a folder and all in it."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


class Ordinary:
    """A process of an ordinary user, which does one task after another.

    Args:
        tasks: functions of modules; these are imported while everything may still be read.
    """

    def __init__(self, *tasks: Callable[..., object]) -> None:
        self._pipe, there = FORKS.Pipe()
        self._process = FORKS.Process(target=_serve, args=(there, tasks), daemon=True)
        self._process.start()
        there.close()

    def outcome(self, task: Callable[..., object], *arguments: object, **environment: str) -> str:
        """Return what a task returns, as text, or what it raises as ``Error: words``."""
        self._pipe.send((task, arguments, environment))
        return str(self._pipe.recv())

    def end(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: Any, tasks: object) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    inherited = dict(os.environ)
    while True:
        try:
            task, arguments, environment = pipe.recv()
        except EOFError:
            return
        os.environ.update(environment)
        try:
            told = str(task(*arguments))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        os.environ.clear()
        os.environ.update(inherited)
        pipe.send(told)
