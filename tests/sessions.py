"""medpfl in processes of its own, which can be killed: with the imports done, by a fork server."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers import CONF, config

from medpfl import cli, runner
from medpfl.federated import Client
from medpfl.resume import Request
from medpfl.resume.run import resume_run

FORKS = multiprocessing.get_context("forkserver")
# What a command imports at once, and what it imports when nothing is wrong with it.
FORKS.set_forkserver_preload(["medpfl.command.main", "medpfl.resume.job"])

TINY = (
    "device=cpu",
    "attack=dlg",
    "dataset.per_class=1",
    "preprocess.size=16",
    "attack.optimizer.max_steps=1",
    "attack.optimizer.max_iter=4",
    "attack.rows=1",  # side by side, rounding differs: alone, results are the same to the last bit
    "attack.trace_points=2",
)


@dataclass(frozen=True)
class Stop:
    """When a process sends itself a signal.

    Args:
        call: before or after which call: ``open`` of a part of a victim's arrays, ``fsync`` of a
            file that is not there yet, ``replace`` or ``link`` that puts it there, or ``update`` of
            a client.
        count: at which of these calls.
        after: after it, not before.
        signal: which signal.
    """

    call: str
    count: int
    after: bool = False
    signal: int = signal.SIGKILL


def start(task: Callable[..., None], *arguments: Any) -> Any:
    """Start a task of this module."""
    process = FORKS.Process(target=task, args=arguments)
    process.start()
    return process


def session(folder: Path, overrides: Sequence[str], log: Path, stop: Stop | None) -> None:
    """Start the run of a folder, or go on with it."""
    _prepare(Path(os.devnull), log, stop)
    if (folder / "run.json").exists():
        resume_run(Request(folder), CONF)
    else:
        runner.run(config(*overrides), folder, overrides=overrides)


def command(
    arguments: Sequence[str], cwd: Path, output: Path, log: Path, stop: Stop | None
) -> None:
    """Run ``medpfl`` with a command line; what it says goes to a file."""
    _prepare(output, log, stop)
    os.chdir(cwd)
    sys.argv = ["medpfl", *arguments]
    cli.main()


def as_somebody(arguments: Sequence[str], cwd: Path) -> None:
    """Run ``medpfl`` as a user who owns nothing; what it says goes to a file."""
    _prepare(cwd / "said", cwd / "log", None)
    os.setgid(65534)
    os.setuid(65534)
    os.chdir("/")
    sys.argv = ["medpfl", *arguments]
    cli.main()


def _prepare(output: Path, log: Path, stop: Stop | None) -> None:
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = output.open("w")
    _log_updates(log)
    if stop is not None:
        owners = {"update": Client, "open": zipfile.ZipFile}
        owner: Any = owners.get(stop.call, os)
        setattr(owner, stop.call, _stopping(getattr(owner, stop.call), stop))


def _log_updates(log: Path) -> None:
    """Append a line for every update that a client computes."""
    update = Client.update

    def logged(self: Client, victim: Any, *arguments: Any, **options: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{victim.ids[0]}\n")
        return update(self, victim, *arguments, **options)

    Client.update = logged  # type: ignore[method-assign]


def _stopping(function: Callable[..., Any], stop: Stop) -> Callable[..., Any]:
    calls = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop.count and not stop.after:
            os.kill(os.getpid(), stop.signal)
        result = function(*arguments, **options)
        if calls == stop.count and stop.after:
            os.kill(os.getpid(), stop.signal)
        return result

    return wrapped
