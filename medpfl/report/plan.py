"""What is about to run, in words, read off the experiment's parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from medpfl.experiment import Experiment
from medpfl.report.console import RunPlan
from medpfl.source import Planned
from medpfl.types import Privacy


def make_plan(
    experiment: Experiment,
    output: Path,
    *,
    duration: str | None = None,
    bounds: str | None = None,
) -> RunPlan:
    """Describe a run.

    Args:
        experiment: its parts.
        output: the run's folder.
        duration: how long it may take, where that is long.
        bounds: what is set beside the attack, or why not.
    """
    data = experiment.data
    payload, plan = experiment.source.example(), experiment.source.plan
    images = sum(planned.images for planned in plan)
    left = len(data.selected) - images
    notes, described = list(data.notes), experiment.source.describe()
    if left and not described.federation:
        notes.append(f"{left} selected images are left: too few for one more batch")
    if described.stopped is not None:
        notes.append(described.stopped)
    return RunPlan(
        attack=experiment.attack.name,
        dataset=data.name,
        source=data.source,
        synthetic=data.synthetic,
        model=described.model,
        parameters=sum(p.numel() for p in payload.parameters.values()),
        defense=described.defense,
        noise=described.noise,
        privacy=None if described.privacy is None else in_words(described.privacy),
        threat=experiment.threat.describe(_in_a_sum(plan)),
        device=describe_device(experiment.device),
        images=images,
        batch_size=_behind_each(plan),
        federation=described.federation,
        image_shape=data.spec.shape,
        notes=tuple(notes),
        output=output,
        duration=duration,
        bounds=bounds,
    )


def _behind_each(plan: Sequence[Planned]) -> str:
    sizes = sorted({planned.images for planned in plan})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def _in_a_sum(plan: Sequence[Planned]) -> str | None:
    """Return over how many clients sums are, in words; None where single updates are seen."""
    counts = sorted({len(planned.members) for planned in plan if planned.members})
    return None if not counts else f"{counts[0]}" + (f" to {counts[-1]}" if counts[1:] else "")


def in_words(privacy: Privacy) -> str:
    """Return a guarantee in lines: what holds, and why."""
    known = [privacy.reason] if privacy.delta is not None else []
    return "\n".join((*privacy.describe(), *known))


def describe_device(device: torch.device) -> str:
    """Return a device in words."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"
