"""From a picture or a volume of any size to one example of the experiment."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from medpfl.data.images import with_channels
from medpfl.data.volumes.grid import Grid, cut_or_pad, resampled
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range

ChannelValues = tuple[float, ...] | Literal["train"] | None
Resize = Literal["squash", "crop", "keep"]
Side = Annotated[int, Range(1, 1_000_000)]
# Pixels lie in [0, 1]: far beyond it float32 has no digits left for them.
Mean = Annotated[float, Range(-1e4, 1e4)]
Std = Annotated[float, Range(1e-4, 1e4)]


@checked("preprocess")
class Preprocess:
    """Resize pictures or volumes and fix their channels; hold the client's normalisation.

    Args:
        size: height and width in pixels, of volumes depth, height and width; or one number for all.
        resize: ``squash`` ignores the aspect ratio; ``crop`` keeps it, of volumes in millimetres,
            and cuts the centre out; ``keep`` leaves pixels as they are, cuts the centre out or
            pads it with black.
        channels: 1 or 3; grey pictures are repeated over 3 channels.
        mean: what the client subtracts, one number a channel; None for nothing, ``train`` for the
            training split's own.
        std: what the client divides by, likewise; positive.

    Raises:
        ConfigurationError: if a setting leaves the range above.
    """

    sides: tuple[int, ...]
    resize: Resize
    channels: int
    mean: ChannelValues
    std: ChannelValues

    def __init__(
        self,
        *,
        size: Side | Sequence[Side] = 32,
        resize: Resize = "squash",
        channels: int = 3,
        mean: Sequence[Mean] | Literal["train"] | None = None,
        std: Sequence[Std] | Literal["train"] | None = None,
    ) -> None:
        if resize not in ("squash", "crop", "keep"):
            raise ConfigurationError(f"preprocess.resize is {resize!r}: use squash, crop or keep")
        if channels not in (1, 3):
            raise ConfigurationError(f"preprocess.channels is {channels!r}: use 1 or 3")
        self._size = size if isinstance(size, int) else tuple(size)
        self.sides = (size,) * 2 if isinstance(size, int) else tuple(size)
        if len(self.sides) not in (2, 3):
            raise ConfigurationError(
                f"preprocess.size is {size}: give one number, [height, width] or, for volumes, "
                "[depth, height, width]"
            )
        self.resize = resize
        self.channels = channels
        self.mean = _channel_values("mean", mean, channels)
        self.std = _channel_values("std", std, channels)

    def over(self, dimensions: int) -> Preprocess:
        """Return it for data of 2 or 3 dimensions, over all of which one number of a size holds.

        Raises:
            ConfigurationError: another number of sides was given.
        """
        fitting = copy.copy(self)
        if isinstance(self._size, int):
            fitting.sides = (self._size,) * dimensions
        if len(fitting.sides) != dimensions:
            kind, order = {
                2: ("pictures", "height, width"),
                3: ("volumes", "depth, height, width"),
            }[dimensions]
            raise ConfigurationError(
                f"preprocess.size is {list(self.sides)}, and the dataset has {kind}: give one "
                f"number or [{order}]"
            )
        return fitting

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example, `(C, *S)`."""
        return (self.channels, *self.sides)

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn a picture into one example: `(C, H, W)` float32 in [0, 1], not normalised."""
        image = with_channels(image, self.channels)
        size = list(self.sides)
        if self.resize == "squash":
            image = _bilinear(image, size)
        elif self.resize == "crop":
            image = transforms.center_crop(_bilinear(image, _covering(image, *size)), size)
        else:
            image = transforms.center_crop(image, size)
        return _to_tensor(image).expand(self.shape).contiguous()

    def volume(self, grid: Grid) -> Grid:
        """Return a volume on the grid of an example, in `(X, Y, Z)`; see `Grid.example`.

        Args:
            grid: a volume in [0, 1].
        """
        sizes = self.sides[::-1]
        if self.resize == "keep":
            return cut_or_pad(grid, sizes)
        wanted, there = np.asarray(sizes), np.asarray(grid.values.shape)
        if self.resize == "squash":
            return resampled(grid, sizes, there / wanted)
        spacing = float((there * grid.spacing_mm / wanted).min())
        factors = spacing / grid.spacing_mm
        covering = np.maximum(wanted, np.floor(there / factors + 1e-6).astype(int))
        return cut_or_pad(resampled(grid, covering.tolist(), factors), sizes)

    def example(self, grid: Grid) -> Tensor:
        """Turn a volume on the grid of an example into one: `(C, D, H, W)` float32 in [0, 1]."""
        return grid.example().expand(self.shape).contiguous()


def _bilinear(image: Image.Image, size: list[int]) -> Image.Image:
    resized: Image.Image = transforms.resize(
        image, size, interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    return resized


def _covering(image: Image.Image, height: int, width: int) -> list[int]:
    """Return the smallest size that covers a window and keeps the image's aspect ratio.

    Rounded down, so that for a square window it is what torchvision's ``Resize(height)`` makes.
    """
    if image.height * width <= image.width * height:
        return [height, max(width, int(height * image.width / image.height))]
    return [max(height, int(width * image.height / image.width)), width]


def _to_tensor(image: Image.Image) -> Tensor:
    values = np.array(image, dtype=np.float32)
    if image.mode != "F":
        values /= 255
    return torch.from_numpy(np.atleast_3d(values)).permute(2, 0, 1)


def _channel_values(
    name: str, values: Sequence[float] | str | None, channels: int
) -> ChannelValues:
    if values is None:
        return None
    if values == "train":
        return "train"
    if isinstance(values, str) or len(values) != channels:
        raise ConfigurationError(
            f"preprocess.{name} is {values!r}: give {channels} numbers (one a channel), "
            "train or null"
        )
    return tuple(float(value) for value in values)
