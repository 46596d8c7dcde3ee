"""Where dummy images are allowed to be: what is done to them after every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from medpfl.attacks.unknowns import Unknowns
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range, Steps
from medpfl.types import DataSpec

_CIFAR10_MEAN = (0.4914672, 0.4822617, 0.4467701)
_CIFAR10_STD = (0.2470322, 0.2434851, 0.2615879)


class Projection(Protocol):
    """Moves dummy images to allowed ones, each row by itself."""

    def __call__(self, inputs_norm: Tensor, steps: Tensor, spec: DataSpec) -> Tensor:
        """Return the images of B rows, moved.

        Args:
            inputs_norm: `(B, N, C, *S)` in the client's input space.
            steps: `(B,)` steps that each row has taken.
            spec: the kind of data.

        Returns:
            `(B, N, C, *S)`.
        """
        ...


@runtime_checkable
class ParticularProjection(Projection, Protocol):
    """A projection that does not go with every kind of data, and says so beforehand."""

    def check(self, spec: DataSpec) -> None:
        """Raise a `ConfigurationError` where it cannot work on such data."""
        ...


@dataclass(frozen=True)
class ImageProjection:
    """Projects the images among rows' unknowns, and leaves label scores alone.

    Args:
        projections: applied one after another.
        unknowns: how a vector is read.
        members: vectors in a row, one after another.
    """

    projections: tuple[Projection, ...]
    unknowns: Unknowns
    members: int = 1

    def __call__(self, z: Tensor, steps: Tensor) -> Tensor:
        """Return the points `(B, D)` of rows that have taken `(B,)` steps, projected."""
        shape = self.unknowns.image_shape
        count = torch.Size(shape).numel()
        vectors = z.reshape(len(z) * self.members, -1)
        steps = steps.repeat_interleave(self.members)
        images = vectors[:, :count].reshape(-1, *shape)
        for projection in self.projections:
            images = projection(images, steps, self.unknowns.spec)
        return torch.cat([images.flatten(1), vectors[:, count:]], dim=1).reshape(z.shape)


@dataclass(frozen=True, kw_only=True)
class Box:
    """Clamp to what black and white pixels become in the client's input space.

    Args:
        statistics: whose mean and standard deviation say where that is. ``data``: the client's own;
            ``cifar10``: those of CIFAR-10, as the medical papers' code has it on data normalised
            otherwise, where it cuts bright pixels off; ``none``: nothing is clamped.
    """

    statistics: Literal["data", "cifar10", "none"] = "data"

    def __post_init__(self) -> None:
        if self.statistics not in ("data", "cifar10", "none"):
            raise ConfigurationError(
                f"attack.projections.box.statistics={self.statistics}: choose data, cifar10 or none"
            )

    def check(self, spec: DataSpec) -> None:
        """Refuse the statistics of colour images for images without colours."""
        if self.statistics == "cifar10" and len(spec.mean) != len(_CIFAR10_MEAN):
            raise ConfigurationError(
                "attack.projections.box.statistics=cifar10 is for 3 channels, but the images have "
                f"{len(spec.mean)}: choose data"
            )

    def __call__(self, inputs_norm: Tensor, steps: Tensor, spec: DataSpec) -> Tensor:
        """Clamp every pixel; see `Projection`."""
        if self.statistics == "none":
            return inputs_norm
        shape = (len(spec.mean),) + (1,) * (len(spec.shape) - 1)
        box = self._box_of(spec)
        black, white = (inputs_norm.new_tensor(edge).reshape(shape) for edge in box)
        return torch.minimum(torch.maximum(inputs_norm, black), white)

    def _box_of(self, spec: DataSpec) -> tuple[list[float], list[float]]:
        mean: Sequence[float] = spec.mean
        std: Sequence[float] = spec.std
        if self.statistics == "cifar10":
            self.check(spec)
            mean, std = _CIFAR10_MEAN, _CIFAR10_STD
        pairs = list(zip(mean, std, strict=True))
        return [-m / s for m, s in pairs], [(1 - m) / s for m, s in pairs]


@checked("attack.projections.median_filter")
@dataclass(frozen=True, kw_only=True)
class MedianFilter:
    """Replace every pixel by the median of its neighbourhood, now and then.

    Args:
        every: steps between two applications, at least 1.
        kernel: side of the neighbourhood; odd. Edges are reflected.

    Geiping et al. 2020, their code.
    """

    every: Steps = 500
    kernel: Annotated[int, Range(1, 101)] = 3

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise ConfigurationError(
                f"attack.projections.median_filter.kernel={self.kernel}: must be odd and positive"
            )

    def check(self, spec: DataSpec) -> None:
        """Refuse a kernel that is larger than the images."""
        side = min(spec.shape[1:])
        if self.kernel > side:
            raise ConfigurationError(
                f"attack.projections.median_filter.kernel={self.kernel}: must be at most "
                f"{side - 1 + side % 2} for images with a side of {side} pixels"
            )

    def __call__(self, inputs_norm: Tensor, steps: Tensor, spec: DataSpec) -> Tensor:
        """Filter the rows whose number of steps is a multiple of `every`; see `Projection`."""
        due = steps % self.every == 0
        if not bool(due.any()):
            return inputs_norm
        rows = inputs_norm[due]
        moved = inputs_norm.clone()
        moved[due] = median_filter(rows.flatten(0, 1), self.kernel).reshape(rows.shape)
        return moved


def median_filter(images: Tensor, kernel: int) -> Tensor:
    """Return the median of every pixel's neighbourhood, edges reflected, channel by channel.

    Args:
        images: `(N, C, *S)`, every side of S above `kernel // 2`.
        kernel: side of the neighbourhood; odd.

    Returns:
        `(N, C, *S)`.
    """
    axes = range(2, images.ndim)
    windows = functional.pad(images, [kernel // 2] * (2 * len(axes)), mode="reflect")
    for axis in axes:
        windows = windows.unfold(axis, kernel, 1)
    return windows.flatten(images.ndim).median(-1).values
