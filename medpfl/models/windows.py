"""What sliding windows (convolution, pooling) make of the size of a picture or volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from medpfl.errors import ConfigurationError
from medpfl.types import DataSpec


@dataclass(frozen=True, kw_only=True)
class Window:
    """A square or cubic window that slides over a picture or volume.

    Args:
        kernel: side of the window, at least 1.
        stride: distance between neighbouring places, at least 1.
        padding: pixels added on every side, at least 0.
    """

    kernel: int
    stride: int = 1
    padding: int = 0

    def output(self, side: int) -> int:
        """Return the number of places along a side of `side` pixels."""
        return (side + 2 * self.padding - self.kernel) // self.stride + 1

    def smallest_input(self, output: int) -> int:
        """Return the shortest side that gives `output` places."""
        return max(1, (output - 1) * self.stride + self.kernel - 2 * self.padding)


def picture_size(spec: DataSpec, network: str) -> tuple[int, int]:
    """Return `(H, W)`; ConfigurationError where the data are not pictures `(C, H, W)`."""
    if len(spec.shape) != 3:
        raise ConfigurationError(
            f"{network} takes pictures (C, H, W), but one example has the shape {spec.shape}: "
            "choose a dataset of pictures or another model"
        )
    return spec.shape[1], spec.shape[2]


def convolution_over(size: Sequence[int]) -> type[nn.Conv2d | nn.Conv3d]:
    """Return the convolution over as many dimensions as there are sides: 2 or 3."""
    return nn.Conv3d if len(size) == 3 else nn.Conv2d


def feature_size(spec: DataSpec, windows: Sequence[Window], network: str) -> tuple[int, ...]:
    """Return the sides that the windows, one after another, leave of a picture or volume.

    Args:
        spec: the data; its shape must be `(C, H, W)` or `(C, D, H, W)`.
        windows: in running order.
        network: its name, for the message.

    Returns:
        As many sides as the data have, each at least 1.

    Raises:
        ConfigurationError: the data are too small, or neither pictures nor volumes.
    """
    sides: tuple[int, ...] = spec.shape[1:]
    if len(sides) != 3:
        sides = picture_size(spec, network)
    smallest = 1
    for window in reversed(windows):
        smallest = window.smallest_input(smallest)
    if min(sides) < smallest:
        kind = "volumes" if len(sides) == 3 else "pictures"
        raise ConfigurationError(
            f"{network} cannot take {kind} of {'x'.join(map(str, sides))}: the smallest that works "
            f"is {'x'.join([str(smallest)] * len(sides))}; set preprocess.size"
        )
    for window in windows:
        sides = tuple(window.output(side) for side in sides)
    return sides
