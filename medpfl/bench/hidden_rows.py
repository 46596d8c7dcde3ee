"""What hiding an imprint among honest rows costs: images recovered, and how often it is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.attacks import AttackContext
from medpfl.attacks.readout import ImprintReadout
from medpfl.bench.honest_models import Images
from medpfl.bench.machine import show_note, show_table
from medpfl.bench.malicious_models import honest
from medpfl.federated.client import Client
from medpfl.federated.malicious.base import Planting
from medpfl.inspection import wide
from medpfl.inspection.examine import examine
from medpfl.inspection.received import Received
from medpfl.metrics.rates import wilson
from medpfl.models.rows import Rows, fill, planted
from medpfl.planted import PlantedBins
from medpfl.report.tables import format_rate
from medpfl.threat import ThreatModel
from medpfl.types import ServerPayload, Truth

STRENGTHS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_BINS, _BATCHES, _DRAWS = 200, (8, 32), 4
_LEAST_DB = 30.0
_COLUMNS = (
    *("honest part of a row", "cosine of two rows", "images an update", "recovered over 30 dB"),
    *("rows seen, thresholds in a plain layer", "rows seen, thresholds multiplied in the code"),
    "seen with its place ahead of convolutions",
)
_NOTE = (
    "Rows are query + e x honest row, of as long a query and honest rows; 200 cumulative bins at "
    "the input of LeNet, 32 x 32. The server also shuffles its rows and moves each threshold by a "
    "random share of its bin, which hide order and regularity. Multiplied in the code: biases that "
    "the planted layer's own code makes 256 times larger, as medpfl's imprint does. Rates with "
    "95 % Wilson intervals, over images and over drawn models."
)


@dataclass(frozen=True)
class Hidden:
    """One model of which the planted rows are hidden.

    Args:
        planting: the model, and what its server keeps.
        cosine: of two of its rows, on average.
    """

    planting: Planting
    cosine: float


def show(images: Images, command: Sequence[str]) -> None:
    """Print the table: how much is recovered, and how often it is seen, by how much is hidden.

    Args:
        images: every other one is the server's, the others are attacked.
        command: as of `show_table`.
    """
    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(0))
    attacked, images = images.some(order[::2]), images.some(order[1::2])
    rows = []
    for strength in STRENGTHS:
        plain = [hidden(images, strength, seed, reach=1.0) for seed in range(_DRAWS)]
        inside = [hidden(images, strength, seed, reach=256.0) for seed in range(_DRAWS)]
        checks = [_checks(one.planting.payload, images) for one in plain]
        checks_inside = [_checks(one.planting.payload, images) for one in inside]
        seen, seen_inside = (
            [bool(found - {wide.NAME}) for found in each] for each in (checks, checks_inside)
        )
        anyhow = [bool(found) for found in checks + checks_inside]
        for batch in _BATCHES:
            found = [hit for one in plain for hit in _recovered(one.planting, attacked, batch)]
            rates = (found, seen, seen_inside, anyhow)
            rows.append((f"{strength:g}", f"{plain[0].cosine:.2f}", str(batch), *map(_rate, rates)))
    show_table("What hiding an imprint costs", _COLUMNS, rows, command=command)
    show_note(_NOTE)


def hidden(images: Images, strength: float, seed: int, *, reach: float) -> Hidden:
    """Plant an imprint whose rows are hidden.

    Args:
        images: the server's public ones.
        strength: e, of the honest part.
        seed: of all random numbers.
        reach: what the layer multiplies its biases by.
    """
    stream = torch.Generator().manual_seed(seed)
    base, entries = honest("LeNet", images), torch.Size(images.spec.shape).numel()
    query = torch.randn(entries, generator=stream)
    query /= query.norm()
    own = 2 * torch.rand(_BINS, entries, generator=stream) - 1
    own /= own.norm(dim=1, keepdim=True)
    weight = query + strength * own
    responses = (images.spec.normalise(images.inputs).flatten(1) @ query).double()
    edges = _moved(torch.quantile(responses, _levels()), stream)
    rows = Rows(entries, (_BINS,), gain=1.0, reach=reach, sparse=False)
    # A row's own response to the mean image is known to the server, and taken off.
    mean = images.spec.normalise(images.inputs).flatten(1).mean(0)
    bias = -(edges.float() + strength * (own @ mean))
    fill(rows, lambda first, last: (weight[first:last], bias[first:last]))
    payload, weights, biases = planted(base, rows, None)
    secret = PlantedBins(
        weights=weights,
        biases=biases,
        shape=images.spec.shape,
        reach=reach,
        kind="cumulative",
        edges=edges,
    )
    unit = weight / weight.norm(dim=1, keepdim=True)
    cosine = float(((unit @ unit.T).sum() - _BINS) / (_BINS * (_BINS - 1)))
    return Hidden(Planting(payload, secret), cosine)


def _levels() -> Tensor:
    return torch.arange(_BINS, dtype=torch.float64) / _BINS


def _moved(edges: Tensor, stream: torch.Generator) -> Tensor:
    """Move thresholds by up to half a bin to either side, in order."""
    gaps = torch.cat([edges.diff(), edges.diff()[-1:]])
    return (edges + (torch.rand(_BINS, generator=stream) - 0.5) * gaps).sort().values


def _checks(payload: ServerPayload, images: Images) -> set[str]:
    """Return the checks that are alarmed by what the server sends: its rows are shuffled."""
    order = torch.randperm(_BINS, generator=torch.Generator().manual_seed(0))
    shuffled = {
        name: tensor[order] if name.startswith("rows.") else tensor
        for name, tensor in payload.parameters.items()
    }
    verdict = examine(Received(shuffled, payload.buffers, payload.model, images.spec.shape))
    return {finding.check for finding in verdict.alarms}


def _recovered(planting: Planting, images: Images, batch: int) -> list[bool]:
    """Return of each image of some updates whether a read-out shows it."""
    hits: list[bool] = []
    client = Client(spec=images.spec, device=torch.device("cpu"))
    threat = ThreatModel(server="malicious", knows=["num_examples", "local_training"])
    context = AttackContext(seed=0, device=torch.device("cpu"))
    for first in (0, batch):
        some = slice(first, first + batch)
        inputs, labels = images.inputs[some], images.labels[some]
        truth = Truth(inputs=inputs, labels=labels, ids=tuple(map(str, range(batch))))
        update, _ = client.update(truth, planting.payload)
        seen = threat.observe(
            capture_id="hidden",
            payload=planting.payload,
            update=update,
            spec=images.spec,
            planted=planting.secret,
        )
        (found,) = ImprintReadout().reconstruct([seen], context)
        hits += _shown(inputs, found.inputs)
    return hits


def _shown(inputs: Tensor, found: Tensor) -> list[bool]:
    if not len(found):
        return [False] * len(inputs)
    error = torch.cdist(inputs.flatten(1), found.flatten(1)).square() / inputs[0].numel()
    return (error.min(1).values < 10 ** (-_LEAST_DB / 10)).tolist()


def _rate(hits: Sequence[bool]) -> str:
    low, high = wilson(sum(hits), len(hits))
    return format_rate(sum(hits) / len(hits), len(hits), low=low, high=high)
