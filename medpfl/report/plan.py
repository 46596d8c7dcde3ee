"""What is about to run, in words, read off the experiment's parts."""

from __future__ import annotations

from pathlib import Path

import torch

from medpfl.experiment import Experiment
from medpfl.report.console import RunPlan


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
        model=type(experiment.factory).__name__,
        parameters=sum(p.numel() for p in payload.parameters.values()),
        defense=experiment.defense.name,
        noise=experiment.defense.describe(),
        threat=experiment.threat.describe(),
        device=describe_device(experiment.device),
        images=images,
        batch_size=experiment.federation.batch_size,
        image_shape=data.spec.shape,
        notes=tuple(notes),
        output=output,
        duration=duration,
    )


def describe_device(device: torch.device) -> str:
    """Return a device in words."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"
