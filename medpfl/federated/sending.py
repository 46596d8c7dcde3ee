"""What a client sends: its update, after its defenses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from medpfl.defenses import ClientState, Defenses
from medpfl.defenses.base import Inspected
from medpfl.federated.client import Client
from medpfl.seeding import generator
from medpfl.types import ClientUpdate, ServerPayload, Truth, UpdateFacts


@dataclass(frozen=True)
class Sent:
    """One exchange with the server.

    Args:
        update: what leaves the client.
        state: what its defenses keep for the next round that it takes part in.
        facts: what the client knows of the update.
    """

    update: ClientUpdate
    state: ClientState
    facts: UpdateFacts


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Compute updates and defend them, the same way in training and where they are attacked.

    Args:
        client: what every client does.
        defense: what it does against reconstruction.
        seed: the run's.
    """

    client: Client
    defense: Defenses
    seed: int

    def send(
        self,
        name: str,
        truth: Truth,
        payload: ServerPayload,
        state: ClientState,
        *,
        recorded: bool = True,
    ) -> Sent:
        """Compute what a client sends.

        Args:
            name: of the exchange; its random streams are called after it.
            truth: the client's images.
            payload: the global model as received.
            state: what its defenses have kept; not changed.
            recorded: whether anyone reads the facts; where not, no update is computed for them.
        """
        order, stream = (generator(self.seed, what, name) for what in ("order", "defense"))
        expected = self.client.training.expected(len(truth.labels))
        gradient = self.defense.gradient(payload, stream, expected)
        update, facts = self.client.update(truth, payload, order, gradient, beside=recorded)
        seen = self.defense.inspect(payload, self.client.spec)
        if seen is not None and seen.refused:
            return _nothing(update, payload, state, facts, seen)
        defended = self.defense.on_update(update, state, stream, gradient)
        facts = replace(
            facts,
            noise_scale=defended.noise_scale,
            snr_db=defended.snr_db,
            defense={**defended.facts, **_told(seen)},
        )
        return Sent(defended.update, defended.state, facts)


def _nothing(
    update: ClientUpdate,
    payload: ServerPayload,
    state: ClientState,
    facts: UpdateFacts,
    seen: Inspected,
) -> Sent:
    """Return what stands for a client that refuses: zeros, which a sum over clients holds, too.

    The facts go on telling of the update that it would have sent.
    """
    zeros = {name: torch.zeros_like(tensor) for name, tensor in update.tensors.items()}
    buffers = None if update.buffers is None else dict(payload.buffers)
    own = {"sent_norm": 0.0, "share_sent": 0.0, "bytes_sent": 0.0}
    return Sent(
        replace(update, tensors=zeros, buffers=buffers),
        state,
        replace(facts, defense={**own, **_told(seen)}),
    )


def _told(seen: Inspected | None) -> dict[str, float]:
    return {} if seen is None else {"alarms": seen.alarms, "refused": float(seen.refused)}
