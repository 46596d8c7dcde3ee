"""Short searches under many arrangements of an update's images, to find where to begin."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from medpfl.attacks.arrangements import Arrangement, Arrangements
from medpfl.attacks.matching import Targets
from medpfl.attacks.stages import Key, Lead
from medpfl.attacks.victim_rows import VictimRows
from medpfl.optim.scheduler import CurvedObjective, Scheduler
from medpfl.seeding import generator

# How bright blank images are: as most of a scan, and as most of a photograph.
_BLANKS = (0.2, 0.5)
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Screening:
    """Tells a victim's restarts under which arrangement each begins, and at which point.

    Args:
        arrangements: what is tried, and how long.
        rows: what a row is.
        counted: whether labels, where they are given, were counted.
        objective: of single rows.
        restarts: of a victim.
        dtype: the attacker's precision.
        seed: the run's.
        scheduler: runs rows for so many steps at most.
    """

    arrangements: Arrangements
    rows: VictimRows
    counted: bool
    objective: CurvedObjective[Targets]
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
            classes=self.rows.unknowns(key.observation).classes if self.counted else None,
            generator=generator(self.seed, "arrangements", name),
        )
        evaluations = 0
        if len(possible) > self.arrangements.most:
            evaluations = len(_BLANKS) * len(possible)
            possible = self._likeliest(key, possible)
        key = replace(key, leads=tuple(map(Lead, possible)))
        steps = self.arrangements.steps
        while len(key.leads) > self.restarts:
            key, more = self._halved(key, steps)
            evaluations += more
            steps = math.ceil(steps / self.arrangements.keep)
        return replace(key, spent=(evaluations, time.perf_counter() - began))

    def _likeliest(self, key: Key, possible: list[Arrangement]) -> list[Arrangement]:
        """Return the arrangements under which blank images explain the update best."""
        unknowns, shared = self.rows.unknowns(key.observation), self.rows.target(key, self.dtype)
        values = torch.full((len(possible),), math.inf, dtype=self.dtype)
        for level in _BLANKS:
            images = unknowns.spec.normalise(torch.full(unknowns.image_shape, level))
            z = unknowns.pack(images, torch.zeros(unknowns.label_shape))
            z = z.to(self.rows.device, self.dtype)
            for first in range(0, len(possible), _AT_ONCE):
                part = slice(first, first + _AT_ONCE)
                targets = [self._target(key, a, shared) for a in possible[part]]
                value, _ = self.objective(z.expand(len(targets), -1), targets[0].join(*targets[1:]))
                values[part] = values[part].fmin(value.cpu())
        best = values.argsort(stable=True)[: self.arrangements.most]
        return [possible[i] for i in best.tolist()]

    def _target(self, key: Key, arrangement: Arrangement, shared: Targets) -> Targets:
        target = self.rows.target(replace(key, leads=(Lead(arrangement),)), self.dtype)
        return replace(target, gradient=shared.gradient)

    def _halved(self, key: Key, steps: int) -> tuple[Key, int]:
        """Return the better part of the leads, each so many steps further, and the evaluations."""
        each = (replace(key, restart=number) for number in range(len(key.leads)))
        rows = (self.rows.row(lead, self.dtype) for lead in each)
        ended = list(self.scheduler(steps).run(rows))
        ended.sort(key=lambda o: (math.isnan(o.objective), o.objective, o.key.restart))
        survivors = self.arrangements.survivors(len(ended), self.restarts)
        leads = tuple(Lead(o.key.arrangement, o.z) for o in ended[:survivors])
        return replace(key, leads=leads), sum(o.evaluations for o in ended)
