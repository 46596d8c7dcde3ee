"""What sliding windows (convolution, pooling) make of a picture's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medpfl.errors import ConfigurationError
from medpfl.types import DataSpec


@dataclass(frozen=True, kw_only=True)
class Window:
    """A square window that slides over a picture.

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


def feature_size(spec: DataSpec, windows: Sequence[Window], network: str) -> tuple[int, int]:
    """Return the height and width that the windows, one after another, leave of a picture.

    Args:
        spec: the data; its shape must be `(C, H, W)`.
        windows: in running order.
        network: its name, for the message.

    Returns:
        `(h, w)`, both at least 1.

    Raises:
        ConfigurationError: the picture is too small, or is none.
    """
    height, width = picture_size(spec, network)
    smallest = 1
    for window in reversed(windows):
        smallest = window.smallest_input(smallest)
    if min(height, width) < smallest:
        raise ConfigurationError(
            f"{network} cannot take pictures of {height}x{width}: "
            f"the smallest that works is {smallest}x{smallest}; set preprocess.size"
        )
    for window in windows:
        height, width = window.output(height), window.output(width)
    return height, width
