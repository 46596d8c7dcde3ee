"""Two runs on the images that both attacked: how often which was right, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from medpfl.compare.runs import Run
from medpfl.errors import DataError
from medpfl.metrics.bootstrap import bootstrap_mean
from medpfl.metrics.paired import mcnemar_exact


@dataclass(frozen=True, kw_only=True)
class PairedMeans:
    """A measure of two runs on the images where both have it; NaN where there is none.

    Args:
        n: these images.
        means: of A and of B.
        difference: mean of A minus B.
        interval: 95 % bootstrap interval of `difference`; NaN for fewer than 5 images.
    """

    n: int
    means: tuple[float, float]
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Two runs on the images that both attacked.

    Args:
        n: images in common.
        successes: of A and of B, among these.
        only_a: images that A alone rebuilt.
        only_b: images that B alone rebuilt.
        p_value: exact McNemar test of equal success rates.
        ssim: mean SSIM of A and of B.
        ssim_difference: mean of A minus B.
        ssim_interval: 95 % bootstrap interval of `ssim_difference`; NaN for fewer than 5 images.
        images: the images in common.
        measures: one's own measures that both runs have, by name.
    """

    n: int
    successes: tuple[int, int]
    only_a: int
    only_b: int
    p_value: float
    ssim: tuple[float, float]
    ssim_difference: float
    ssim_interval: tuple[float, float]
    images: tuple[str, ...] = ()
    measures: Mapping[str, PairedMeans] = field(default_factory=dict)


def compare(a: Run, b: Run) -> Comparison:
    """Compare two runs on the images that both attacked.

    Raises:
        DataError: they attacked different datasets, or have no image in common.
    """
    if a.dataset != b.dataset:
        raise DataError(
            f"the runs attack different datasets, {a.dataset} and {b.dataset}: their images cannot "
            "be paired"
        )
    common = a.scores.index.intersection(b.scores.index)
    if len(common) == 0:
        raise DataError(
            f"the runs have no image in common: {len(a.scores)} in {a.folder}, {len(b.scores)} in "
            f"{b.folder}. Attack the same images: same dataset, split, stride and n_images"
        )
    first, second = a.scores.loc[common], b.scores.loc[common]
    hit_a, hit_b = first["success"], second["success"]
    only_a, only_b = int((hit_a & ~hit_b).sum()), int((hit_b & ~hit_a).sum())
    ssim = _paired(first["ssim"], second["ssim"])
    return Comparison(
        n=len(common),
        successes=(int(hit_a.sum()), int(hit_b.sum())),
        only_a=only_a,
        only_b=only_b,
        p_value=mcnemar_exact(only_a, only_b),
        ssim=ssim.means,
        ssim_difference=ssim.difference,
        ssim_interval=ssim.interval,
        images=tuple(common),
        measures={
            name: _paired(first[name], second[name]) for name in a.measures if name in b.measures
        },
    )


def _paired(first: pd.Series[float], second: pd.Series[float]) -> PairedMeans:
    both = first.notna() & second.notna()
    first, second = first[both], second[both]
    difference = [float(d) for d in first - second]
    return PairedMeans(
        n=len(difference),
        means=(float(first.mean()), float(second.mean())),
        difference=sum(difference) / len(difference) if difference else math.nan,
        interval=bootstrap_mean(difference),
    )
