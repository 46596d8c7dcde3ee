"""The client: an honest participant that computes its update on its own images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from medpfl.defenses.norms import norm_of
from medpfl.training import Gradient, LocalTraining, Parameters, UpdateMap, mean_gradient
from medpfl.types import ClientUpdate, DataSpec, ServerPayload, Truth, UpdateFacts


@dataclass(frozen=True, kw_only=True)
class Client:
    """Compute the float32 update of a set of images.

    Args:
        spec: how pixels become the network's input.
        device: where the client computes.
        training: what it does with its images; an order of its own is not looked at.
    """

    spec: DataSpec
    device: torch.device
    training: LocalTraining = field(default_factory=LocalTraining)

    def update(
        self,
        truth: Truth,
        payload: ServerPayload,
        generator: torch.Generator | None = None,
        gradient: Gradient = mean_gradient,
        *,
        beside: bool = True,
    ) -> tuple[ClientUpdate, UpdateFacts]:
        """Compute what the client sends.

        Args:
            truth: the client's own images.
            payload: the global model as received; left unchanged, its buffers too.
            generator: draws the order of the images in every epoch; None visits them in turn.
            gradient: what each step follows.
            beside: whether the norm is that of the update without a defense inside training, which
                is computed beside it where there is one; else that of this update.

        Returns:
            The update, tensors on the client's device, and the facts about it.
        """
        inputs_norm = self.spec.normalise(truth.inputs.to(self.device))
        labels = truth.labels.to(self.device)
        images = len(labels)
        training = (
            self.training.in_turn(images)
            if generator is None
            else self.training.drawn(images, generator)
        )
        forward, buffers = payload.forward(), _leaving(payload)
        with torch.no_grad():
            logits = forward(payload.parameters, inputs_norm)
        update_map = UpdateMap.of(training)
        arguments = (
            forward,
            payload.parameters,
            inputs_norm,
            functional.one_hot(labels, logits.shape[1]).to(logits),
        )
        trained = update_map.train(
            *arguments,
            gradient=gradient,
            before_step=_Statistics(payload, buffers) if buffers else None,
            to_the_end=training.kind == "delta",
        )
        undefended = beside and gradient is not mean_gradient
        plain = update_map(*arguments) if undefended else trained.moved
        update = ClientUpdate(
            kind=training.kind,
            tensors=trained.moved
            if training.kind == "gradient"
            else _difference(trained.parameters, payload.parameters),
            num_examples=images,
            local_training=training,
            buffers=buffers,
            labels=truth.labels,
        )
        probability = logits.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
        return update, UpdateFacts(norm_of(plain), probability.cpu())


def _leaving(payload: ServerPayload) -> dict[str, Tensor] | None:
    """Copy the buffers that leave with the update, as they were sent; None where they stay."""
    if payload.batch_norm != "train_shared":
        return None
    return {name: buffer.clone() for name, buffer in payload.buffers.items()}


class _Statistics:
    """Moves BatchNorm's running statistics along, as every step of the client's does.

    Args:
        payload: the network.
        buffers: its buffers; changed.
    """

    def __init__(self, payload: ServerPayload, buffers: dict[str, Tensor]) -> None:
        self._model = payload.model.train(payload.training)
        self._buffers = buffers

    def __call__(self, parameters: Parameters, inputs_norm: Tensor) -> None:
        with torch.no_grad():
            functional_call(self._model, (dict(parameters), self._buffers), (inputs_norm,))


def _difference(after: Parameters, before: Parameters) -> dict[str, Tensor]:
    """Return what moved, in the client's own precision: the weights' rounding is part of it."""
    return {name: tensor - before[name] for name, tensor in after.items()}
