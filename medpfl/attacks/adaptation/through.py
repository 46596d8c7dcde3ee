"""A distance through a defense: how far a dummy is from what the update leaves possible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from medpfl.attacks.adaptation.factors import Factors
from medpfl.attacks.adaptation.ranges import Ranges, View
from medpfl.attacks.composition import Parts
from medpfl.attacks.distances import Distance, LeastSquares, has_no_scale, is_likelihood
from medpfl.attacks.starts import Solving, Start
from medpfl.types import Observation


@dataclass(frozen=True, kw_only=True)
class Through:
    """Another distance, in which an entry is as wrong as it is outside its range.

    Going back from the update that was sent, each part widens what the entry before it may have
    been (`Ranges`): a point where it was left alone, everything where it was hidden. A dummy's
    entry inside its range agrees with the update; one outside differs by the way to the range's
    end. Zero is reached by every image that is consistent with what was sent.

    Args:
        inner: the distance that the attack would have used.
        views: one a part of the defense, in the client's order.
        factors: what the dummy's tensors are multiplied by before, where sizes are unknown.
    """

    inner: Distance
    views: tuple[View, ...] = ()
    factors: Factors = field(default_factory=Factors)

    def __call__(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the inner distance between what each entry is taken for and what was sent."""
        return self.inner(self.seen(dummy, observed), observed)

    @property
    def scale_free(self) -> bool:
        """See `ScaleFree`."""
        return has_no_scale(self.inner)

    @property
    def in_nats(self) -> bool:
        """See `Likelihood`."""
        return is_likelihood(self.inner)

    def seen(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Return what was sent plus what each of the dummy's entries is outside its range."""
        ranges = self.ranges(observed)
        scaled = self.factors.applied(dummy, observed, ranges)
        triples = zip(observed, scaled, ranges.nearest(scaled), strict=True)
        return [sent + (entry - nearest) for sent, entry, nearest in triples]

    def looking_through(self, views: Iterable[View]) -> Self:
        """Return the distance through further parts, after those that it looks through."""
        return replace(self, views=(*self.views, *views))

    def ranges(self, observed: Sequence[Tensor]) -> Ranges:
        """Return what is known of each entry of the gradient."""
        ranges = Ranges.at(observed)
        for view in reversed(self.views):
            ranges = view.before(ranges, observed)
        return ranges


@dataclass(frozen=True, kw_only=True)
class ThroughSquares(Through):
    """A `Through` whose inner distance is a sum of squares."""

    def residual(self, dummy: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the inner distance's; see `LeastSquares`."""
        if not isinstance(self.inner, LeastSquares):
            raise TypeError("the inner distance is no sum of squares")
        return self.inner.residual(self.seen(dummy, observed), observed)


@dataclass(frozen=True)
class Drawn:
    """A start that never solves for the image: the update is not exact enough for it.

    Args:
        start: whose first dummies are drawn.
    """

    start: Solving

    def __call__(
        self, observation: Observation, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """Draw `(N, C, *S)`."""
        return self.start.draw(observation, shape, generator)


def seen_through(parts: Parts, view: View) -> Parts:
    """Return the parts of an attack that also looks through one more part of a defense."""
    return with_distance(parts, through_of(parts.distance).looking_through([view]))


def measured_by(parts: Parts, inner: Distance, factors: Factors | None = None) -> Parts:
    """Return the parts of an attack that measures otherwise what it sees through earlier parts.

    Args:
        parts: of the attack.
        inner: the distance.
        factors: of the dummy's tensors; those that the attack has where None.
    """
    through = through_of(parts.distance)
    factors = through.factors if factors is None else factors
    kind = ThroughSquares if isinstance(inner, LeastSquares) else Through
    return with_distance(parts, kind(inner=inner, views=through.views, factors=factors))


def through_of(distance: Distance) -> Through:
    """Return a distance as one through a defense, of no part yet where it is another."""
    if isinstance(distance, Through):
        return distance
    kind = ThroughSquares if isinstance(distance, LeastSquares) else Through
    return kind(inner=distance, factors=Factors(free=has_no_scale(distance)))


def with_distance(parts: Parts, distance: Distance) -> Parts:
    """Return the parts with another distance, and without closed forms, which need all entries."""
    return replace(parts, distance=distance, start=_drawn(parts.start))


def _drawn(start: Start) -> Start:
    return Drawn(start) if isinstance(start, Solving) else start
