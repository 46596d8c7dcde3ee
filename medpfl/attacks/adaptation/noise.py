"""An attack that knows the law of the noise: most likely images, not closest updates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol, cast, runtime_checkable

from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.distances import LeastSquares
from medpfl.attacks.image_prior import ImageGaussian, natural
from medpfl.attacks.likelihood import Law, NoiseLikelihood, Relative, ThroughClip
from medpfl.attacks.priors import LikelyImages
from medpfl.attacks.problem import Problem
from medpfl.attacks.stages import Stage
from medpfl.attacks.starts import Likely
from medpfl.optim import LBFGS, LevenbergMarquardt
from medpfl.types import DefenseFacts

# In nats a standard deviation of the prior: the posterior is flat to a hundredth of its width.
_FLAT = 0.01


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

    Of a law of somebody's own nothing more is known, and what noise makes of an update that was cut
    or rounded before is no law of noise alone: these are matched as before.
    """
    if not isinstance(facts, NoiseFacts) or facts.law not in ("gaussian", "laplace"):
        return parts, search
    before = problem.defense[: problem.defense.index(facts)]
    clips = [part for part in before if isinstance(part, ClippingFacts)]
    if len(clips) < len(before):
        return parts, search
    likelihood = _likelihood(facts, problem)
    parts, search = most_likely(likelihood, parts, search, problem)
    return replace(parts, distance=_clipped(likelihood, clips, problem)), search


def most_likely(
    likelihood: NoiseLikelihood, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Return an attack that looks for the most likely images; see `through_noise`."""
    public, shape = problem.auxiliary, problem.unknowns.pixel_shape[1:]
    tied = parts.ties(problem.unknowns.spec)
    images = natural(shape) if public is None else ImageGaussian.learnt(public, tied=tied)
    parts = replace(
        parts,
        distance=likelihood,
        start=Likely(images=images),
        likely=images,
        priors=(LikelyImages(images=images, tied=tied),),
        projections=(),
        boxed=False,
    )
    return parts, _ended(search)


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


def _ended(search: Search) -> Search:
    """Return a search whose stages end once the objective is flat, however high it is.

    What is left of the objective is noise: it says nothing of what the update determines, and no
    start ends low, so that a second one would only be made because the first had not.
    """
    stages = tuple(map(_stage, search.stages))
    restarts = search.restarts if search.restart_above is None else 1
    return replace(
        search, stages=stages, determination=False, restart_above=None, restarts=restarts
    )


def _stage(stage: Stage) -> Stage:
    if not isinstance(stage.optimizer, LBFGS | LevenbergMarquardt):
        return stage
    optimizer = copy.copy(stage.optimizer)
    optimizer.objective_below = None
    if isinstance(optimizer, LBFGS):
        optimizer.tolerance_grad = _FLAT
    return replace(stage, optimizer=optimizer)
