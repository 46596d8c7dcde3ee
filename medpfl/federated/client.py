"""The client: an honest participant that computes its update on its own images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from medpfl.types import ClientUpdate, DataSpec, LocalTraining, ServerPayload, VictimBatch


@dataclass(frozen=True)
class ClientFacts:
    """What is true of an update, for the record; the attacker never sees it.

    Args:
        gradient_norm: Euclidean norm of the whole gradient, before any defense.
        true_probability: `(N,)` the softmax probability of each image's own class.
    """

    gradient_norm: float
    true_probability: Tensor


@dataclass(frozen=True, kw_only=True)
class FedSGDClient:
    """Send the float32 gradient of the mean cross-entropy on one batch (McMahan et al. 2017).

    Args:
        spec: how pixels become the network's input.
        device: where the client computes.
        shares_buffers: whether its buffers, such as BatchNorm's statistics, leave with the update.
    """

    spec: DataSpec
    device: torch.device
    shares_buffers: bool = False

    local_training = LocalTraining(algorithm="fedsgd")

    def update(
        self, victim: VictimBatch, payload: ServerPayload
    ) -> tuple[ClientUpdate, ClientFacts]:
        """Compute the update of one batch.

        Args:
            victim: the client's own images.
            payload: the global model as received; left unchanged, its buffers too.

        Returns:
            The update, tensors on the client's device, and the facts about it.
        """
        inputs_norm = self.spec.normalise(victim.inputs.to(self.device))
        labels = victim.labels.to(self.device)
        names = list(payload.parameters)
        parameters = {n: payload.parameters[n].detach().requires_grad_() for n in names}
        buffers = {n: b.clone() for n, b in payload.buffers.items()}
        logits = _forward(payload, parameters, buffers, inputs_norm)
        loss = functional.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, [parameters[n] for n in names])
        update = ClientUpdate(
            kind="gradient",
            tensors=dict(zip(names, gradients, strict=True)),
            num_examples=len(labels),
            buffers=buffers if self.shares_buffers else None,
            labels=victim.labels,
        )
        probability = logits.detach().softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
        return update, ClientFacts(_norm(gradients), probability.cpu())


def _forward(
    payload: ServerPayload,
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
    inputs_norm: Tensor,
) -> Tensor:
    model = payload.model.train(payload.training)
    logits: Tensor = functional_call(model, (parameters, buffers), (inputs_norm,))
    return logits


def _norm(tensors: tuple[Tensor, ...]) -> float:
    # float64: the squares of a float32 gradient of norm 1e-30 would underflow to a false zero
    return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt())
