"""Noise on an update that was cut before: every entry may be noise alone, and none shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medpfl.attacks.likelihood import NoiseLikelihood
from medpfl.types import DefenseFacts


@dataclass(frozen=True, kw_only=True)
class SparseNoise:
    """-log of a mixture an entry, in nats: sent with a probability of w, and hidden otherwise.

    sum of -log(w p(observed - dummy) + (1 - w) p(observed)), with the density p of the noise. What
    was drawn at random was sent with the same w everywhere. The largest were sent where they are
    above the dummy's own threshold, the smallest magnitude that would have been: w is a logistic of
    what a magnitude is above it, in units of the noise, as an optimiser needs a slope to follow.

    Args:
        noise: on every entry.
        share: of the entries that were sent.
        largest: whether these are the largest, and not drawn.
        each: whether the largest of every tensor, and not of the whole update.
    """

    noise: NoiseLikelihood
    share: float
    largest: bool
    each: bool = False

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the nats of all entries."""
        unit = self.noise.unit(observed)
        flat = [tensor.flatten() for tensor in dummy]
        groups = flat if self.each else [torch.cat(flat)]
        odds = torch.cat([self._odds(group, unit) for group in groups if len(group)])
        entries, sent = torch.cat(flat), torch.cat([t.flatten() for t in observed])
        kept = functional.logsigmoid(odds) - self.noise.costs((entries - sent) / unit)
        hidden = functional.logsigmoid(-odds) - self.noise.costs(sent / unit)
        return -torch.logaddexp(kept, hidden).sum()

    def _odds(self, entries: Tensor, unit: Tensor) -> Tensor:
        """Return log(w / (1 - w)) of each entry, `(n,)`."""
        if not self.largest:
            return torch.full_like(entries, math.log(self.share / (1 - self.share)))
        sizes = entries.abs()
        count = min(len(sizes), max(1, round(self.share * len(sizes))))
        return (sizes - sizes.detach().sort(descending=True).values[count - 1]) / unit


def sparse_noise(before: Sequence[DefenseFacts], noise: NoiseLikelihood) -> SparseNoise | None:
    """Return the law of what one part has cut before noise was added; None for anything else."""
    if len(before) != 1:
        return None
    (facts,) = before
    fraction = float(getattr(facts, "fraction", 1.0))
    each = facts.name == "pruning" or getattr(facts, "per", "update") == "layer"
    if facts.name in ("topk", "pruning"):
        share = fraction if facts.name == "topk" else 1 - fraction
        return SparseNoise(noise=noise, share=share, largest=True, each=each)
    if facts.name == "randomk":
        return SparseNoise(noise=noise, share=fraction, largest=False)
    if facts.name == "masking" and getattr(facts, "fill", "zero") == "zero":
        return SparseNoise(noise=noise, share=1 - fraction, largest=False)
    return None
