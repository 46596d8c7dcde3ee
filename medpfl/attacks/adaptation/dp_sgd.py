"""An attack that knows of DP-SGD: each dummy image's gradient is clipped as the client clips it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.func import vmap

from medpfl.attacks.adaptation.clipped_labels import CountedThroughClip
from medpfl.attacks.adaptation.posterior import most_likely
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.image_prior import natural
from medpfl.attacks.labels import Counted
from medpfl.attacks.likelihood import Law, NoiseLikelihood
from medpfl.attacks.problem import Problem
from medpfl.training import Forward, Parameters, mean_gradient
from medpfl.types import DefenseFacts


@runtime_checkable
class DpSgdFacts(Protocol):
    """What is known of DP-SGD: a step follows the sum of clipped gradients plus noise, over n.

    Fields:
        max_grad_norm: C, by which each image's gradient is clipped.
        norm: which norm that is.
        law: of the noise.
        noise_scale: of the noise on the sum: standard deviation, or Laplace b.
    """

    max_grad_norm: float
    norm: Literal["l2", "l1"]
    law: Law
    noise_scale: float


@dataclass(frozen=True, kw_only=True)
class ClippedGradient:
    """The sum over images of their gradients, each clipped by itself, over E; see `Gradient`.

    Args:
        max_norm: C: an image's gradient g becomes g min(1, C / |g|), all tensors together.
        norm: ``l2`` or ``l1``: which norm |g| is.
        expected: E: what the client divides by, however many images a step takes.
    """

    max_norm: float
    norm: Literal["l2", "l1"]
    expected: float

    def __call__(
        self, forward: Forward, parameters: Parameters, inputs_norm: Tensor, probabilities: Tensor
    ) -> dict[str, Tensor]:
        """Return `{name: P_i}` for images `(n, C, *S)` and their label probabilities `(n, K)`."""

        def clipped(image: Tensor, probability: Tensor) -> dict[str, Tensor]:
            own = mean_gradient(forward, parameters, image.unsqueeze(0), probability.unsqueeze(0))
            flat = torch.cat([t.flatten() for t in own.values()])
            length = flat.abs().sum() if self.norm == "l1" else _length(flat)
            factor = (self.max_norm / length.clamp_min(torch.finfo(flat.dtype).tiny)).clamp(max=1)
            return {name: t * factor for name, t in own.items()}

        if not len(inputs_norm):
            return {name: torch.zeros_like(p) for name, p in parameters.items()}
        each: dict[str, Tensor] = vmap(clipped)(inputs_norm, probabilities)
        return {name: t.sum(0) / self.expected for name, t in each.items()}


def through_dp_sgd(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Match the clipped gradients through the likelihood of their noise; see `through_noise`.

    The noise of several local steps is the mean of theirs: Gaussian, or as good as that. Without
    noise, only the clipping is matched. What other parts do before it, image by image, is not.
    """
    if not isinstance(facts, DpSgdFacts) or problem.defense[0] != facts:
        return parts, search
    expected, update = problem.expected, problem.update
    gradient = ClippedGradient(max_norm=facts.max_grad_norm, norm=facts.norm, expected=expected)
    parts = replace(parts, gradient=gradient)
    if facts.noise_scale > 0:
        scale, law = facts.noise_scale / expected, facts.law
        if update.steps > 1:
            scale = scale * (2 if law == "laplace" else 1) ** 0.5 / update.steps**0.5
            law = "gaussian"
        parts, search = most_likely(NoiseLikelihood(law=law, scale=scale), parts, search, problem)
    return _counting(parts, facts, problem), search


def _counting(parts: Parts, facts: DpSgdFacts, problem: Problem) -> Parts:
    """Return the same where labels are counted: through the clipping, which shrinks the counts."""
    if not isinstance(parts.labels, Counted):
        return parts
    images, update = problem.unknowns.images // problem.copies, problem.update
    taken = images if update.batches is None else sum(map(len, update.batches))
    labels = CountedThroughClip(
        gradient=ClippedGradient(max_norm=facts.max_grad_norm, norm=facts.norm, expected=1),
        share=taken / (images * update.steps * problem.expected),
        images=parts.likely or natural(problem.unknowns.pixel_shape[1:]),
    )
    return replace(parts, labels=labels)


def _length(flat: Tensor) -> Tensor:
    # The root of zero has no slope.
    return flat.square().sum().clamp_min(torch.finfo(flat.dtype).tiny).sqrt()
