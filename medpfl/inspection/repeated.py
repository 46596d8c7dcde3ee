"""Rows that all measure the same, from different thresholds on: what an imprint is made of.

Row k of an imprint is on for images whose h(x) = <w, x> is above its threshold: one query w, or
multiples of it, and biases that spread the thresholds over what images give (Fowl et al. 2022).
Rows of honest layers come to be aligned, too: training on images that are all bright adds their
mean to every row. Their thresholds then agree, as biases move with the weights. So near-copies are
an alarm by themselves, and rows that are only alike are one where their thresholds spread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.inspection.reach import reach_of
from medpfl.inspection.received import Layer, Received
from medpfl.inspection.verdict import Finding

NAME = "repeated_rows"

# Fewer rows than this single out few images; fewer inputs are no image, nor features of one.
LEAST_ROWS, LEAST_INPUTS = 8, 16
COPIES = 0.9999
# From a cosine on, the spread of thresholds that no honest layer was measured to reach (see
# `python -m medpfl.bench inspection`).
SPREAD_INPUTS = 32
SPREADS = {0.98: 1.5, 0.9: 2.5, 0.7: 6.0, 0.5: 16.0, 0.3: 40.0}
LADDER_ROWS, REGULAR, ORDERED = 16, 0.75, 0.95

SKETCH = 4096
_MOST_ROWS, _FEW_ROWS, _CLUSTERS = 2048, 64, 8
_BLOCK = 2**24
_DEAD, _SMALL = 0.01, 0.1
_MANY_INPUTS, _ENTRIES = 256, 4


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Rows that are alike.

    Args:
        cosine: with one of them all others have at least this absolute cosine.
        inputs: D of each.
        rows: how many there are.
        share: of the others' squared norm, how much lies along that one, on average.
        thresholds: how many different ones; NaN without biases, like all below.
        spread: of the thresholds, a standard deviation by quartiles, in units of one over the root
            of the inputs: honest biases begin at 1.
        regularity: mean ratio of neighbouring gaps between thresholds, the smaller over the larger:
            0.39 where they lie at random, 1 on a ladder (Oganesyan and Huse 2007).
        order: absolute rank correlation of thresholds with the rows' places.
    """

    cosine: float
    inputs: int
    rows: int
    share: float
    thresholds: float
    spread: float
    regularity: float
    order: float


def check(received: Received) -> Iterator[Finding]:
    """Yield a finding for every layer, or layers of few rows together, with such rows."""
    for layers in _together(received.layers):
        found = [
            finding
            for c in clusters(layers, received)
            if (finding := _judged(c, layers)) is not None
        ]
        if found:
            yield max(found, key=lambda finding: finding.measured["rows"])


def clusters(layers: Sequence[Layer], received: Received) -> Iterator[Cluster]:
    """Yield the rows that are alike, for one level of likeness after another.

    Args:
        layers: of as many inputs each.
        received: the model that they are of.
    """
    rows, norms, alive = _normalised(layers)
    if len(rows) < LEAST_ROWS:
        return
    cosines = rows @ rows.T
    if int((cosines.abs() >= min(SPREADS)).sum(1).max()) < LEAST_ROWS:
        return  # so it is for most layers, on every level
    biases = _thresholds(layers, received, norms, alive)
    for level in (COPIES, *SPREADS):
        for centre, members in _alike(cosines, level):
            along = cosines[centre, members]
            own = None if biases is None else biases[members] * along.sign()
            yield _cluster(level, layers[0].inputs, along, own)


def sketched(weight: Tensor, size: int = SKETCH) -> Tensor:
    """Return rows of fewer entries, whose inner products are those of the rows in the mean.

    Entries are added up in buckets under random signs (Charikar et al. 2002), so that rows that
    live on few inputs are kept as well; the same for all rows of as many inputs. A cosine is off by
    about one over the root of the size; rows that are multiples of each other stay so.

    Args:
        weight: `(K, D)`.
        size: S, of the rows returned.

    Returns:
        `(K, S)` float32; the rows themselves where they are not longer.
    """
    rows, inputs = weight.shape
    if inputs <= size:
        return weight.float()
    stream = torch.Generator().manual_seed(0)
    bucket = torch.randint(size, (inputs,), generator=stream).to(weight.device)
    sign = torch.randint(2, (inputs,), generator=stream).to(weight.device) * 2.0 - 1
    kept = torch.zeros(rows, size, device=weight.device)
    step = max(1, _BLOCK // inputs)
    for first in range(0, rows, step):
        part = weight[first : first + step].float() * sign
        kept[first : first + step].index_add_(1, bucket, part)
    return kept


def _together(layers: Sequence[Layer]) -> Iterator[tuple[Layer, ...]]:
    """Yield layers of many rows one by one, and those of few rows by their number of inputs."""
    few: dict[int, list[Layer]] = {}
    for layer in layers:
        if layer.inputs < LEAST_INPUTS:
            continue
        if layer.rows < _FEW_ROWS:
            few.setdefault(layer.inputs, []).append(layer)
        else:
            yield (layer,)
    yield from map(tuple, few.values())


def _normalised(layers: Sequence[Layer]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows of unit length, `(K, S)`, their lengths, and which of all rows they are.

    Rows that are zero, or nothing beside the others, are left out: pruning and weight decay leave
    such rows, and they are on for no image or for all.
    """
    rows = torch.cat([sketched(layer.weight[_kept(layer.rows)]) for layer in layers])
    norms = rows.norm(dim=1)
    alive = norms > _DEAD * norms.median()
    if layers[0].inputs < _MANY_INPUTS:  # of which pruning leaves single ones, in many rows
        alive &= (rows != 0).sum(1) >= _ENTRIES
    return rows[alive] / norms[alive, None], norms[alive], alive


def _thresholds(
    layers: Sequence[Layer], received: Received, norms: Tensor, alive: Tensor
) -> Tensor | None:
    """Return the biases of normalised rows, in the unit of `Cluster.spread`, where all have one."""
    biases = []
    for layer in layers:
        if layer.bias is None:
            return None
        biases.append(layer.bias[_kept(layer.rows)].float() * reach_of(received, layer))
    # Rows that weight decay has made small keep biases that are large beside them.
    unit = norms.clamp_min(_SMALL * float(norms.quantile(0.9)))
    return torch.cat(biases)[alive] / unit * math.sqrt(layers[0].inputs)


def _kept(rows: int) -> Tensor:
    return torch.linspace(0, rows - 1, min(rows, _MOST_ROWS)).long()


def _alike(cosines: Tensor, level: float) -> Iterator[tuple[int, Tensor]]:
    """Yield the row with the most others at a cosine, and these; then go on without them."""
    near = cosines.abs() >= level
    for _ in range(_CLUSTERS):
        counts = near.sum(1)
        centre = int(counts.argmax())
        if int(counts[centre]) < LEAST_ROWS:
            return
        members = near[centre].nonzero()[:, 0]
        yield centre, members
        near[members] = False
        near[:, members] = False


def _cluster(level: float, inputs: int, along: Tensor, thresholds: Tensor | None) -> Cluster:
    share = float(along.square().mean())
    nothing = math.nan
    if thresholds is None:
        return Cluster(
            cosine=level,
            inputs=inputs,
            rows=len(along),
            share=share,
            thresholds=nothing,
            spread=nothing,
            regularity=nothing,
            order=nothing,
        )
    quartiles = thresholds.quantile(torch.tensor([0.25, 0.75], device=thresholds.device))
    return Cluster(
        cosine=level,
        inputs=inputs,
        rows=len(along),
        share=share,
        thresholds=len(torch.unique(thresholds)),
        spread=float(quartiles.diff()) / 1.349,
        regularity=regularity(thresholds),
        order=_order(thresholds),
    )


def regularity(thresholds: Tensor) -> float:
    """Return the mean ratio of neighbouring gaps, see `Cluster.regularity`; NaN of fewer than 2."""
    gaps = torch.unique(thresholds.double()).diff()
    if len(gaps) < 2:
        return math.nan
    return float((torch.minimum(gaps[1:], gaps[:-1]) / torch.maximum(gaps[1:], gaps[:-1])).mean())


def _order(thresholds: Tensor) -> float:
    if len(torch.unique(thresholds)) < 2:
        return math.nan
    ranks = thresholds.argsort().argsort().double()
    places = torch.arange(len(ranks), dtype=torch.float64, device=ranks.device)
    return float(torch.corrcoef(torch.stack([ranks, places]))[0, 1].abs())


def _judged(cluster: Cluster, layers: Sequence[Layer]) -> Finding | None:
    measured = {
        "cosine": cluster.cosine,
        "rows": cluster.rows,
        "along": cluster.share,
        "thresholds": cluster.thresholds,
        "spread": cluster.spread,
        "regularity": cluster.regularity,
        "order": cluster.order,
    }
    threshold = _passed(cluster)
    if threshold is None:
        return None
    return Finding(
        check=NAME,
        weight="alarm",
        where=", ".join(layer.name for layer in layers[:3]) + (", ..." if len(layers) > 3 else ""),
        measured={name: value for name, value in measured.items() if not math.isnan(value)},
        threshold={"rows": LEAST_ROWS, **threshold},
        why=(
            "rows that measure the same from different thresholds on: the gradients of two of them "
            "differ by the images between their thresholds, often by one"
        ),
    )


def _passed(cluster: Cluster) -> dict[str, float] | None:
    """Return the thresholds that make rows that are alike an alarm, or None where they are none."""
    different = math.isnan(cluster.thresholds) or cluster.thresholds >= LEAST_ROWS
    if cluster.cosine >= COPIES:
        return {"cosine": COPIES} if different else None
    if not different or math.isnan(cluster.spread):
        return None
    if cluster.inputs >= SPREAD_INPUTS and cluster.spread >= SPREADS[cluster.cosine]:
        return {"cosine": cluster.cosine, "spread": SPREADS[cluster.cosine]}
    if cluster.rows >= LADDER_ROWS and cluster.regularity >= REGULAR:
        return {"cosine": cluster.cosine, "regularity": REGULAR}
    if cluster.rows >= LADDER_ROWS and cluster.order >= ORDERED:
        return {"cosine": cluster.cosine, "order": ORDERED}
    return None
