"""How long an attack will still take, read off the rows under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

from medpfl.attacks.base import Work
from medpfl.optim.scheduler import Tick


@dataclass
class _Pass:
    """What is known of one pass over the rows.

    Fields:
        tick: the latest.
        seconds: spent in its ticks, less the first, which nobody saw begin.
        ended: steps of the rows that have ended.
    """

    tick: Tick
    seconds: float = 0.0
    ended: list[int] = field(default_factory=list)

    @property
    def pace(self) -> float:
        """Steps a second, of all rows together; 0 before one is known."""
        steps = sum(self.ended) + sum(self.tick.steps)
        return steps / self.seconds if self.seconds > 0 else 0.0

    def steps_left(self, waiting: int) -> float:
        """Return the steps that are left, where waiting rows take as many as those that ended."""
        under_way = sum(self._expected(step) - step for step in self.tick.steps)
        return under_way + waiting * fmean(self.ended)

    def _expected(self, step: int) -> float:
        """Return how many steps a row will take: as those that came as far, or as far again."""
        longer = [steps for steps in self.ended if steps > step]
        return min(self.tick.max_steps, fmean(longer) if longer else 2 * step)


class Forecast:
    """Follows an attack's rows from tick to tick.

    Images that never become rows, as their update holds no gradient, cost nothing and say nothing.

    Args:
        victims: updates that are attacked.
        clock: seconds from any origin.
    """

    def __init__(self, victims: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._victims = victims
        self._clock = clock
        self._free = 0
        self._passes: dict[int, _Pass] = {}
        self._work: Work | None = None
        self._told: float | None = None

    def leave_out(self) -> None:
        """Take note of a victim that needs no row."""
        self._free += 1

    def follow(self, work: Work) -> None:
        """Take note of a tick."""
        now = self._clock()
        known = self._passes.setdefault(work.stage, _Pass(work.tick))
        known.tick = work.tick
        known.seconds += 0.0 if self._told is None else now - self._told
        known.ended.extend(work.tick.ended)
        self._work, self._told = work, now

    def seconds_left(self) -> float | None:
        """Return what is left, about; None while no row of the attack's last pass has ended."""
        work = self._work
        if work is None:
            return None
        last = self._passes.get(work.stages)
        if last is None or not last.ended:
            return None
        rows = (self._victims - self._free) * work.rows_a_victim
        seconds = 0.0
        for known in self._passes.values():
            if known.pace > 0 and known.ended:
                waiting = max(0, rows - len(known.ended) - len(known.tick.steps))
                seconds += known.steps_left(waiting) / known.pace
        return seconds

    def where(self) -> str:
        """Return how far the rows under way are, such as ``8 rows at step 12 of at most 300``."""
        work = self._work
        if work is None or not work.tick.steps:
            return ""
        steps = work.tick.steps
        rows = f"{len(steps)} row{'' if len(steps) == 1 else 's'}"
        stage = "" if work.stages == 1 else f", pass {work.stage} of {work.stages}"
        return f"{rows} at step {round(fmean(steps))} of at most {work.tick.max_steps}{stage}"
