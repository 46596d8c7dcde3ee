"""What of an update is released: what is done to it before noise is added, and the noise's law.

A bound of the noisy update holds for everything that is made of it afterwards, as that adds nothing
of the image. What comes before the noise is part of the map from pixels to updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.defenses.clipping import ClippingFacts
from medpfl.defenses.perturbation import PerturbationFacts
from medpfl.types import DefenseFacts

_LAWS = {"gaussian": "Gaussian noise, std {:g}", "laplace": "Laplace noise, b = {:g}"}


@dataclass(frozen=True, kw_only=True)
class NoBound:
    """No bound applies.

    Args:
        reason: why, in words that go on after a colon, without a full stop.
    """

    reason: str


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The map of `medpfl.defenses.Clipping`, differentiable: u min(1, C / ||u||).

    Args:
        max_norm: C.
        per: ``update`` or ``layer``.
    """

    max_norm: float
    per: str

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the clipped update."""
        if self.per == "layer":
            return {n: t * self._factor([t]) for n, t in tensors.items()}
        factor = self._factor(list(tensors.values()))
        return {n: t * factor for n, t in tensors.items()}

    def _factor(self, tensors: Sequence[Tensor]) -> Tensor:
        square = torch.stack([t.square().sum() for t in tensors]).sum()
        # The root of zero has no derivative, and an update of zero is not clipped.
        norm = square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()
        return (self.max_norm / norm).clamp_max(1.0)


@dataclass(frozen=True, kw_only=True)
class Release:
    """An update that is clipped or not, then noisy, then whatever is made of that.

    Args:
        std: of Gaussian noise that tells as much of a shift as this noise: its own standard
            deviation, or b where the noise is Laplace's, whose Fisher information is 1 / b^2.
        law: the noise in words.
        before: what is done to the update before noise is added, in order.
        remembers: whether later rounds also send what was kept of earlier ones.
        alone: whether this is the release of one image in one step only, as where every image's
            gradient is clipped by itself.
    """

    std: float
    law: str
    before: tuple[Clip, ...] = ()
    remembers: bool = False
    alone: bool = False

    def clipped(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return an update as it is just before noise is added."""
        clipped = dict(tensors)
        for clip in self.before:
            clipped = clip(clipped)
        return clipped


def release_of(parts: Sequence[DefenseFacts] | None) -> Release | NoBound:
    """Return what the parts of a defense release, or why no bound of one update is known.

    Args:
        parts: in their order; None where nobody knows them.
    """
    if parts is None:
        return NoBound(reason="nobody knows what clients did to their updates")
    before: list[Clip] = []
    for place, part in enumerate(parts):
        if isinstance(part, PerturbationFacts):
            return _noisy(part, tuple(before), parts[place + 1 :])
        if part.name == "dp_sgd":
            return _every_image_clipped(part, parts[place + 1 :])
        if not isinstance(part, ClippingFacts):
            after = [p for p in parts[place:] if isinstance(p, PerturbationFacts)]
            why = f"{part.name} in front of the noise jumps as pixels move" if after else _NO_NOISE
            return NoBound(reason=why)
        before.append(Clip(max_norm=part.max_norm, per=part.per))
    return NoBound(reason=_NO_NOISE)


_NO_NOISE = "no noise is added, so that nothing of one update bounds an attack"


def _noisy(
    noise: PerturbationFacts, before: tuple[Clip, ...], after: Sequence[DefenseFacts]
) -> Release | NoBound:
    if noise.relative_to is not None:
        return NoBound(
            reason="the scale of the noise follows the update, and tells of the image, too"
        )
    if noise.law not in _LAWS:
        return NoBound(reason=f"how much noise of the law {noise.law} hides is not known")
    return Release(
        std=noise.scale,
        law=_LAWS[noise.law].format(noise.scale),
        before=before,
        remembers=_remember(after),
    )


def _every_image_clipped(sgd: DefenseFacts, after: Sequence[DefenseFacts]) -> Release | NoBound:
    """Return what DP-SGD releases of one image in one step: clip(g) and noise.

    Both are divided by the same number afterwards, which adds and takes away nothing.
    """
    told = {name: getattr(sgd, name, None) for name in ("norm", "law", "max_grad_norm")}
    scale = float(getattr(sgd, "noise_scale", 0.0) or 0.0)
    if scale <= 0:
        return NoBound(reason=_NO_NOISE)
    if told["norm"] != "l2" or told["law"] not in _LAWS or told["max_grad_norm"] is None:
        return NoBound(reason="of DP-SGD with another norm than l2 none is derived")
    clip = Clip(max_norm=float(told["max_grad_norm"]), per="update")
    law = _LAWS[str(told["law"])].format(scale)
    return Release(std=scale, law=law, before=(clip,), remembers=_remember(after), alone=True)


def _remember(after: Sequence[DefenseFacts]) -> bool:
    return any(getattr(part, "error_feedback", False) for part in after)
