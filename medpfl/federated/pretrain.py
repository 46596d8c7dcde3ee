"""What the server did to its global model before the attacked round."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from medpfl.seeding import generator
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range, Rate, Seed
from medpfl.types import DataSpec

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")


class TrainingImages(Protocol):
    """The training split, class by class: what pretraining reads of a dataset."""

    @property
    def labels(self) -> Tensor:
        """`(n,)` int64."""
        ...

    def load(self, index: int) -> Tensor:
        """Return image `(C, *S)` in [0, 1]."""
        ...


class Pretraining(Protocol):
    """Trains the freshly initialised global model, in place."""

    def __call__(
        self, model: nn.Module, images: TrainingImages, spec: DataSpec, device: torch.device = _CPU
    ) -> None:
        """Train `model`, given on the CPU, on `images`; `device` is where it may compute."""
        ...


@dataclass(frozen=True, kw_only=True)
class NoPretraining:
    """Attack the model as it was initialised."""

    def __call__(
        self, model: nn.Module, images: TrainingImages, spec: DataSpec, device: torch.device = _CPU
    ) -> None:
        """Do nothing."""


@checked("federation.pretrain")
@dataclass(frozen=True, kw_only=True)
class AdamSteps:
    """Take Adam steps on consecutive batches of the unshuffled training split.

    The published CPL experiment takes one step on the second batch of 32; because its images
    stand in class order, that step pushes every image towards one class.

    Args:
        steps: steps to take; 0 leaves the model as it was initialised.
        lr: Adam's learning rate.
        batch_size: images in a batch.
        first_batch: number of the first batch used, counted from 0.
    """

    steps: Annotated[int, Range(0, 1_000_000)] = 1
    lr: Rate = 0.01
    batch_size: Annotated[int, Range(1, 100_000)] = 32
    first_batch: Annotated[int, Range(0, 1_000_000)] = 1

    def __call__(
        self, model: nn.Module, images: TrainingImages, spec: DataSpec, device: torch.device = _CPU
    ) -> None:
        """Train `model` on `images`; a split too short for a batch trains on what it has.

        On the CPU whatever the device, so that the attacked network is the same on every machine.
        """
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        model.train()
        for step in range(self.steps):
            index = self._batch(step, len(images.labels))
            inputs = spec.normalise(torch.stack([images.load(i) for i in index]))
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), images.labels[index])
            torch.autograd.backward(loss)
            optimizer.step()

    def _batch(self, step: int, available: int) -> list[int]:
        first = (self.first_batch + step) * self.batch_size
        index = list(range(first, min(first + self.batch_size, available)))
        if index:
            return index
        index = list(range(max(0, available - self.batch_size), available))
        logger.warning(
            "pretraining: the training split has %d images, too few for batch number %d of %d; "
            "the last %d images are used instead",
            available,
            self.first_batch + step + 1,
            self.batch_size,
            len(index),
        )
        return index


@checked("federation.pretrain")
@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Train on the shuffled training split by stochastic gradient descent with momentum.

    Args:
        epochs: passes over the split; 0 leaves the model as it was initialised.
        lr: learning rate; positive.
        batch_size: images in a batch; a rest too small for one is left to the next epoch's order.
        momentum: in [0, 1).
        seed: of the order in which images are visited.
    """

    epochs: Annotated[int, Range(0, 10_000)] = 1
    lr: Rate = 0.01
    batch_size: Annotated[int, Range(1, 100_000)] = 32
    momentum: Annotated[float, Range(0, 1, "[)")] = 0.9
    seed: Seed = 50

    def __call__(
        self, model: nn.Module, images: TrainingImages, spec: DataSpec, device: torch.device = _CPU
    ) -> None:
        """Train `model` on `images` on the device; BatchNorm's statistics follow along."""
        model.to(device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum)
        for epoch in range(self.epochs):
            order = self._batches(epoch, len(images.labels))
            steps = []
            for index in order:
                inputs = torch.stack([images.load(i) for i in index]).to(device)
                labels = images.labels[index].to(device)
                steps.append(_step(model, optimizer, spec.normalise(inputs), labels))
            logger.info(
                "pretraining: epoch %d of %d, mean loss %.4f, accuracy while training %.1f %%",
                epoch + 1,
                self.epochs,
                sum(loss for loss, _ in steps) / len(steps),
                100 * sum(right for _, right in steps) / len(steps),
            )

    def _batches(self, epoch: int, available: int) -> list[list[int]]:
        stream = generator(self.seed, "finetune", epoch)
        order: list[int] = torch.randperm(available, generator=stream).tolist()
        size = min(self.batch_size, available)
        return [order[first : first + size] for first in range(0, available - size + 1, size)]


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs_norm: Tensor, labels: Tensor
) -> tuple[float, float]:
    """Take one step; return the loss and the share of right answers before it."""
    optimizer.zero_grad()
    logits = model(inputs_norm)
    loss = functional.cross_entropy(logits, labels)
    torch.autograd.backward(loss)
    optimizer.step()
    return float(loss.detach()), float((logits.argmax(1) == labels).double().mean())
