"""What is about to run, in words, read off the experiment's parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from medpfl.experiment import Experiment
from medpfl.federated import Simulation
from medpfl.report.console import RunPlan
from medpfl.source import Planned


def make_plan(experiment: Experiment, output: Path, *, duration: str | None = None) -> RunPlan:
    """Describe a run.

    Args:
        experiment: its parts.
        output: the run's folder.
        duration: how long it may take, where that is long.
    """
    data = experiment.data
    payload, plan = experiment.source.example(), experiment.source.plan
    images = sum(len(planned.image_ids) for planned in plan)
    left = len(data.selected) - images
    notes = list(data.notes)
    if left:
        notes.append(f"{left} selected images are left: too few for one more batch")
    return RunPlan(
        attack=experiment.attack.name,
        dataset=data.name,
        source=data.source,
        synthetic=data.synthetic,
        model=getattr(experiment.factory, "label", type(experiment.factory).__name__),
        parameters=sum(p.numel() for p in payload.parameters.values()),
        defense=experiment.defense.name,
        noise=experiment.defense.describe(),
        threat=experiment.threat.describe(),
        device=describe_device(experiment.device),
        images=images,
        batch_size=_behind_each(plan),
        federation=_federation(experiment),
        image_shape=data.spec.shape,
        notes=tuple(notes),
        output=output,
        duration=duration,
    )


def _behind_each(plan: Sequence[Planned]) -> str:
    sizes = sorted({len(planned.image_ids) for planned in plan})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def _federation(experiment: Experiment) -> tuple[str, ...]:
    """Return who trains with whom, in lines; nothing where every client sends one gradient."""
    federation, captured = experiment.federation, experiment.source.plan
    lines = []
    if federation.is_shared and isinstance(experiment.source, Simulation):
        shards = experiment.source.shards
        sizes = sorted(map(len, shards))
        splits = {"folder": "by folder", "dirichlet": f"dirichlet (alpha {federation.alpha:g})"}
        split = splits.get(federation.partition, federation.partition)
        lines.append(
            f"{len(shards)} clients of {sizes[0]} to {sizes[-1]} images, {split}; "
            f"{federation.rounds} rounds"
        )
        rounds = ", ".join(str(r) for r in sorted({p.round for p in captured}))
        lines.append(f"captured: {len(captured)} updates, after rounds {rounds}")
    if federation.local.kind == "delta":
        lines.append(federation.local.describe())
    return tuple(lines)


def describe_device(device: torch.device) -> str:
    """Return a device in words."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"
