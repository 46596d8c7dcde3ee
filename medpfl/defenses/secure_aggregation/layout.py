"""Named tensors as one vector, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Names, shapes and order of an update's tensors.

    Args:
        shapes: `{name: P_i}`.
    """

    shapes: Mapping[str, torch.Size]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """Return the layout of an update, its names in alphabetical order.

        Raises:
            ValueError: it holds nothing, or something that is no real number.
        """
        if not tensors:
            raise ValueError("an update without tensors has no sum: leave such clients out")
        unreal = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
        if unreal:
            raise ValueError(f"these are no real numbers and cannot be masked: {unreal}")
        return cls({name: tensors[name].shape for name in sorted(tensors)})

    @property
    def length(self) -> int:
        """The number of entries, D."""
        return sum(prod(shape) for shape in self.shapes.values())

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return an update of this layout as `(D,)` float64 on the CPU.

        Raises:
            ValueError: names or shapes are others.
        """
        other = sorted(self.shapes.keys() ^ tensors.keys())
        if other:
            raise ValueError(f"a client sends other tensors than the first one: {other}")
        for name, shape in self.shapes.items():
            if tensors[name].shape != shape:
                raise ValueError(
                    f"{name} has the shape {tuple(tensors[name].shape)}, the first client's "
                    f"{tuple(shape)}"
                )
        flat = torch.empty(self.length, dtype=torch.float64)
        parts = torch.split(flat, [prod(shape) for shape in self.shapes.values()])
        for name, part in zip(self.shapes, parts, strict=True):
            part.copy_(tensors[name].detach().reshape(-1))
        return flat

    def unflatten(self, values: Tensor) -> dict[str, Tensor]:
        """Return `(D,)` as `{name: P_i}`."""
        parts = torch.split(values, [prod(shape) for shape in self.shapes.values()])
        return {
            name: part.reshape(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
