"""The plain way: one image after another through ``torch.optim.LBFGS``, as the papers do it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medpfl.types import Observation


@dataclass(frozen=True)
class PlainResult:
    """One image's outcome: `(1, C, *S)` pixels, seconds and evaluations."""

    inputs: Tensor
    seconds: float
    evaluations: int


def plain_closure(
    observation: Observation, dummy: Tensor, labels: Tensor | None, scores: Tensor
) -> Callable[[], Tensor]:
    """Return the closure that sums the squared gradient differences and differentiates them.

    Args:
        observation: what the attacker sees.
        dummy: `(1, C, *S)`, requires grad.
        labels: `(1,)`, or None where `scores` are optimised jointly.
        scores: `(1, K)`, requires grad; unused where labels are given.
    """
    model = observation.payload.model.eval()
    parameters = [p.requires_grad_() for p in model.parameters()]
    observed = [observation.tensors[name] for name, _ in model.named_parameters()]
    unknowns = [dummy] if labels is not None else [dummy, scores]

    def closure() -> Tensor:
        logits = model(dummy)
        if labels is None:
            loss = -(scores.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        else:
            loss = functional.cross_entropy(logits, labels)
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        pairs = zip(gradient, observed, strict=True)
        distance = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
        for unknown, g in zip(unknowns, torch.autograd.grad(distance, unknowns), strict=True):
            unknown.grad = g
        return distance.detach()

    return closure


def plain_attack(
    observation: Observation,
    start: Tensor,
    labels: Tensor | None,
    scores: Tensor,
    *,
    steps: int,
) -> PlainResult:
    """Attack one image with torch's own L-BFGS, defaults and all, from a given start.

    The loop ends early where a step leaves the image in place or it is no longer finite: the
    published loops idle on, which would only flatter the engine.
    """
    dummy, scores = start.clone().requires_grad_(), scores.clone().requires_grad_()
    closure = plain_closure(observation, dummy, labels, scores)
    optimizer = torch.optim.LBFGS([dummy] if labels is not None else [dummy, scores])
    evaluations = 0

    def counted() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return closure()

    began = time.perf_counter()
    for _ in range(steps):
        before = dummy.detach().clone()
        optimizer.step(counted)  # type: ignore[no-untyped-call]
        after = dummy.detach()
        if torch.equal(before, after) or not bool(after.isfinite().all()):
            break
    seconds = time.perf_counter() - began
    pixels = observation.spec.denormalise(dummy.detach()).nan_to_num().clamp(0, 1)
    return PlainResult(pixels, seconds, evaluations)
