"""Whether a first batch's update tells of a planted layer: how much of it lies in one tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from medpfl.bench.honest_models import Images, kinds, states
from medpfl.bench.machine import show_note, show_table
from medpfl.bench.malicious_models import cases, sent
from medpfl.federated.client import Client
from medpfl.report.tables import format_percent
from medpfl.types import ServerPayload, Truth

_COLUMNS = (
    *("models", "n", "share of the largest tensor, min", "median", "max"),
    *("rank one of that tensor, median", "share of the planted tensors, median"),
)
_NOTE = (
    "Of the squared norm of the gradient of 16 images. Rank one: of the largest tensor's squared "
    "norm, its leading direction's share. Honest updates concentrate as much as those of planted "
    "models, and mostly not in what was planted: `defense=inspect` does not judge by it."
)
_IMAGES = 16


def show(images: Images, command: Sequence[str]) -> None:
    """Print the table.

    Args:
        images: for networks and batches, of 32 pixels a side.
        command: as of `show_table`.
    """
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for name, payload, own in _models(images):
        found[name].append(_concentration(_update(payload, own)))
    rows = []
    for name, values in found.items():
        largest, leading, planted = zip(*values, strict=True)
        ends = (min(largest), median(largest), max(largest), median(leading), median(planted))
        rows.append((name, str(len(values)), *map(format_percent, ends)))
    show_table("Where the update of a first batch lies", _COLUMNS, rows, command=command)
    show_note(_NOTE)


def _models(images: Images) -> Iterator[tuple[str, ServerPayload, Images]]:
    for kind in kinds(1, large=False):
        if kind.volumes or kind.size > images.spec.shape[1]:
            continue
        own = images.resized(kind.size)
        for state, model in states(kind, own):
            if state in ("untrained", "trained"):
                yield f"honest, {state}", sent(model), own
    for case in cases(images):
        if not case.family.startswith("planted among"):
            yield case.family, case.payload, images


def _update(payload: ServerPayload, images: Images) -> Mapping[str, Tensor]:
    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(5))
    batch = images.some(order[:_IMAGES])
    client = Client(spec=images.spec, device=torch.device("cpu"))
    truth = Truth(inputs=batch.inputs, labels=batch.labels, ids=tuple(map(str, range(_IMAGES))))
    return client.update(truth, payload)[0].tensors


def _concentration(update: Mapping[str, Tensor]) -> tuple[float, float, float]:
    """Return the largest tensor's share, that tensor's rank-one share, and the planted ones'."""
    squares = {name: float(t.double().square().sum()) for name, t in update.items()}
    total = max(sum(squares.values()), 1e-300)
    name = max(squares, key=lambda key: squares[key])
    tensor = update[name].reshape(update[name].shape[0], -1).double()
    if tensor.shape[0] > tensor.shape[1]:
        tensor = tensor.T
    values = torch.linalg.eigvalsh(tensor @ tensor.T)
    planted = sum(value for key, value in squares.items() if "rows." in key)
    return (
        squares[name] / total,
        float(values[-1] / values.sum().clamp_min(1e-300)),
        planted / total,
    )
