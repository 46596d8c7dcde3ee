"""The updates of one round, with the truth behind them, for any number of attackers in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from medpfl.attacks import AttackContext
from medpfl.cli import conf_dir
from medpfl.experiment import Experiment, build
from medpfl.image_score import ImageScore
from medpfl.metrics.rates import is_zero_gradient
from medpfl.profiling import UNPROFILED, Profiler
from medpfl.types import Capture, Reconstruction


@dataclass(frozen=True)
class Updates:
    """The updates that a configuration leads to, and the parts that made them.

    Args:
        config: the configuration.
        experiment: its parts.
        each: the updates, in order.
    """

    config: DictConfig
    experiment: Experiment
    each: tuple[Capture, ...]

    def with_gradient(self) -> Updates:
        """Leave out updates whose gradient is zero: no attack has anything to go by."""
        kept = tuple(
            u for u in self.each if u.facts and not is_zero_gradient(u.facts.gradient_norm)
        )
        return Updates(self.config, self.experiment, kept)


@dataclass(frozen=True)
class Attempt:
    """What one attacker made of the updates.

    Args:
        scores: one an image, updates and their images in order.
        seconds: wall time of all of them.
        cpu_seconds: what the process computed meanwhile, on all its threads: it does not grow with
            other work on the machine, as wall time does.
        evaluations: of the objective and its gradient; 0 where nobody counted.
    """

    scores: tuple[ImageScore, ...]
    seconds: float
    cpu_seconds: float
    evaluations: int = 0

    @property
    def solved(self) -> int:
        """Images rebuilt, by the threshold of the scorer."""
        return sum(score.success for score in self.scores)

    @property
    def per_image(self) -> float:
        """Seconds an image."""
        return self.seconds / max(1, len(self.scores))

    @property
    def cpu_per_image(self) -> float:
        """The process's own seconds an image."""
        return self.cpu_seconds / max(1, len(self.scores))

    @property
    def per_solved(self) -> float:
        """Seconds a rebuilt image, the time spent on all others included; infinite for none."""
        return self.seconds / self.solved if self.solved else math.inf

    @property
    def cpu_per_solved(self) -> float:
        """The process's own seconds a rebuilt image."""
        return self.cpu_seconds / self.solved if self.solved else math.inf

    @property
    def per_evaluation_ms(self) -> float:
        """Milliseconds an evaluation."""
        return 1e3 * self.seconds / max(1, self.evaluations)

    def without(self, seconds: float) -> Attempt:
        """Take seconds of wall time off that are to be counted elsewhere."""
        return replace(self, seconds=self.seconds - seconds)


def dataset_overrides(dataset: str) -> list[str]:
    """Return the settings for ``name``, or for ``name@folder``, whose images lie elsewhere."""
    name, _, root = dataset.partition("@")
    return [f"dataset={name}", f"dataset.root={root}"] if root else [f"dataset={name}"]


def compute_updates(overrides: Sequence[str]) -> Updates:
    """Return the updates of what ``medpfl <overrides>`` would attack, without any trace.

    Raises:
        MedpflError: as `build`.
    """
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", overrides=["attack.trace_points=0", *overrides])
    experiment = build(config)
    return Updates(config, experiment, tuple(experiment.source.captures()))


def attack_updates(updates: Updates, *, profiler: Profiler = UNPROFILED) -> Attempt:
    """Run medpfl's own attack on the updates."""
    e = updates.experiment
    context = AttackContext(seed=e.seed, device=e.device, profiler=profiler)
    clock = Clock()
    found = list(e.attack.reconstruct([u.observation for u in updates.each], context))
    _wait(e.device)
    return score(updates, found, clock)


class Clock:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return the seconds of wall time and of the process's own time since."""
        wall, own = self._began
        return time.perf_counter() - wall, time.process_time() - own


def score(updates: Updates, found: Iterable[Reconstruction], clock: Clock) -> Attempt:
    """Score anybody's reconstructions the one way: images matched one to one, then SSIM.

    Args:
        updates: the updates.
        found: one reconstruction an update, in any order.
        clock: started when the first of them was.
    """
    seconds, cpu_seconds = clock.read()
    e = updates.experiment
    mean_image: Tensor = e.data.mean_image()
    by_id = {r.capture_id: r for r in found}
    scores = [
        row
        for u in updates.each
        for row in e.scorer.judge(u, by_id[u.capture_id], mean_image).scores
    ]
    evaluations = sum(r.evaluations for r in by_id.values())
    return Attempt(tuple(scores), seconds, cpu_seconds, evaluations)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
