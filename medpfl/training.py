"""From images to what the server sees: one pure function, whoever calls it.

Clients call an `UpdateMap`, attacks invert it, bounds differentiate it. Nothing else knows how an
update comes about, so that they agree by construction: FedSGD is the `UpdateMap` of one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from medpfl.directions import AdamDirection, MomentumDirection
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range, Rate

Parameters = Mapping[str, Tensor]
Forward = Callable[[Parameters, Tensor], Tensor]
"""From parameters and images `(N, C, *S)` in input space to logits `(N, K)`."""
Batches = tuple[tuple[int, ...], ...]
"""Of each step the images that it takes, as positions among the client's N."""

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "algorithm": ("fedsgd", "fedavg"),
    "optimizer": ("sgd", "adam"),
    "sampling": ("epochs", "poisson"),
}


@checked("federation.local")
@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """What a client does between two exchanges with the server (McMahan et al. 2017, Alg. 1).

    Args:
        algorithm: ``fedsgd``: it sends the gradient of the mean cross-entropy of all its images.
            ``fedavg``: it trains, and sends its weights after minus those before.
        epochs: passes over its images.
        batch_size: images a step; None takes all at once. A rest is a smaller step.
        optimizer: ``sgd`` or ``adam``, made anew in every round.
        lr: learning rate; of ``fedsgd``, the server's.
        momentum: of ``sgd``, in [0, 1).
        shuffle: whether every epoch visits the images in another order; else in turn.
        sampling: ``epochs``: every epoch visits each image once. ``poisson``: as many steps, of
            which each takes each image by itself with probability ``batch_size`` over their
            number, so that a step may take more images, fewer or none (Abadi et al. 2016, Alg. 1);
            what DP-SGD's account of samples is about.
        order: the images of each step, for whoever knows them.
    """

    algorithm: Literal["fedsgd", "fedavg"] = "fedsgd"
    epochs: Annotated[int, Range(1, 10_000)] = 1
    batch_size: Annotated[int, Range(1, 1_000_000)] | None = None
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Rate = 0.1
    momentum: Annotated[float, Range(0, 1, "[)")] = 0.0
    shuffle: bool = True
    sampling: Literal["epochs", "poisson"] = "epochs"
    order: Batches | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigurationError(
                    f"federation.local.{name}={getattr(self, name)}: choose {' or '.join(choices)}"
                )
        if self.algorithm == "fedsgd":
            self._refuse_training()
        if self.sampling == "poisson" and (self.batch_size is None or not self.shuffle):
            raise ConfigurationError(
                "federation.local.sampling=poisson draws the images of every step anew, "
                "federation.local.batch_size of them in the mean: set it to a number, and "
                "federation.local.shuffle=true"
            )
        if self.optimizer == "adam" and self.momentum:
            raise ConfigurationError(
                f"federation.local.momentum={self.momentum}: adam has momentum of its own. "
                "Choose federation.local.optimizer=sgd, or federation.local.momentum=0"
            )

    def _refuse_training(self) -> None:
        plain = {"epochs": 1, "batch_size": None, "optimizer": "sgd", "momentum": 0.0}
        plain |= {"sampling": "epochs"}
        for name, value in plain.items():
            if getattr(self, name) != value:
                raise ConfigurationError(
                    f"federation.local.{name}={getattr(self, name)}: under FedSGD a client sends "
                    "one gradient and takes no steps of its own. Choose federation=fedavg"
                )

    @property
    def kind(self) -> Literal["gradient", "delta"]:
        """What is sent; see `ClientUpdate`."""
        return "gradient" if self.algorithm == "fedsgd" else "delta"

    def describe(self) -> str:
        """Return what the client does in words."""
        if self.algorithm == "fedsgd":
            return "FedSGD: one gradient of all images"
        poisson = self.sampling == "poisson"
        kind = "Poisson samples of about" if poisson else "batches of"
        batch = "all images at once" if self.batch_size is None else f"{kind} {self.batch_size}"
        momentum = f", momentum {self.momentum:g}" if self.momentum else ""
        turn = "" if self.shuffle else ", in turn"
        epochs = f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"
        return f"FedAvg: {epochs} of {batch}, {self.optimizer} with lr {self.lr:g}{momentum}{turn}"

    def steps(self, images: int) -> int:
        """Return how many steps a client with so many images takes."""
        return self.epochs * -(-images // (self.batch_size or images))

    def expected(self, images: int) -> int:
        """Return how many images a step of such a client takes: in the mean, if these are drawn."""
        return min(self.batch_size or images, images)

    def rate(self, images: int) -> float:
        """Return the probability with which a Poisson sample takes an image."""
        return self.expected(images) / images

    def drawn(self, images: int, generator: torch.Generator) -> LocalTraining:
        """Return the same with an order: drawn anew for every epoch or step, where it shuffles."""
        if self.sampling == "poisson":
            shape = (self.steps(images), images)
            taken = torch.rand(shape, dtype=torch.float64, generator=generator) < self.rate(images)
            return replace(self, order=tuple(tuple(t.nonzero()[:, 0].tolist()) for t in taken))
        if not self.shuffle:
            return self.in_turn(images)
        epochs = [torch.randperm(images, generator=generator).tolist() for _ in range(self.epochs)]
        return replace(self, order=self._batches(epochs, images))

    def in_turn(self, images: int) -> LocalTraining:
        """Return the same with the images in the order they are numbered in, every epoch.

        Of Poisson samples, these are steps of the expected size.
        """
        return replace(self, order=self._batches([list(range(images))] * self.epochs, images))

    def _batches(self, epochs: Sequence[list[int]], images: int) -> Batches:
        size = self.batch_size or images
        if size >= images:  # a step that takes all takes them as they come
            return (tuple(range(images)),) * self.epochs
        return tuple(
            tuple(epoch[first : first + size])
            for epoch in epochs
            for first in range(0, images, size)
        )


class Gradient(Protocol):
    """The gradient that one step follows."""

    def __call__(
        self, forward: Forward, parameters: Parameters, inputs_norm: Tensor, probabilities: Tensor
    ) -> dict[str, Tensor]:
        """Return `{name: P_i}` for images `(n, C, *S)` and their label probabilities `(n, K)`."""
        ...


def mean_gradient(
    forward: Forward, parameters: Parameters, inputs_norm: Tensor, probabilities: Tensor
) -> dict[str, Tensor]:
    """Return the gradient of the mean cross-entropy over the images; see `Gradient`.

    Of no images, which a Poisson sample may be, it is zero.
    """
    if not len(inputs_norm):
        return {name: torch.zeros_like(p) for name, p in parameters.items()}

    def loss(weights: Parameters) -> Tensor:
        logits = forward(weights, inputs_norm)
        return -(probabilities * logits.log_softmax(1)).sum(1).mean()

    gradient: dict[str, Tensor] = grad(loss)(dict(parameters))
    return gradient


@dataclass(frozen=True)
class Trained:
    """What local training leaves.

    Args:
        parameters: the weights after the last step; empty where nobody wants them.
        moved: the mean of all steps, each divided by minus the learning rate: what the update says
            in the unit of a gradient. Of one SGD step, it is the gradient, to the bit.
    """

    parameters: dict[str, Tensor]
    moved: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one of the clients in a weighted mean has done.

    Args:
        images: behind its update: its weight.
        steps: that it took.
    """

    images: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class UpdateMap:
    """The function from a client's images to its update, differentiable in the images.

    Or from the images of several clients, one after another, to the mean of their updates weighted
    by images, which is all that a server under secure aggregation sees.

    Args:
        batches: the images of each step; None is one step on all of them. Of several clients, the
            steps of one after those of another, as positions among the images of all.
        lr: learning rate, positive.
        momentum: of SGD, as ``torch.optim.SGD`` has it.
        adam: whether steps are those of ``torch.optim.Adam`` instead.
        clients: of several clients each one's share; each begins at the weights that were sent.
            None of them is one client.
    """

    batches: Batches | None = None
    lr: float = 1.0
    momentum: float = 0.0
    adam: bool = False
    clients: tuple[Share, ...] = ()

    @classmethod
    def of(cls, training: LocalTraining) -> UpdateMap:
        """Return the map of a client that trains so; an unknown order is that of the images."""
        if training.algorithm == "fedsgd":
            return cls()
        return cls(
            batches=training.order,
            lr=training.lr,
            momentum=training.momentum,
            adam=training.optimizer == "adam",
        )

    @classmethod
    def of_clients(cls, trainings: Sequence[LocalTraining], sizes: Sequence[int]) -> UpdateMap:
        """Return the map of several clients' images to the mean of their updates.

        Args:
            trainings: of each client; the same but for the order of its images.
            sizes: images of each.
        """
        batches, shares, first = list[tuple[int, ...]](), list[Share](), 0
        for training, size in zip(trainings, sizes, strict=True):
            own = training.order or training.in_turn(size).order or ()
            batches += [tuple(first + image for image in batch) for batch in own]
            shares.append(Share(images=size, steps=len(own)))
            first += size
        return replace(cls.of(trainings[0]), batches=tuple(batches), clients=tuple(shares))

    @property
    def steps(self) -> int:
        """How many steps are taken, by all clients together."""
        return 1 if self.batches is None else len(self.batches)

    @property
    def unit(self) -> float:
        """How much of a difference of weights one unit of a gradient is: learning rate times steps.

        Of several clients, their mean steps, weighted by images.
        """
        if not self.clients:
            return self.lr * self.steps
        images = sum(client.images for client in self.clients)
        return self.lr * (sum(c.images * c.steps for c in self.clients) / images)

    def is_one_gradient(self, images: int) -> bool:
        """Say whether the update is the plain gradient of all the images' mean loss.

        Of several clients that take one step each it is, unless images of one batch act on each
        other, as under BatchNorm in train mode.
        """
        everything = (tuple(range(images)),)
        alone = bool(self.clients) and all(client.steps == 1 for client in self.clients)
        return not self.adam and (alone or self.batches in (None, everything))

    def __call__(
        self,
        forward: Forward,
        parameters: Parameters,
        inputs_norm: Tensor,
        probabilities: Tensor,
        *,
        gradient: Gradient = mean_gradient,
        order: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the update in the unit of a gradient, `{name: P_i}`; see `Trained.moved`.

        Args:
            forward: the network.
            parameters: as the server sent them.
            inputs_norm: `(N, C, *S)` in the client's input space.
            probabilities: `(N, K)` of the labels.
            gradient: what each step follows.
            order: see `train`.
        """
        return self.train(
            forward,
            parameters,
            inputs_norm,
            probabilities,
            gradient=gradient,
            order=order,
            to_the_end=False,
        ).moved

    def train(
        self,
        forward: Forward,
        parameters: Parameters,
        inputs_norm: Tensor,
        probabilities: Tensor,
        *,
        gradient: Gradient = mean_gradient,
        before_step: Callable[[Parameters, Tensor], None] | None = None,
        order: Tensor | None = None,
        to_the_end: bool = True,
    ) -> Trained:
        """Train as a client does.

        Args:
            forward: the network.
            parameters: as the server sent them.
            inputs_norm: `(N, C, *S)`.
            probabilities: `(N, K)`.
            gradient: what each step follows.
            before_step: called with the weights and the images of every step.
            order: int64, all steps' images one after another, in place of those of `batches`,
                whose sizes it keeps; a tensor, so that rows of one evaluation may differ.
            to_the_end: whether the weights after the last step are wanted. Where not, they are not
                made, and no parameters are returned: of one step, a copy of the network less.
        """
        taken = self._taken_by_steps(order)
        counts = [client.steps for client in self.clients] or [len(taken)]
        trained, first = list[Trained](), 0
        for count in counts:
            weights = dict(parameters)
            direction = AdamDirection() if self.adam else MomentumDirection(self.momentum)
            moved: dict[str, Tensor] = {}
            for number, batch in enumerate(taken[first : first + count], start=1):
                images, labels = (_taken(t, batch) for t in (inputs_norm, probabilities))
                if before_step is not None and len(images):
                    before_step(weights, images)
                step = direction(gradient(forward, weights, images, labels))
                # As torch's optimisers have it, to the last bit.
                if to_the_end or number < count:
                    weights = {n: torch.add(w, step[n], alpha=-self.lr) for n, w in weights.items()}
                moved = {n: s if not moved else moved[n] + s for n, s in step.items()}
            if count > 1:
                moved = {n: m / count for n, m in moved.items()}
            trained.append(Trained(weights if to_the_end else {}, moved))
            first += count
        return self._mean(trained) if self.clients else trained[0]

    def _mean(self, trained: Sequence[Trained]) -> Trained:
        """Return the mean over clients, weighted by images; of what moved, by steps, too."""
        weights = [client.images for client in self.clients]
        ways = [client.images * client.steps for client in self.clients]
        return Trained(
            weighted_mean([client.parameters for client in trained], weights),
            weighted_mean([client.moved for client in trained], ways),
        )

    def _taken_by_steps(
        self, order: Tensor | None
    ) -> Sequence[tuple[int, ...] | Tensor] | tuple[None]:
        if self.batches is None:
            return (None,)
        return self.batches if order is None else torch.split(order, [len(b) for b in self.batches])


def weighted_mean(updates: Sequence[Parameters], weights: Sequence[int]) -> dict[str, Tensor]:
    """Return the weighted mean of several `{name: P_i}`, differentiable in them.

    Args:
        updates: one a client, of the same names and shapes.
        weights: positive.
    """
    total = sum(weights)
    mean = {name: tensor * (weights[0] / total) for name, tensor in updates[0].items()}
    for update, weight in zip(updates[1:], weights[1:], strict=True):
        mean = {name: tensor + update[name] * (weight / total) for name, tensor in mean.items()}
    return mean


def _taken(tensor: Tensor, batch: tuple[int, ...] | Tensor | None) -> Tensor:
    if isinstance(batch, Tensor):
        return tensor[batch]
    if batch is None or batch == tuple(range(len(tensor))):
        return tensor
    return tensor[list(batch)]


def forward_of(model: nn.Module, buffers: Parameters) -> Forward:
    """Return a network as a function of its parameters and images.

    Args:
        model: in the mode in which it is to run, without statistics that it would change.
        buffers: `{name: shape}`.
    """

    def forward(parameters: Parameters, inputs_norm: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, (dict(parameters), dict(buffers)), (inputs_norm,))
        return logits

    return forward
