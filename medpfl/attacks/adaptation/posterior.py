"""The most likely images: minus the log-posterior, in nats, in unknowns that it makes alike."""

from __future__ import annotations

from dataclasses import replace

from medpfl.attacks.adaptation.ending import without_threshold
from medpfl.attacks.adaptation.through import with_distance
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.distances import Distance
from medpfl.attacks.image_prior import ImageGaussian, natural
from medpfl.attacks.priors import LikelyImages
from medpfl.attacks.problem import Problem
from medpfl.attacks.starts import Likely


def most_likely(
    likelihood: Distance, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Return an attack whose objective is minus the log-posterior of the images, in nats.

    What images are like joins the likelihood with the weight that this fixes, 1: a Gaussian learnt
    from public images, or, without any, one that all pictures nearly follow. The search ends at
    the most likely images.

    Args:
        likelihood: minus the log of it, in nats.
        parts: of the attack so far.
        search: of the same.
        problem: may hold public images.
    """
    public, shape = problem.auxiliary, problem.unknowns.pixel_shape[1:]
    tied = parts.ties(problem.unknowns.spec)
    images = natural(shape) if public is None else ImageGaussian.learnt(public, tied=tied)
    parts = replace(
        with_distance(parts, likelihood),
        start=Likely(images=images),
        likely=images,
        priors=(LikelyImages(images=images, tied=tied),),
        projections=(),
        boxed=False,
    )
    return parts, without_threshold(search)
