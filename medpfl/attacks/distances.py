"""How far the gradient of a dummy is from the observed one, for a single row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range


class Distance(Protocol):
    """A distance between two gradients, given tensor by tensor in the same order."""

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return a scalar tensor, 0 where the gradients agree."""
        ...


@runtime_checkable
class LeastSquares(Distance, Protocol):
    """A distance that is a sum of squares, as second-order optimisers need it."""

    def residual(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return `(P,)` entries whose squares sum to the distance."""
        ...


@runtime_checkable
class Differentiated(Distance, Protocol):
    """A distance with its derivative written out, in fewer passes than autograd takes."""

    def slope(
        self, dummy: Sequence[Tensor], observed: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Return the derivative by the dummy, tensor by tensor, and the distance."""
        ...


@runtime_checkable
class ScaleFree(Distance, Protocol):
    """A distance that is the same whatever both sides are multiplied by, each by its own factor."""

    @property
    def scale_free(self) -> bool:
        """Whether it is."""
        ...


def has_no_scale(distance: Distance) -> bool:
    """Say whether a distance compares directions alone."""
    return isinstance(distance, ScaleFree) and distance.scale_free


@runtime_checkable
class Likelihood(Distance, Protocol):
    """A distance that is minus the logarithm of a probability, in nats."""

    @property
    def in_nats(self) -> bool:
        """Whether it is."""
        ...


def is_likelihood(distance: Distance) -> bool:
    """Say whether the distances of independent updates add up to that of all of them."""
    return isinstance(distance, Likelihood) and distance.in_nats


@dataclass(frozen=True, kw_only=True)
class _Largest:
    top: Annotated[int, Range(1, 1_000_000)] | None = None


@checked("attack.distance")
@dataclass(frozen=True, kw_only=True)
class SquaredError(_Largest):
    """Sum of squared differences over all entries (Zhu et al. 2019, Eq. 4).

    Args:
        top: how many tensors enter, those of largest observed norm; all of them where None.
    """

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return sum_i |dummy_i - observed_i|^2."""
        squares = [d.square().sum() for d in _differences(dummy, observed)]
        return _total(squares, _weights(observed, self.top))

    def residual(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the differences; see `LeastSquares`."""
        return _flat(_differences(dummy, observed), _weights(observed, self.top))

    def slope(
        self, dummy: Sequence[Tensor], observed: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Return 2 (dummy - observed), and the distance; see `Differentiated`."""
        return _squares(_differences(dummy, observed), _weights(observed, self.top))


@checked("attack.distance")
@dataclass(frozen=True, kw_only=True)
class Cosine(_Largest):
    """One minus the cosine of the angle between whole gradients (Geiping et al. 2020, Eq. 4).

    Args:
        top: how many tensors enter, those of largest observed norm; all of them where None.
    """

    scale_free: ClassVar[bool] = True

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return 1 - <dummy, observed> / (|dummy| |observed|), in [0, 2]."""
        weights = _weights(observed, self.top)
        length, wanted = (
            _total([t.square().sum() for t in side], weights).sqrt() for side in (dummy, observed)
        )
        # |a / |a| - b / |b||^2 / 2 is the same, and keeps the digits that 1 - cosine loses: in
        # float32 a search for the smallest angle would stall at 1e-6.
        pairs = zip(dummy, observed, strict=True)
        return _total([(a / length - b / wanted).square().sum() for a, b in pairs], weights) / 2

    def residual(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return (dummy / |dummy| - observed / |observed|) / sqrt(2); see `LeastSquares`."""
        weights = _weights(observed, self.top)
        sides = [_flat(side, weights) for side in (dummy, observed)]
        a, b = (side / side.square().sum().sqrt() for side in sides)
        return (a - b) / math.sqrt(2)

    def slope(
        self, dummy: Sequence[Tensor], observed: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Return (r - f a) / |dummy|, and the distance f; see `Differentiated`.

        Here a = dummy / |dummy|, r = a - observed / |observed| and f = |r|^2 / 2, which keeps the
        digits that <a, observed> would lose.
        """
        weights = _weights(observed, self.top)
        length, wanted = (
            _total([t.square().sum() for t in side], weights).sqrt() for side in (dummy, observed)
        )
        apart = [a / length - b / wanted for a, b in zip(dummy, observed, strict=True)]
        value = _total([r.square().sum() for r in apart], weights) / 2
        pairs = zip(dummy, apart, strict=True)
        slope = [torch.addcmul(r, a, -value / length).div_(length) for a, r in pairs]
        return _scaled(slope, weights), value


@checked("attack.distance")
@dataclass(frozen=True, kw_only=True)
class NormalisedError(_Largest):
    """Mean over tensors of the squared difference relative to the observed squared norm.

    Scale-free as `Cosine` is, but layer by layer: a layer of small gradients counts as much as one
    of large ones, and lengths are compared, not angles alone.

    Args:
        top: how many tensors enter, those of largest observed norm; all of them where None.
    """

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return mean_i |dummy_i - observed_i|^2 / |observed_i|^2 over the tensors not all zero."""
        errors = torch.stack([d.square().sum() for d in _differences(dummy, observed)])
        return _total(errors, self._weights(observed))

    def residual(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the differences relative to the observed norms; see `LeastSquares`."""
        return _flat(_differences(dummy, observed), self._weights(observed))

    def slope(
        self, dummy: Sequence[Tensor], observed: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Return twice the differences, weighted, and the distance; see `Differentiated`."""
        return _squares(_differences(dummy, observed), self._weights(observed))

    def _weights(self, observed: Sequence[Tensor]) -> Tensor:
        squares = torch.stack([b.square().sum() for b in observed])
        # Below this a square has lost its digits, and its inverse overflows.
        seen = squares >= torch.finfo(squares.dtype).tiny
        weights = seen / torch.where(seen, squares, 1)
        chosen = _weights(observed, self.top)
        count = seen.sum() if chosen is None else (seen * chosen).sum()
        return (weights if chosen is None else weights * chosen) / count.clamp(min=1)


def _differences(dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
    return [a - b for a, b in zip(dummy, observed, strict=True)]


def _squares(differences: Sequence[Tensor], weights: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Return the derivative of the weighted sum of squares, and that sum."""
    value = _total([d.square().sum() for d in differences], weights)
    return _scaled([d.mul_(2) for d in differences], weights), value


def _scaled(tensors: list[Tensor], weights: Tensor | None) -> list[Tensor]:
    if weights is None:
        return tensors
    return [t * w for t, w in zip(tensors, weights, strict=True)]


def _flat(tensors: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """Return all entries `(P,)`, each scaled so that its square counts with its tensor's weight."""
    roots = None if weights is None else weights.sqrt()
    return torch.cat([t.flatten() for t in _scaled(list(tensors), roots)])


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
