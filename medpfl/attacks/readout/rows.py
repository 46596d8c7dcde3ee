"""What single rows of a planted layer give: images, and how far each can be trusted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.nn import functional

from medpfl.attacks.reading import update_map_of
from medpfl.planted import Planted
from medpfl.types import Observation

# Gradients of the biases below this share of the largest are rounding: an image this much quieter
# than the loudest is not seen.
_FLOOR = 1e-6
_TOGETHER = 16
# Of local training: at which the network is asked.
_POINTS = 4


@dataclass(frozen=True)
class Gradients:
    """The gradients of the planted rows, one behind another however they were sent.

    Args:
        weights: blocks `(k_j, D)` float32.
        biases: `(K,)` float64, of the biases as they act.
        each: rows of a client, where several have rows of their own; K of one.
    """

    weights: tuple[Tensor, ...]
    biases: Tensor
    each: int

    @classmethod
    def of(cls, observation: Observation, planted: Planted) -> Gradients:
        """Read them off an update in the unit of a gradient."""
        tensors, clients = observation.tensors, planted.clients
        biases = torch.cat([tensors[name].double().cpu() for name in planted.biases])
        found = [tensors[name] for name in planted.weights]
        blocks = [tensor.reshape(len(tensor), clients, -1) for tensor in found]
        return cls(
            tuple(block[:, client] for client in range(clients) for block in blocks),
            biases.reshape(-1, clients).T.flatten() / planted.reach,
            len(biases),
        )

    def row(self, number: int) -> Tensor:
        """Return the gradient of one row's weights, `(D,)` float64."""
        for block in self.weights:
            if number < len(block):
                return block[number].double().cpu()
            number -= len(block)
        raise IndexError("there are no more rows")

    def differences(self) -> Gradients:
        """Return a view whose rows are each row less the next one; see `Differences`."""
        of_clients = self.biases.reshape(-1, self.each)
        own = -of_clients.diff(append=of_clients.new_zeros(len(of_clients), 1))
        return Differences(self.weights, own.flatten(), self.each)

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
        """Return the difference to the client's next row, `(D,)` float64; of the last, the row."""
        here = super().row(number)
        return here if (number + 1) % self.each == 0 else here - super().row(number + 1)


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
    Where the client took several steps, the network is asked along the straight way that they went.

    Args:
        observation: with the number of examples, as it was sent.
        planted: the rows' names.
        inputs_norm: `(M, C, *S)` images read out, in the client's input space.
        rows: M numbers: which row each was read from.
        heard: `(M,)` float64: dL/db of each in the update.
    """
    if not len(inputs_norm):
        return Explained(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64))
    loudness = _Loudness(observation, planted)
    count = observation.num_examples or 1
    parts = zip(
        torch.split(inputs_norm, _TOGETHER), torch.split(torch.tensor(rows), _TOGETHER), strict=True
    )
    by_label = torch.cat([loudness(images, numbers) for images, numbers in parts]) / count
    mismatch, labels = ((by_label - heard[:, None]).abs() / heard.abs()[:, None]).min(dim=1)
    return Explained(labels, mismatch)


class _Loudness:
    """From images and rows to dL/db of these, for each image by itself and each label."""

    def __init__(self, observation: Observation, planted: Planted) -> None:
        payload = observation.payload
        self._networks = list(_along_the_way(observation, planted))
        # One image at a time is asked: in train mode, BatchNorm would need the others.
        self._forward = payload.forward(training=False)
        self._names, self._reach = planted.biases, planted.reach
        self._sizes = [len(payload.parameters[name]) for name in planted.biases]

    def __call__(self, inputs_norm: Tensor, rows: Tensor) -> Tensor:
        """Return `(m, K)` float64 for images `(m, C, *S)` and their rows `(m,)`."""
        like = self._networks[0][self._names[0]]
        one = functional.one_hot(rows % sum(self._sizes), sum(self._sizes)).to(like)
        found = list[Tensor]()
        for network in self._networks:
            with torch.no_grad():
                values, slopes = vmap(partial(self._slopes, network))(inputs_norm.to(like), one)
            mean = (values.softmax(1) * slopes).sum(1, keepdim=True)
            found.append((mean - slopes).double().cpu())
        return torch.stack(found).mean(0) / self._reach

    def _slopes(
        self, network: Mapping[str, Tensor], image: Tensor, one: Tensor
    ) -> tuple[Tensor, Tensor]:
        biases = {name: network[name] for name in self._names}
        moves = {
            # Of several clients, each has one bias a row, and one of these counts.
            name: part.reshape(-1, *(1,) * (biases[name].ndim - 1)).expand_as(biases[name])
            for name, part in zip(self._names, torch.split(one, self._sizes), strict=True)
        }

        def logits(moved: Mapping[str, Tensor]) -> Tensor:
            return self._forward({**network, **moved}, image[None])[0]

        with warnings.catch_warnings():
            # Of torch's own making: it loads its rules with a compiler that it has deprecated.
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
            values, slopes, *_ = jvp(logits, (biases,), (moves,))
        return values, slopes


def _along_the_way(observation: Observation, planted: Planted) -> Iterator[dict[str, Tensor]]:
    """Yield the network's numbers at points between those before and after local training."""
    sent, rows = observation.payload.parameters, {*planted.weights, *planted.biases}
    if update_map_of(observation).is_one_gradient(observation.num_examples or 1):
        yield dict(sent)
        return
    for point in range(_POINTS):
        share = (point + 0.5) / _POINTS
        yield {
            name: tensor
            if name in rows or name not in observation.tensors
            else tensor + share * observation.tensors[name]
            for name, tensor in sent.items()
        }


def total_variation(image: Tensor) -> float:
    """Return the mean absolute difference of neighbouring pixels of `(C, *S)`, over all axes."""
    axes = range(1, image.ndim)
    found = torch.cat([image.diff(dim=axis).abs().flatten() for axis in axes])
    return float(found.mean()) if len(found) else math.nan
