"""Short searches under many arrangements of an update's images, to find where to begin."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from medpfl.attacks.arrangements import Arrangements
from medpfl.attacks.matching import Targets
from medpfl.attacks.stages import Key, Lead
from medpfl.attacks.victim_rows import VictimRows
from medpfl.optim.scheduler import Scheduler
from medpfl.seeding import generator


@dataclass(frozen=True, kw_only=True)
class Screening:
    """Tells a victim's restarts under which arrangement each begins, and at which point.

    Args:
        arrangements: what is tried, and how long.
        rows: what a row is.
        placed: whether labels, where they are given, belong to the client's own numbering.
        restarts: of a victim.
        dtype: the attacker's precision.
        seed: the run's.
        scheduler: runs rows for so many steps at most.
    """

    arrangements: Arrangements
    rows: VictimRows
    placed: bool
    restarts: int
    dtype: torch.dtype
    seed: int
    scheduler: Callable[[int], Scheduler[Key, Targets]]

    def led(self, key: Key) -> Key:
        """Return the key with leads, the most promising first: the lower objective."""
        began, name = time.perf_counter(), key.observation.capture_id
        possible = self.arrangements.of(
            key.observation,
            key.arrangement.labels,
            placed=self.placed,
            generator=generator(self.seed, "arrangements", name),
        )
        key = replace(key, leads=tuple(map(Lead, possible)))
        steps, evaluations = self.arrangements.steps, 0
        while len(key.leads) > self.restarts:
            key, more = self._halved(key, steps)
            evaluations += more
            steps = math.ceil(steps / self.arrangements.keep)
        return replace(key, spent=(evaluations, time.perf_counter() - began))

    def _halved(self, key: Key, steps: int) -> tuple[Key, int]:
        """Return the better part of the leads, each so many steps further, and the evaluations."""
        each = (replace(key, restart=number) for number in range(len(key.leads)))
        rows = (self.rows.row(lead, self.dtype) for lead in each)
        ended = list(self.scheduler(steps).run(rows))
        ended.sort(key=lambda o: (math.isnan(o.objective), o.objective, o.key.restart))
        survivors = self.arrangements.survivors(len(ended), self.restarts)
        leads = tuple(Lead(o.key.arrangement, o.z) for o in ended[:survivors])
        return replace(key, leads=leads), sum(o.evaluations for o in ended)
