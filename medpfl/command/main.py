"""The command line: reads it, refuses what cannot work, starts what is asked for."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import medpfl
from medpfl._conf import conf_dir
from medpfl._entry import FAILED, INTERRUPTED, WITH_TRACEBACK
from medpfl.command.arguments import Arguments, read_arguments
from medpfl.command.explain import explained
from medpfl.command.jobs import new_job, resume, resumed_job
from medpfl.command.overrides import check_overrides
from medpfl.command.sources import check_files_as_they_are_read
from medpfl.report.console import make_console, paths
from medpfl.report.run_folder import resume_command
from medpfl.report.sweep import SweepReport
from medpfl.resume import read_request
from medpfl.resume.launch import sweep_arguments

_HYDRA_RAISES = "HYDRA_FULL_ERROR"


def run_command() -> None:
    """Do what the command line asks for; exit 1 where a job of a sweep failed.

    Raises:
        MedpflError: the command line cannot be followed.
    """
    # Everything a run writes can show patients: logs and copies of the configuration, too.
    os.umask(0o077)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may not exist in the locale
            stream.reconfigure(errors="backslashreplace")
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback
    arguments = read_arguments(sys.argv[1:])
    if "version" in arguments.flags:
        make_console().print(f"medpfl {medpfl.__version__}")
        return
    try:
        _start(arguments)
    except KeyboardInterrupt:
        stopped = SweepReport.finish()
        if stopped is None:
            raise
        paths({"continue": resume_command(stopped.results_csv.parent)})
        sys.exit(INTERRUPTED)
    outcome = SweepReport.last_outcome
    if outcome is not None and outcome.failed:
        sys.exit(FAILED)


def _start(arguments: Arguments) -> None:
    check_files_as_they_are_read()
    request = read_request(arguments)
    if request is None:
        if "shell-completion" not in arguments.flags:
            check_overrides(arguments.settings, _folders(arguments))
        _launch(new_job, arguments)
        return
    check_overrides(request.overrides, _folders(arguments))
    if request.is_sweep:
        again = read_arguments(sweep_arguments(request, Path(conf_dir())))
        check_overrides(again.settings, _folders(again))
        _launch(resumed_job, again)
    else:
        resume(request)


def _folders(arguments: Arguments) -> list[Path]:
    own = (arguments.flags.get(name) for name in ("config-path", "config-dir"))
    return [Path(conf_dir()), *(Path(str(folder)) for folder in own if folder is not None)]


def _launch(job: Callable[[], None], arguments: Arguments) -> None:
    """Hand the command line to Hydra, and say in our words what it refuses."""
    sys.argv[1:] = arguments.for_hydra()
    try:
        with _hydra_raising(), _silent(arguments.answers_tab):
            job()
    except Exception as fault:
        if arguments.answers_tab:
            sys.exit(FAILED)
        if os.environ.get(WITH_TRACEBACK) == "1" or _is_of_a_stream(fault):
            raise
        raise explained(fault) from fault


def _is_of_a_stream(fault: Exception) -> bool:
    """Tell an error of standard output, which has no name, from those of files and of Hydra."""
    return isinstance(fault, OSError) and fault.errno is not None and fault.filename is None


@contextmanager
def _hydra_raising() -> Iterator[None]:
    """Let Hydra raise its errors, and make errors of its warnings that something did not work."""
    before = os.environ.get(_HYDRA_RAISES)
    os.environ[_HYDRA_RAISES] = "1"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", r"Callback \w+\.\w+ raised")
            warnings.filterwarnings("error", r"provider=.* is not available")
            yield
    finally:
        os.environ.pop(_HYDRA_RAISES)
        if before is not None:
            os.environ[_HYDRA_RAISES] = before


@contextmanager
def _silent(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        yield
