"""What every command shares: whatever ends it early is one message and an exit code.

Nothing slow is imported here, so that Ctrl-C is handled while the rest of Python still imports.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

from medpfl.errors import MedpflError

FAILED, MISTAKE, INTERRUPTED, CLOSED = 1, 2, 130, 141
WITH_TRACEBACK = "MEDPFL_TRACEBACK"
_INTERRUPTED = b"medpfl: interrupted\n"


def enter(command: str) -> None:
    """Import a command and run it; exit with a message where that does not go well.

    Args:
        command: ``module:function``.
    """
    for name in ("stdout", "stderr"):  # missing where they were closed before Python began
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    debugging = os.environ.get(WITH_TRACEBACK) == "1"
    try:
        with leaving_at_once():
            module, _, function = command.partition(":")
            run = getattr(import_module(module), function)
        run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _write(_INTERRUPTED)
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        sys.exit(_flushed(end))
    except Exception as fault:
        if debugging:
            raise
        sys.exit(tell(fault))


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process in one line: for imports, which can swallow its exception.

    Only for moments in which there is nothing to put away.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # by whoever started us
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def tell(fault: Exception) -> int:
    """Print what went wrong in words; return the exit code."""
    from medpfl.report.console import error

    code, message = _in_words(fault)
    with suppress(OSError):  # standard error may be gone, too
        error(message)
    return code


def _in_words(fault: Exception) -> tuple[int, str]:
    if isinstance(fault, MedpflError):
        return MISTAKE, str(fault)
    lost = _lost_output() if isinstance(fault, OSError) and fault.filename is None else None
    if isinstance(lost, BrokenPipeError):
        return CLOSED, "standard output was closed before everything was written"
    if lost is not None:
        return FAILED, f"cannot write to standard output: {lost.strerror or lost}"
    if isinstance(fault, OSError):
        where = f"{fault.filename}: " if fault.filename is not None else ""
        return FAILED, f"{where}{fault.strerror or fault}"
    if isinstance(fault, MemoryError):
        return FAILED, f"the memory of this machine is used up {fault}".strip()
    return FAILED, (
        f"{type(fault).__name__}: {fault}\nThis is a fault in medpfl or in a part of your own. "
        f"{WITH_TRACEBACK}=1 before the command shows where; run.json of a run keeps it, too."
    )


def _flushed(end: SystemExit) -> str | int | None:
    """Return the exit code of a command that has ended, once its output is out."""
    try:
        sys.stdout.flush()
    except OSError as fault:
        return tell(fault)
    return end.code


def _lost_output() -> OSError | None:
    """Return why standard output takes nothing any more, and turn it off; None where it does."""
    try:
        sys.stdout.write("\n")  # what could not be written before is gone, and its error with it
        sys.stdout.flush()
    except OSError as fault:
        with suppress(OSError, ValueError):  # Python flushes once more as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return fault
    return None


def _leave(number: int, frame: object) -> None:
    _write(_INTERRUPTED)
    os._exit(INTERRUPTED)


def _write(line: bytes) -> None:
    with suppress(OSError):
        os.write(2, line)
