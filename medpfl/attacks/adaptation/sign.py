"""Signs: what an image must agree with is the sign of every entry, and each tensor's mean size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from medpfl.attacks.adaptation.posterior import most_likely
from medpfl.attacks.adaptation.through import measured_by
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.problem import Problem
from medpfl.types import DefenseFacts

# Entries of a tenth of their tensor's mean size tip over within a nat: no step has a slope.
_STEEPNESS = 10.0


@dataclass(frozen=True, kw_only=True)
class SignLikelihood:
    """Minus the log-likelihood, in nats, of the signs that were sent (logistic).

    sum over entries of log(1 + exp(-k s g / m)), with the sign s that was sent and the mean
    magnitude m of the dummy's tensor: signs alone know no sizes (1-bit measurements: Boufounos and
    Baraniuk 2008; k makes the step a slope). Entries sent as zero are left out.
    """

    scale_free: ClassVar[bool] = True
    in_nats: ClassVar[bool] = True

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the nats of all tensors."""
        pairs = [(d, o) for d, o in zip(dummy, observed, strict=True) if d.numel()]
        return torch.stack([_nats(d, o) for d, o in pairs]).sum()


def _nats(dummy: Tensor, observed: Tensor) -> Tensor:
    signs = observed.sign()
    size = (dummy * signs).abs().mean()
    tiny = torch.finfo(dummy.dtype).tiny
    margins = signs * dummy / torch.where(size > tiny, size, 1)
    return (functional.softplus(-_STEEPNESS * margins) * signs.abs()).sum()


def through_sign(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Find the most likely image whose gradient has the signs that were sent.

    The mean magnitude of each tensor, sent with ``scale=mean``, is left out: it is one number of
    thousands.
    """
    return most_likely(measured_by(parts, SignLikelihood()).distance, parts, search, problem)
