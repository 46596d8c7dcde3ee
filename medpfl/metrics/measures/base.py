"""What a measure is, and how measures are applied to a reconstruction and to two guesses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from medpfl.metrics.measures.columns import MEAN_IMAGE, ZEROS, column
from medpfl.types import DataSpec


@runtime_checkable
class Measure(Protocol):
    """Puts a number on a pair of images."""

    def __call__(self, original: Tensor, reconstruction: Tensor, spec: DataSpec) -> float:
        """Return the number for one pair; NaN where it is not defined.

        Args:
            original: `(C, *S)` in [0, 1], on the CPU.
            reconstruction: `(C, *S)` in [0, 1], on the CPU.
            spec: the data's shape and normalisation.
        """
        ...


def compare(
    measures: Mapping[str, Measure],
    original: Tensor,
    reconstruction: Tensor,
    mean_image: Tensor,
    spec: DataSpec,
) -> dict[str, float]:
    """Apply every measure to a reconstruction, and to two guesses that need no attack.

    Args:
        measures: by name.
        original: `(C, *S)` in [0, 1].
        reconstruction: `(C, *S)` in [0, 1].
        mean_image: `(C, *S)` in [0, 1]: the guess of someone who knows the kind of image only.
        spec: the data's shape and normalisation.

    Returns:
        `{column: value}`, the columns of each measure side by side.
    """
    guesses = {"": reconstruction, ZEROS: torch.zeros_like(original), MEAN_IMAGE: mean_image}
    return {
        column(name, guess): measure(original, image, spec)
        for name, measure in measures.items()
        for guess, image in guesses.items()
    }
