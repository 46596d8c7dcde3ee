"""Rounds as the code of MIC adds them up: a running update, which is no mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medpfl.aggregates import Aggregate
from medpfl.defenses.norms import norm_of
from medpfl.errors import ConfigurationError
from medpfl.federated.capturing import Capturing
from medpfl.federated.secure import Sends, Summed
from medpfl.federated.sending import Sent
from medpfl.federated.server import Federation
from medpfl.types import ClientUpdate, UpdateFacts


@dataclass(frozen=True)
class RunningRounds:
    """Move an aggregate by each client's update in turn: a to a + (u - a) / n, beginning at zero.

    Later clients weigh more, and all of them 1 - (1 - 1/n)^n together, see
    `medpfl.metrics.mic.mic_weights`: 0.68 of four. A read-out divides a row's gradient by its
    bias', so that what is left of it is that clients' images are mixed in unequal parts.

    "Client Security Alone Fails in Federated Learning: 2D and 3D Attack Insights", its authors'
    code: ``threat.aggregation=running``, for `conf/paper/mic`.
    """

    def check(
        self, federation: Federation, capturing: Capturing, sizes: Sequence[int], in_round: int
    ) -> None:
        """Refuse what shows more than the aggregate; see `SecureRounds.check`."""
        if capturing.clients is not None:
            raise ConfigurationError(
                f"capture.clients={list(capturing.clients)}: under threat.aggregation=running the "
                "server looks at the aggregate of a round alone. Leave capture.clients out"
            )

    def leaving(self, clients: int) -> int:
        """Return how many of a round's clients drop out: none."""
        return 0

    def survivors(self, round_: int, clients: Sequence[int]) -> list[int]:
        """Return those of a round's clients whose updates arrive: all."""
        return list(clients)

    def add_up(
        self,
        name: str,
        clients: Mapping[int, int],
        survivors: Collection[int],
        send: Sends,
        like: Mapping[str, Tensor],
    ) -> Summed:
        """Return the aggregate; no update is kept. See `SecureRounds.add_up`."""
        total = {key: torch.zeros_like(tensor) for key, tensor in like.items()}
        sent = dict[int, Sent]()
        for client in clients:
            own = send(client)
            for key, tensor in own.update.tensors.items():
                total[key] += (tensor - total[key]) / len(clients)
            sent[client] = replace(own, update=replace(own.update, tensors={}))
        updates = [one.update for one in sent.values()]
        first = updates[0]
        update = ClientUpdate(
            kind=first.kind,
            tensors=total,
            num_examples=sum(one.num_examples for one in updates),
            local_training=first.local_training and replace(first.local_training, order=None),
            labels=torch.cat([one.labels for one in updates if one.labels is not None]),
            aggregate=Aggregate(
                clients=len(updates), sizes=tuple(one.num_examples for one in updates)
            ),
        )
        probability = torch.cat([one.facts.true_probability for one in sent.values()])
        return Summed(update, sent, UpdateFacts(norm_of(total), probability))
