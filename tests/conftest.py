"""What tests share: one thread, the command line in this process, runs that were stopped."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from records import finished
from sessions import TINY, Stop, session, start

from medpfl import cli
from medpfl.report.sweep import SweepReport

# No test depends on how fast the machine is.
settings.register_profile("medpfl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("medpfl")


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


Command = Callable[..., Finished]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread.

    Tensors are small here, and where cores are busy, two threads that wait for each other at every
    operation take ten times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the processes that tests start, where who started the tests ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Run ``medpfl`` in this process, in an empty folder that is no checkout.

    A process of its own would spend four seconds on importing torch.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDPFL_DATA_ROOT", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    root = logging.getLogger()
    handlers, level, umask = root.handlers[:], root.level, os.umask(0o022)

    def run(*arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["medpfl", *arguments])
        monkeypatch.setattr(SweepReport, "last_outcome", None)
        capfd.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        told = capfd.readouterr()
        assert isinstance(code, int)
        return Finished(code, told.out, told.err)

    yield run
    # Hydra sets up logging, and the command closes its files to others, for the whole process.
    # Handlers of libraries stay open: absl's would close pytest's own stream.
    for handler in root.handlers:
        if handler not in handlers and isinstance(handler, logging.FileHandler):
            handler.close()
    root.handlers[:], root.level = handlers, level
    os.umask(umask)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six images that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = start(session, folder, TINY, folder.parent / "log", None)
    process.join()
    assert process.exitcode == 0
    return folder


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after two of its six images."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    process = start(session, folder, TINY, folder.parent / "log", Stop("update", 3))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(finished(folder)) == 2
    return folder


@pytest.fixture
def half(killed: Path, tmp_path: Path) -> Path:
    """A copy of the killed run."""
    return shutil.copytree(killed, tmp_path / "half")
