"""A batch searched for once an epoch, where the order of its images is not known.

Dimitrov et al. 2022 (arXiv 2202.12395), Section 4: each epoch has dummy images of its own, a prior
holds the epochs together by what does not depend on the order, and in the end the images of all
epochs are matched with those of the first and averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from medpfl.attacks.reading import training_of
from medpfl.seeding import generator
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range, Weight
from medpfl.training import UpdateMap
from medpfl.types import DataSpec, Observation

_KERNEL = 3
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@checked("attack.epochs")
@dataclass(frozen=True, kw_only=True)
class SeparateEpochs:
    """Images of their own for every epoch (Dimitrov et al. 2022).

    Args:
        weight: of the order-invariant prior; not negative.
        features: random convolutions of 3 pixels whose mean over the images is compared; 0
            compares the mean of the images themselves.
    """

    weight: Weight = 0.01
    features: Annotated[int, Range(0, 4096)] = 96

    def epochs(self, observation: Observation) -> int:
        """Return how many epochs the client made; 1 where nobody knows."""
        return training_of(observation).epochs

    def update_map(self, observation: Observation) -> UpdateMap:
        """Return the map from the images of all epochs, one after another, to the update."""
        training, count = training_of(observation), observation.num_examples or 1
        once = replace(training, epochs=1).in_turn(count).order or ()
        order = tuple(
            tuple(epoch * count + image for image in batch)
            for epoch in range(training.epochs)
            for batch in once
        )
        return replace(UpdateMap.of(training), batches=order)

    def prior(self, epochs: int, spec: DataSpec) -> OrderInvariance:
        """Return what holds so many epochs of such images together."""
        return OrderInvariance(weight=self.weight, epochs=epochs, kernels=self._kernels(spec))

    def _kernels(self, spec: DataSpec) -> Tensor | None:
        if not self.features:
            return None
        channels, *sizes = spec.shape
        shape = (self.features, channels, *(min(_KERNEL, size) for size in sizes))
        kernels = torch.randn(shape, generator=generator(0, "order-invariant features"))
        return kernels / math.sqrt(kernels[0].numel())

    def together(self, inputs_norm: Tensor, count: int) -> Tensor:
        """Return `(N, C, *S)` of the images of all epochs, `(E * N, C, *S)`, matched and averaged.

        Args:
            inputs_norm: in input space, epoch after epoch.
            count: N.
        """
        first, *others = torch.split(inputs_norm, count)
        matched = [first, *(other[_matching(first, other)] for other in others)]
        return torch.stack(matched).mean(0)


def _matching(first: Tensor, other: Tensor) -> Tensor:
    """Return the one-to-one matching of least squared error, as places in `other`."""
    cost = torch.cdist(first.flatten(1).double(), other.flatten(1).double()).square()
    return torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(first.device)


@dataclass(frozen=True, kw_only=True)
class OrderInvariance:
    """Weight times the mean squared difference between epochs of what no order changes.

    Args:
        weight: not negative.
        epochs: E.
        kernels: `(F, C, *K)` of the convolution whose rectified mean over an epoch's images is
            compared; None compares the mean of the images.
    """

    weight: float
    epochs: int
    kernels: Tensor | None

    def __call__(self, inputs_norm: Tensor, spec: DataSpec) -> Tensor:
        """See `Prior`; images of all epochs, epoch after epoch."""
        return self.residual(inputs_norm, spec).square().sum()

    def residual(self, inputs_norm: Tensor, spec: DataSpec) -> Tensor:
        """See `SquaredPrior`: every epoch's mean features less those of all, scaled."""
        seen = inputs_norm if self.kernels is None else self._features(inputs_norm, self.kernels)
        means = seen.reshape(self.epochs, -1, *seen.shape[1:]).mean(1)
        # Half the mean over all pairs of epochs is the mean over epochs of this.
        apart = (means - means.mean(0, keepdim=True)).flatten()
        return apart * math.sqrt(self.weight / apart.numel())

    def _features(self, inputs_norm: Tensor, kernels: Tensor) -> Tensor:
        convolution = _CONVOLUTIONS[inputs_norm.ndim - 2]
        return convolution(inputs_norm, kernels.to(inputs_norm)).relu()
