"""How far long work has come: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich import progress as bars
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from medpfl.report.tables import format_seconds

_LINE_SECONDS = 5.0
_PULSE_SECONDS = 15.0


class Progress(Protocol):
    """Where long work reports how far it has come."""

    def update(self, done: int, successes: int, left: float | None = None) -> None:
        """Report finished work.

        Args:
            done: how many are finished so far.
            successes: how many of these succeeded.
            left: seconds that are left, about, or None where nothing is known of them.
        """

    def pulse(self, text: str, left: float | None = None) -> None:
        """Report signs of life between finished images, such as ``step 120 of at most 300``."""


@contextmanager
def show_progress(
    total: int,
    unit: str,
    *,
    console: Console,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Give the `Progress` that suits the console, and tidy up after it.

    Args:
        total: how many there are to finish.
        unit: what is counted, in the plural.
        console: where to show it.
        clock: seconds from any origin; lines in a pipe are spaced by it.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(total, unit, console, clock)
        return
    bar = _Bar(total, unit, console)
    with bar.live:
        yield bar


class _Bar:
    def __init__(self, total: int, unit: str, console: Console) -> None:
        self._total = total
        self._bar = bars.Progress(
            bars.BarColumn(bar_width=24),
            bars.MofNCompleteColumn(),
            bars.TextColumn(f"{unit}, {{task.fields[successes]}}", markup=False),
            bars.TimeElapsedColumn(),
            bars.TextColumn("elapsed{task.fields[left]}", style="dim", markup=False),
            console=console,
        )
        self._task = self._bar.add_task("", total=total, successes=_successes(0), left="")
        self._text = Text("", style="dim", no_wrap=True, overflow="ellipsis")
        self.live = Live(Group(self._bar, self._text), console=console, refresh_per_second=5)

    def update(self, done: int, successes: int, left: float | None = None) -> None:
        told = _left(left) if done < self._total else ""
        self._bar.update(self._task, completed=done, successes=_successes(successes), left=told)
        self._text.plain = ""

    def pulse(self, text: str, left: float | None = None) -> None:
        self._bar.update(self._task, left=_left(left))
        self._text.plain = text


class _Lines:
    def __init__(self, total: int, unit: str, console: Console, clock: Callable[[], float]) -> None:
        self._total, self._unit = total, unit
        self._console, self._clock = console, clock
        self._start = self._last = clock()
        self._done, self._successes, self._tenth = 0, 0, 0

    def update(self, done: int, successes: int, left: float | None = None) -> None:
        tenth = 10 * done // max(self._total, 1)
        due = self._clock() - self._last >= _LINE_SECONDS
        changed = (done, successes) != (self._done, self._successes)
        first = successes > 0 and self._successes == 0
        self._done, self._successes = done, successes
        if changed and (due or first or tenth > self._tenth):
            self._tenth = tenth
            self._write("", left)

    def pulse(self, text: str, left: float | None = None) -> None:
        if self._clock() - self._last >= _PULSE_SECONDS:
            self._write(text, left)

    def _write(self, text: str, left: float | None) -> None:
        self._last = self._clock()
        line = f"{self._done}/{self._total} {self._unit}, {_successes(self._successes)}, "
        line += format_seconds(round(self._last - self._start))
        if self._done < self._total:
            line += _left(left)
        self._console.print(f"{line}, {text}" if text else line, soft_wrap=True)


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f", about {format_seconds(max(1, round(seconds)))} left"


def _successes(count: int) -> str:
    return f"{count} success" if count == 1 else f"{count} successes"
