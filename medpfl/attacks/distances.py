"""How far the gradient of a dummy is from the observed one, for a single row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medpfl.errors import ConfigurationError


class Distance(Protocol):
    """A distance between two gradients, given tensor by tensor in the same order."""

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return a scalar tensor, 0 where the gradients agree."""
        ...


@dataclass(frozen=True, kw_only=True)
class SquaredError:
    """Sum of squared differences over all entries (Zhu et al. 2019, Eq. 4).

    Args:
        top: how many tensors enter, those of largest observed norm; all of them where None.
    """

    top: int | None = None

    def __post_init__(self) -> None:
        _check_top(self.top)

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return sum_i |dummy_i - observed_i|^2."""
        squares = [(a - b).square().sum() for a, b in zip(dummy, observed, strict=True)]
        return _total(squares, _weights(observed, self.top))


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """One minus the cosine of the angle between whole gradients (Geiping et al. 2020, Eq. 4).

    Args:
        top: how many tensors enter, those of largest observed norm; all of them where None.
    """

    top: int | None = None

    def __post_init__(self) -> None:
        _check_top(self.top)

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return 1 - <dummy, observed> / (|dummy| |observed|), in [0, 2]."""
        weights = _weights(observed, self.top)
        dots = [(a * b).sum() for a, b in zip(dummy, observed, strict=True)]
        norms = [
            _total([t.square().sum() for t in side], weights).sqrt() for side in (dummy, observed)
        ]
        return 1 - _total(dots, weights) / (norms[0] * norms[1])


@dataclass(frozen=True, kw_only=True)
class NormalisedError:
    """Mean over tensors of the squared difference relative to the observed squared norm.

    Scale-free as `Cosine` is, but layer by layer: a layer of small gradients counts as much as one
    of large ones, and lengths are compared, not angles alone.

    Args:
        top: how many tensors enter, those of largest observed norm; all of them where None.
    """

    top: int | None = None

    def __post_init__(self) -> None:
        _check_top(self.top)

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return mean_i |dummy_i - observed_i|^2 / |observed_i|^2 over the tensors not all zero."""
        errors = torch.stack([(a - b).square().sum() for a, b in zip(dummy, observed, strict=True)])
        squares = torch.stack([b.square().sum() for b in observed])
        # Below this a square has lost its digits, and its inverse overflows.
        seen = squares >= torch.finfo(squares.dtype).tiny
        weights = seen / torch.where(seen, squares, 1)
        chosen = _weights(observed, self.top)
        count = seen.sum() if chosen is None else (seen * chosen).sum()
        return _total(errors, weights if chosen is None else weights * chosen) / count.clamp(min=1)


def _total(values: Sequence[Tensor] | Tensor, weights: Tensor | None) -> Tensor:
    terms = values if isinstance(values, Tensor) else torch.stack(list(values))
    return terms.sum() if weights is None else (weights * terms).sum()


def _weights(observed: Sequence[Tensor], top: int | None) -> Tensor | None:
    """Return one weight a tensor: 1 for the `top` of largest norm, 0 for the rest.

    Weights and not a selection: under ``vmap`` every row chooses tensors of its own.
    """
    if top is None:
        return None
    norms = torch.stack([t.square().sum() for t in observed])
    largest = norms.topk(min(top, len(norms))).indices
    return torch.zeros_like(norms).scatter(0, largest, torch.ones_like(norms))


def _check_top(top: int | None) -> None:
    if top is not None and top < 1:
        raise ConfigurationError(f"attack.distance.top={top}: must be at least 1, or null")
