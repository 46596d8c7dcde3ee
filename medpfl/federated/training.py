"""Rounds of training: the global model goes out, updates come back, their mean moves it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from medpfl.data.dataset import ImageSet
from medpfl.defenses import ClientState
from medpfl.federated.aggregate import WeightedMean
from medpfl.federated.running import RunningRounds
from medpfl.federated.secure import SecureRounds, Sends
from medpfl.federated.sending import Sender, Sent
from medpfl.seeding import generator
from medpfl.source import capture_name
from medpfl.types import ServerPayload, Truth

ClientStates = dict[int, ClientState]
"""What the defenses of each client keep, by its number; of a client that keeps nothing, nothing."""

# Images that are kept decoded between rounds; beyond, they are read again in every round.
_KEPT_BYTES = 2 * 10**9


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Train the global model as FedSGD or FedAvg does (McMahan et al. 2017, Alg. 1).

    Args:
        images: the split that is shared out.
        shards: of each client the indices of its images.
        sender: what every client does, its defense included.
        count: rounds.
        clients_per_round: clients drawn in each round; None takes all.
        lr: of the server, for FedSGD: what it multiplies the mean gradient by.
        secure: how updates are added up; None where the server sees each of them.
    """

    images: ImageSet
    shards: Sequence[Sequence[int]]
    sender: Sender
    count: int
    clients_per_round: int | None
    lr: float
    secure: SecureRounds | RunningRounds | None = None
    _read: dict[int, Truth] = field(default_factory=dict, init=False, repr=False)

    def models(
        self,
        payload: ServerPayload,
        states: ClientStates,
        first: int = 0,
        told: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, ServerPayload]]:
        """Yield the global model before the first round and after every round.

        Args:
            payload: what is sent in the first of them.
            states: what clients keep by then; whenever a model is yielded, as it is by then.
            first: rounds that it was trained for.
            told: called with the number of every round that begins.
        """
        yield first, payload
        for round_ in range(first, self.count):
            if told is not None:
                told(round_ + 1)
            payload = self._after(round_, payload, states)
            yield round_ + 1, payload

    def participants(self, round_: int) -> list[int]:
        """Return the clients that take part in a round."""
        if self.clients_per_round is None:
            return list(range(len(self.shards)))
        stream = generator(self.sender.seed, "participants", round_)
        drawn = torch.randperm(len(self.shards), generator=stream)[: self.clients_per_round]
        return sorted(drawn.tolist())

    def survivors(self, round_: int) -> list[int]:
        """Return the clients whose updates arrive in a round."""
        clients = self.participants(round_)
        return clients if self.secure is None else self.secure.survivors(round_, clients)

    def _after(self, round_: int, payload: ServerPayload, states: ClientStates) -> ServerPayload:
        def send(number: int) -> Sent:
            name, truth = capture_name(round_, number), self._truth(number)
            kept = states.get(number, {})
            return self.sender.send(name, truth, payload, kept, recorded=False)

        if self.secure is None:
            mean, own = self._plain(round_, send, states)
        else:
            mean, own = self._summed(self.secure, round_, send, states, payload), {}
        scale = -self.lr if self.sender.client.training.kind == "gradient" else 1.0
        parameters = {n: payload.parameters[n] + scale * t for n, t in mean.items()}
        return replace(payload, parameters=parameters, buffers={**payload.buffers, **own})

    def _plain(
        self, round_: int, send: Sends, states: ClientStates
    ) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
        """Return the mean of what clients send, and of their statistics where these leave."""
        moved, statistics = WeightedMean(), WeightedMean()
        for number in self.participants(round_):
            sent = send(number)
            if sent.state:
                states[number] = sent.state
            update = sent.update
            moved.add(update.tensors, update.num_examples)
            floats = {n: b for n, b in (update.buffers or {}).items() if b.is_floating_point()}
            if floats:
                statistics.add(floats, update.num_examples)
        return moved.mean(), statistics.mean() if statistics.clients else {}

    def _summed(
        self,
        secure: SecureRounds | RunningRounds,
        round_: int,
        send: Sends,
        states: ClientStates,
        payload: ServerPayload,
    ) -> Mapping[str, Tensor]:
        """Return the mean of what arrives; whoever drops out has not trained, and keeps nothing."""
        summed = secure.add_up(
            capture_name(round_, None),
            {number: len(self.shards[number]) for number in self.participants(round_)},
            self.survivors(round_),
            send,
            payload.parameters,
        )
        states.update({number: sent.state for number, sent in summed.sent.items() if sent.state})
        return summed.update.tensors

    def _truth(self, number: int) -> Truth:
        if number in self._read:
            return self._read[number]
        indices = list(self.shards[number])
        truth = Truth(
            inputs=torch.stack([self.images.load(i) for i in indices]),
            labels=self.images.labels[indices],
            ids=tuple(self.images.ids[i] for i in indices),
        )
        kept = sum(t.inputs.nbytes for t in self._read.values())
        if kept + truth.inputs.nbytes <= _KEPT_BYTES:
            self._read[number] = truth
        return truth
