"""Compare the batched engine with a plain loop over ``torch.optim.LBFGS`` on the same images."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from medpfl._hydra import instantiate
from medpfl.attacks import AttackContext
from medpfl.bench.plain import plain_attack
from medpfl.cli import conf_dir
from medpfl.experiment import Experiment, build
from medpfl.metrics import ssim
from medpfl.report.console import make_console
from medpfl.report.tables import markdown_table
from medpfl.round import Round
from medpfl.seeding import generator
from medpfl.types import Observation

ATTACKS = ("dlg", "idlg", "cpl")


@dataclass(frozen=True)
class Side:
    """What one way of running an attack took on the same images."""

    images: list[Tensor]
    seconds: float
    evaluations: int

    @property
    def per_image(self) -> float:
        """Seconds an image."""
        return self.seconds / len(self.images)

    @property
    def per_evaluation_ms(self) -> float:
        """Milliseconds an evaluation."""
        return 1e3 * self.seconds / max(1, self.evaluations)


def main() -> None:
    """Print a Markdown table with a row an attack."""
    arguments = _arguments()
    console = make_console()
    console.print(f"{_machine()}; {arguments.images} images of {arguments.dataset}, seed 0")
    rows = [
        row
        for name in arguments.attacks
        for row in _compare(name, arguments.dataset, arguments.images, arguments.steps)
    ]
    console.print(markdown_table(_COLUMNS, rows), soft_wrap=True)


_COLUMNS = (
    "attack",
    "images",
    "plain s/image",
    "batched s/image",
    "plain ms/evaluation",
    "batched ms/evaluation",
    "throughput",
    "solved, plain",
    "solved, batched",
    "same success",
)


def _compare(name: str, dataset: str, images: int, steps: int) -> Iterator[tuple[str, ...]]:
    overrides = [f"attack={name}", f"dataset={dataset}", f"n_images={images}", "device=cpu"]
    overrides += [f"attack.optimizer.max_steps={steps}", "attack.trace_points=0"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", overrides=overrides)
    experiment = build(config)
    start, labels = instantiate(config.attack.start), instantiate(config.attack.labels)
    victims = Round(experiment)
    seen = [o for o in victims.observations() if _has_gradient(o)]
    truths = [victims.pending[o.victim_id][0].inputs[0] for o in seen]
    batched = _batched(experiment, seen)
    plain = _plain(seen, start, labels, steps)
    flags = [
        [ssim(t, i) >= 0.9 for t, i in zip(truths, s.images, strict=True)] for s in (plain, batched)
    ]
    agree = sum(a == b for a, b in zip(*flags, strict=True))
    yield (
        name,
        str(len(seen)),
        f"{plain.per_image:.2f}",
        f"{batched.per_image:.2f}",
        f"{plain.per_evaluation_ms:.2f}",
        f"{batched.per_evaluation_ms:.2f}",
        f"{plain.per_evaluation_ms / batched.per_evaluation_ms:.1f}x",
        f"{sum(flags[0])} of {len(seen)}",
        f"{sum(flags[1])} of {len(seen)}",
        f"{agree} of {len(seen)}",
    )


def _batched(experiment: Experiment, seen: list[Observation]) -> Side:
    context = AttackContext(seed=experiment.seed, device=experiment.device)
    began = time.perf_counter()
    found = {r.victim_id: r for r in experiment.attack.reconstruct(seen, context)}
    seconds = time.perf_counter() - began
    ordered = [found[o.victim_id] for o in seen]
    return Side([r.inputs[0] for r in ordered], seconds, sum(r.evaluations for r in ordered))


def _plain(seen: list[Observation], start: object, labels: object, steps: int) -> Side:
    results = []
    for observation in seen:
        stream = generator(0, "start", observation.victim_id, 0)
        shape = (1, *observation.spec.shape)
        dummy = start(observation, shape, stream)  # type: ignore[operator]
        scores = torch.randn(1, observation.spec.num_classes, generator=stream)
        known = labels.labels(observation)  # type: ignore[attr-defined]
        results.append(plain_attack(observation, dummy, known, scores, steps=steps))
    return Side(
        [r.inputs[0] for r in results],
        sum(r.seconds for r in results),
        sum(r.evaluations for r in results),
    )


def _has_gradient(observation: Observation) -> bool:
    squares = [t.square().sum() for t in observation.tensors.values()]
    return float(torch.stack(squares).sum()) > 0


def _machine() -> str:
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m medpfl.bench", description=__doc__)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--dataset", default="phantom", help="an option of conf/dataset")
    parser.add_argument("--images", type=int, default=24, help="images to attack")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps at most")
    return parser.parse_args()


if __name__ == "__main__":
    main()
