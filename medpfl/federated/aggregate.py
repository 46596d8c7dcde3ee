"""The mean of what clients send, added up one client at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightedMean:
    """Weigh each client's tensors by its images, and forget them once they are added.

    Sums are kept in float64, where tensors lie; what is kept does not grow with the number of
    clients. Of a single client float32 tensors come back as they were, to the bit.

    McMahan et al. 2017, Algorithm 1: the new global model is the mean of the clients', each
    weighted by n_k / n; of deltas from one model it is the same mean.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._like: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self.num_examples = 0
        self.clients = 0

    def add(self, tensors: Mapping[str, Tensor], num_examples: int) -> None:
        """Add one client's tensors; they are left as they are, and not kept.

        Args:
            tensors: `{name: P_i}` floating-point; of every client the same names and shapes.
            num_examples: N of this client, at least 1.

        Raises:
            ValueError: names or shapes are not those of the first client, tensors are no real
                numbers, or there are no images; nothing is added then.
        """
        if num_examples < 1:
            raise ValueError(f"a client of {num_examples} images has no weight: leave it out")
        self._check(tensors)
        for name, tensor in tensors.items():
            weighted = tensor.detach().double() * num_examples
            if name in self._sums:
                self._sums[name] += weighted.to(self._sums[name].device)
            else:
                self._sums[name] = weighted
                self._like[name] = (tensor.shape, tensor.dtype)
        self.num_examples += num_examples
        self.clients += 1

    def mean(self) -> dict[str, Tensor]:
        """Return the mean so far, `{name: P_i}` in the precision of the first client's tensors.

        Raises:
            ValueError: nothing was added.
        """
        if not self.clients:
            raise ValueError("there is no mean of no clients: add one first")
        return {
            name: (total / self.num_examples).to(self._like[name][1])
            for name, total in self._sums.items()
        }

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        unreal = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
        if unreal:
            raise ValueError(f"these have no mean, as they are no real numbers: {unreal}")
        if not self.clients:
            return
        other = sorted(self._sums.keys() ^ tensors.keys())
        if other:
            raise ValueError(f"a client sends other tensors than the first one: {other}")
        for name, tensor in tensors.items():
            shape = self._like[name][0]
            if tensor.shape != shape:
                raise ValueError(
                    f"{name} has the shape {tuple(tensor.shape)}, the first client's {tuple(shape)}"
                )
