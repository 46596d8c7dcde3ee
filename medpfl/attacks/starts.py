"""Where a dummy image starts, in the client's input space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from medpfl.attacks.image_prior import ImageGaussian
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import Observation


class Start(Protocol):
    """Makes the first dummy images."""

    def __call__(
        self, observation: Observation, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """Return `(N, C, *S)`; `shape` is that shape."""
        ...


@dataclass(frozen=True)
class Solution:
    """An image that was computed from its update, not searched for.

    Args:
        image: `(C, *S)` in the client's input space.
        determined: the share of its unknowns that the equations determine, see
            `determined_share`; NaN where that was not asked.
        final: whether a search has nothing to add: what the equations leave open, the whole update
            leaves open, too.
    """

    image: Tensor
    determined: float
    final: bool = False


@runtime_checkable
class Solving(Start, Protocol):
    """A start that computes the image itself where the update allows it."""

    def solve(self, observation: Observation) -> Solution | None:
        """Return the image behind an update; None where no closed form holds."""
        ...

    def draw(
        self, observation: Observation, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """Return `(N, C, *S)` without trying that."""
        ...


@dataclass(frozen=True, kw_only=True)
class Normal:
    """Standard normal pixels (Zhu et al. 2019, Alg. 1)."""

    def __call__(
        self, observation: Observation, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """Draw N(0, 1) for every entry."""
        return torch.randn(shape, generator=generator)


@checked("attack.start")
@dataclass(frozen=True, kw_only=True)
class PatchTiled:
    """A uniform patch of half the image's size, tiled (CPL: Wei et al. 2020, Sec. 3.1).

    Args:
        tiles: how many times the patch repeats along each spatial axis, at most once a pixel.
    """

    tiles: Annotated[int, Range(1, 1_000_000)] = 2

    def __call__(
        self, observation: Observation, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """Draw U[0, 1) for one patch an image and repeat it; odd sizes cut the last tile."""
        spatial = shape[2:]
        tiles = [min(self.tiles, size) for size in spatial]
        sides = [-(-size // count) for size, count in zip(spatial, tiles, strict=True)]
        patch = torch.rand((*shape[:2], *sides), generator=generator)
        tiled = patch.repeat(1, 1, *tiles)
        for axis, size in enumerate(spatial, start=2):
            tiled = tiled.narrow(axis, 0, size)
        return tiled.contiguous()


@checked("attack.start")
@dataclass(frozen=True, kw_only=True)
class Smooth:
    """Soft random shapes: a few uniform grey values, interpolated to the image's size.

    Fine random structure has to be unlearnt before anything else is learnt. Measured with two
    images behind an update of dlg_cnn: solved in half the iterations that noise needs.

    Args:
        cells: grey values along each spatial axis.
    """

    cells: Annotated[int, Range(2, 1_000_000)] = 6

    def __call__(
        self, observation: Observation, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """Draw U[0, 1) pixels on the coarse grid and interpolate them linearly, axis by axis."""
        spatial = shape[2:]
        coarse = (*shape[:2], *(min(self.cells, size) for size in spatial))
        pixels = torch.rand(coarse, generator=generator)
        for axis, size in enumerate(spatial, start=2):
            rows = pixels.movedim(axis, -1)
            line = rows.reshape(1, -1, rows.shape[-1])
            line = functional.interpolate(line, size=size, mode="linear", align_corners=True)
            pixels = line.reshape(*rows.shape[:-1], size).movedim(-1, axis)
        return observation.spec.normalise(pixels)


_DRAWN = 0.1  # of the spread of images: the mean is a good start, but several must differ


@dataclass(frozen=True, kw_only=True)
class Likely:
    """Images near the mean of public ones, apart from it as images are, to a tenth.

    Args:
        images: the Gaussian learnt from them.
    """

    images: ImageGaussian

    def __call__(
        self, observation: Observation, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """Draw from the Gaussian, with a hundredth of its covariance."""
        standard = torch.randn((shape[0], len(self.images.mean)), generator=generator).double()
        pixels = self.images.image(_DRAWN * standard).reshape(shape[0], *self.images.shape)
        return observation.spec.normalise(pixels.float().expand(shape))
