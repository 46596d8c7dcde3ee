"""An attack that knows the law of the noise: most likely images, not closest updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, cast, runtime_checkable

from medpfl.attacks.adaptation.posterior import most_likely
from medpfl.attacks.adaptation.sparse_noise import sparse_noise
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.distances import LeastSquares
from medpfl.attacks.likelihood import Law, NoiseLikelihood, Relative, ThroughClip
from medpfl.attacks.problem import Problem
from medpfl.types import DefenseFacts


@runtime_checkable
class NoiseFacts(Protocol):
    """What is known of noise: see `medpfl.defenses.perturbation.PerturbationFacts`."""

    law: str
    scale: float
    relative_to: str | None
    percentile: float


@runtime_checkable
class ClippingFacts(Protocol):
    """What is known of clipping: see `medpfl.defenses.clipping.ClippingFacts`."""

    max_norm: float
    per: Literal["update", "layer"]


def through_noise(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Return an attack whose objective is minus the log-posterior of the images, in nats.

    The distance becomes the likelihood of the noise, through whatever clipping came before it. What
    images are like joins it, with the weight that the likelihood fixes, 1: a Gaussian learnt from
    public images, or, without any, one that all pictures nearly follow. The search ends at the most
    likely images, so that no early stop is needed to keep noise from being matched.

    Entries that were not sent are noise alone, and which these are does not show: see
    `SparseNoise`. Of a law of somebody's own nothing more is known, and what noise makes of an
    update that was rounded before, or clipped and cut, is no such law: these are matched as before.
    """
    if not isinstance(facts, NoiseFacts) or facts.law not in ("gaussian", "laplace"):
        return parts, search
    before = problem.defense[: problem.defense.index(facts)]
    clips = [part for part in before if isinstance(part, ClippingFacts)]
    likelihood = _likelihood(facts, problem)
    if len(clips) == len(before):
        return most_likely(_clipped(likelihood, clips, problem), parts, search, problem)
    cut = sparse_noise(before, likelihood)
    return (parts, search) if cut is None else most_likely(cut, parts, search, problem)


def _likelihood(facts: NoiseFacts, problem: Problem) -> NoiseLikelihood:
    relative = cast(Relative | None, facts.relative_to)
    return NoiseLikelihood(
        law=cast(Law, facts.law),
        scale=facts.scale if relative else facts.scale / problem.unit,
        relative_to=relative,
        percentile=facts.percentile,
    )


def _clipped(
    likelihood: NoiseLikelihood, clips: Sequence[ClippingFacts], problem: Problem
) -> LeastSquares:
    """Return the likelihood of an update that was clipped before noise was added."""
    distance: LeastSquares = likelihood
    for facts in reversed(clips):
        distance = ThroughClip(
            inner=distance, max_norm=facts.max_norm / problem.unit, per=facts.per
        )
    return distance
