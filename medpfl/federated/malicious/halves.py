"""Rows of two halves that nearly cancel: the layer of trap weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.federated.malicious.firing import Firing
from medpfl.models.rows import Rows, blocks_of, fill, planted, shape_at
from medpfl.planted import PlantedTraps
from medpfl.types import DataSpec, ServerPayload

# Of biases: their steps are this much larger, against the rounding of weights.
_REACH = 256.0


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Plant rows whose weights are a random half of numbers, and the same again, turned and scaled.

    Args:
        rows: K.
        scale: of the second half.
        sigma: standard deviation of the weights, were they not cut by sign.
        constrained: whether the first half is negative, and the second positive.
        gain: see `Rows`.
        bias: of every row.
        place: the module that rows are put ahead of; None: the whole network.
        pixels: whether rows look at pixels, whose normalisation weights and biases undo, and not at
            what the client's network gets.
    """

    rows: int
    scale: float
    sigma: float
    constrained: bool
    gain: float
    bias: float = 0.0
    place: str | None = None
    pixels: bool = False

    def plant(
        self,
        payload: ServerPayload,
        spec: DataSpec,
        generator: torch.Generator,
        looked_at: Tensor | None,
        brightness: Tensor | None,
    ) -> tuple[ServerPayload, PlantedTraps, Firing | None]:
        """Return the model with its rows, the secret, and how often they fire.

        Args:
            payload: the global model.
            spec: the kind of data.
            generator: where every random number comes from.
            looked_at: `(A, D)` what rows look at, of public images; None without any.
            brightness: `(A,)` mean intensity of these images.
        """
        shape = shape_at(payload, self.place, spec.shape)
        entries, fired = shape.numel(), list[Tensor]()
        rows = Rows(
            entries, blocks_of(self.rows, entries), gain=self.gain, reach=_REACH, sparse=False
        )

        def made(first: int, last: int) -> tuple[Tensor, Tensor]:
            weights, toward = trap_rows(
                last - first, entries, generator, constrained=self.constrained
            )
            weights.add_(toward, alpha=self.scale).mul_(self.sigma)
            if looked_at is not None:
                fired.append(looked_at @ weights.T + self.bias > 0)
            biases = torch.full((last - first,), self.bias)
            return _undoing(weights, biases, spec) if self.pixels else (weights, biases)

        fill(rows, made)
        sent, names, biases = planted(payload, rows, self.place)
        firing = Firing(torch.cat(fired, 1), brightness) if brightness is not None else None
        secret = PlantedTraps(
            weights=names,
            biases=biases,
            shape=tuple(shape),
            place=self.place,
            reach=_REACH,
            firing_rate=math.nan if firing is None else firing.rate,
        )
        return sent, secret, firing


def trap_rows(
    rows: int, entries: int, generator: torch.Generator, *, constrained: bool
) -> tuple[Tensor, Tensor]:
    """Draw rows' two halves: their sum, with a scale in front of the second, is the weights.

    Args:
        rows: how many.
        entries: D of each.
        generator: where every random number comes from.
        constrained: whether all of the first half is negative, and all of the second positive.

    Returns:
        Two `(rows, D)` float32 of unit variance where they are not zero: a random half of the
        entries, and the same numbers with the other sign at the other half, in another order.

    Source: Boenisch et al. 2021, Alg. 1; without the constraint, the code of "Client Security Alone
    Fails" (2024).
    """
    first, second = torch.zeros(rows, entries), torch.zeros(rows, entries)
    half = entries // 2
    for row in range(rows):
        places = torch.randperm(entries, generator=generator)
        drawn = torch.randn(half, generator=generator)
        drawn = -drawn.abs() if constrained else drawn
        first[row, places[:half]] = drawn
        second[row, places[half : 2 * half]] = -drawn
    return first, second


def _undoing(weights: Tensor, biases: Tensor, spec: DataSpec) -> tuple[Tensor, Tensor]:
    """Return rows of normalised images that respond as the given ones do to pixels.

    <w, s x + m> = <s w, x> + <w, m>.
    """
    of_channels = weights.reshape(len(weights), spec.shape[0], -1)
    mean, std = (torch.tensor(v, dtype=weights.dtype) for v in (spec.mean, spec.std))
    moved = biases + (of_channels.sum(2, dtype=torch.float64) @ mean.double()).float()
    return of_channels.mul_(std[:, None]).flatten(1), moved
