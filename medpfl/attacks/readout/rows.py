"""What single rows of a planted layer give: images, and how far each can be trusted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.nn import functional

from medpfl.planted import Planted
from medpfl.types import Observation, ServerPayload

# Gradients of the biases below this share of the largest are rounding: an image this much quieter
# than the loudest is not seen.
_FLOOR = 1e-6
_TOGETHER = 16


@dataclass(frozen=True)
class Gradients:
    """The gradients of the planted rows, one behind another however they were sent.

    Args:
        weights: blocks `(k_j, D)` float32.
        biases: `(K,)` float64, of the biases as they act.
    """

    weights: tuple[Tensor, ...]
    biases: Tensor

    @classmethod
    def of(cls, observation: Observation, planted: Planted) -> Gradients:
        """Read them off an update in the unit of a gradient."""
        tensors = observation.tensors
        biases = torch.cat([tensors[name].double().cpu() for name in planted.biases])
        return cls(tuple(tensors[name] for name in planted.weights), biases / planted.reach)

    def row(self, number: int) -> Tensor:
        """Return the gradient of one row's weights, `(D,)` float64; zero behind the last."""
        for block in self.weights:
            if number < len(block):
                return block[number].double().cpu()
            number -= len(block)
        return torch.zeros(self.weights[0].shape[1], dtype=torch.float64)

    def differences(self) -> Gradients:
        """Return a view whose rows are each row less the next one; see `Differences`."""
        return Differences(self.weights, -self.biases.diff(append=self.biases.new_zeros(1)))

    def heard(self) -> list[int]:
        """Return the rows that some image switched on, as far as rounding lets that be seen."""
        size = self.biases.abs()
        return torch.nonzero(size > _FLOOR * size.max())[:, 0].tolist()

    def switched_on(self) -> list[int]:
        """Return the rows whose bias has any gradient at all."""
        return torch.nonzero(self.biases)[:, 0].tolist()


@dataclass(frozen=True)
class Differences(Gradients):
    """Of a cumulative imprint: what a row has that the next one has not, one bin's images."""

    def row(self, number: int) -> Tensor:
        """Return the difference to the next row, `(D,)` float64; of the last, the row."""
        return super().row(number) - super().row(number + 1)


@dataclass(frozen=True)
class Explained:
    """What labels explain of the rows' bias gradients.

    Args:
        labels: `(M,)` int64: of each image the label that explains best.
        mismatch: `(M,)` float64: what it leaves, relative to the row's bias gradient. Near zero
            where one image alone is in the row; of a mixture it is not.
    """

    labels: Tensor
    mismatch: Tensor


def explain(
    observation: Observation,
    planted: Planted,
    inputs_norm: Tensor,
    rows: Sequence[int],
    heard: Tensor,
) -> Explained:
    """Ask the network that was sent which label would have made an image this loud.

    The loss' derivative for a row's bias is sum_j (p_j - y_j) dlogit_j / db: linear in the label.

    Args:
        observation: with the number of examples.
        planted: the rows' names.
        inputs_norm: `(M, C, *S)` images read out, in the client's input space.
        rows: M numbers: which row each was read from.
        heard: `(M,)` float64: dL/db of each in the update.
    """
    if not len(inputs_norm):
        return Explained(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64))
    loudness = _Loudness(observation.payload, planted)
    count = observation.num_examples or 1
    parts = zip(
        torch.split(inputs_norm, _TOGETHER), torch.split(torch.tensor(rows), _TOGETHER), strict=True
    )
    by_label = torch.cat([loudness(images, numbers) for images, numbers in parts]) / count
    mismatch, labels = ((by_label - heard[:, None]).abs() / heard.abs()[:, None]).min(dim=1)
    return Explained(labels, mismatch)


class _Loudness:
    """From images and rows to dL/db of these, for each image by itself and each label."""

    def __init__(self, payload: ServerPayload, planted: Planted) -> None:
        self._parameters = dict(payload.parameters)
        # One image at a time is asked: in train mode, BatchNorm would need the others.
        self._forward = payload.forward(training=False)
        self._names, self._reach = planted.biases, planted.reach
        self._sizes = [len(self._parameters[name]) for name in planted.biases]

    def __call__(self, inputs_norm: Tensor, rows: Tensor) -> Tensor:
        """Return `(m, K)` float64 for images `(m, C, *S)` and their rows `(m,)`."""
        like = self._parameters[self._names[0]]
        one = functional.one_hot(rows, sum(self._sizes)).to(like)
        with torch.no_grad():
            values, slopes = vmap(self._slopes)(inputs_norm.to(like), one)
        mean = (values.softmax(1) * slopes).sum(1, keepdim=True)
        return (mean - slopes).double().cpu() / self._reach

    def _slopes(self, image: Tensor, one: Tensor) -> tuple[Tensor, Tensor]:
        biases = {name: self._parameters[name] for name in self._names}
        moves = dict(zip(self._names, torch.split(one, self._sizes), strict=True))

        def logits(moved: Mapping[str, Tensor]) -> Tensor:
            return self._forward({**self._parameters, **moved}, image[None])[0]

        with warnings.catch_warnings():
            # Of torch's own making: it loads its rules with a compiler that it has deprecated.
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
            values, slopes, *_ = jvp(logits, (biases,), (moves,))
        return values, slopes


def total_variation(image: Tensor) -> float:
    """Return the mean absolute difference of neighbouring pixels of `(C, *S)`, over all axes."""
    axes = range(1, image.ndim)
    found = torch.cat([image.diff(dim=axis).abs().flatten() for axis in axes])
    return float(found.mean()) if len(found) else math.nan
