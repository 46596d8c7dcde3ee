"""Rounds under secure aggregation: the server sees the sum over their clients alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from torch import Tensor

from medpfl.aggregates import Aggregate
from medpfl.defenses import Defenses, SecureAggregation
from medpfl.defenses.norms import norm_of
from medpfl.defenses.secure_aggregation import Aggregated
from medpfl.errors import ConfigurationError
from medpfl.federated.capturing import Capturing
from medpfl.federated.sending import Sent
from medpfl.federated.server import Federation
from medpfl.seeding import generator
from medpfl.source import Planned, capture_name
from medpfl.threat import ThreatModel
from medpfl.training import UpdateMap
from medpfl.types import ClientUpdate, UpdateFacts

Sends = Callable[[int], Sent]
"""From a client's number to what it sends."""


def settled(threat: ThreatModel, defense: Defenses) -> Defenses:
    """Return the defense that makes it so where the threat model says that sums alone are seen.

    Secure aggregation among the defenses says so by itself: either setting brings the other.

    Raises:
        ConfigurationError: they contradict each other.
    """
    if defense.aggregation is not None and threat.aggregation in ("individual", "running"):
        raise ConfigurationError(
            f"threat.aggregation={threat.aggregation}, and defense=secure_aggregation leaves the "
            "server nothing but sums: leave threat.aggregation out, or the defense"
        )
    if defense.aggregation is not None or threat.aggregation != "secure":
        return defense
    own = {} if defense.is_none else dict(defense.parts)
    part = SecureAggregation()
    return Defenses({**own, part.name: part})


def sums(
    planned: Sequence[Planned], survivors: Callable[[int], Collection[int]]
) -> tuple[Planned, ...]:
    """Plan the sums over the clients of a round, where single updates were planned.

    Args:
        planned: in every round of each client as many updates.
        survivors: from a round to the clients in its sum.
    """
    found: list[Planned] = []
    for round_ in dict.fromkeys(p.round for p in planned):
        own = [
            [p for p in planned if (p.round, p.client) == (round_, client)]
            for client in survivors(round_)
        ]
        for batch, members in enumerate(zip(*own, strict=True)):
            name = capture_name(round_, None, batch if len(own[0]) > 1 else None)
            ids = tuple(image for member in members for image in member.image_ids)
            found.append(Planned(name, round_, None, ids, members=members))
    return tuple(found)


@dataclass(frozen=True)
class Summed:
    """One round's sum, and what its clients know beside.

    Args:
        update: the weighted mean, in float32, as the server has it.
        sent: of each client in it what it sent, without tensors.
        facts: for the record.
    """

    update: ClientUpdate
    sent: Mapping[int, Sent]
    facts: UpdateFacts


@dataclass(frozen=True, kw_only=True)
class SecureRounds:
    """Who is in the sum of a round, and the sum.

    Args:
        defense: how it is made.
        seed: the run's.
    """

    defense: SecureAggregation
    seed: int

    def check(
        self, federation: Federation, capturing: Capturing, sizes: Sequence[int], in_round: int
    ) -> None:
        """Refuse a federation in which no sum can be made, or which shows more than sums.

        Args:
            federation: its settings.
            capturing: what is to be captured.
            sizes: images of each client.
            in_round: clients that take part in a round.

        Raises:
            ConfigurationError: says what to change.
        """
        if capturing.clients is not None:
            raise ConfigurationError(
                f"capture.clients={list(capturing.clients)}: under secure aggregation the server "
                "sees no client's own update, only the sum over a round. Leave capture.clients "
                "out, or leave secure aggregation out to attack single updates"
            )
        if federation.batch_norm == "train_shared":
            raise ConfigurationError(
                "federation.batch_norm=train_shared sends BatchNorm's statistics beside the "
                "update, and secure aggregation masks the update alone: choose eval_public or "
                "train_private"
            )
        largest = sorted(sizes, reverse=True)[:in_round]
        if federation.batch_size is not None:
            largest = [max(size, federation.batch_size) for size in largest]
        self.defense.check_clients(largest)

    def leaving(self, clients: int) -> int:
        """Return how many of a round's clients drop out."""
        return self.defense.leaving(clients)

    def survivors(self, round_: int, clients: Sequence[int]) -> list[int]:
        """Return those of a round's clients who do not drop out."""
        stream = generator(self.seed, "dropouts", round_)
        gone = self.leaving(len(clients))
        drawn = torch.randperm(len(clients), generator=stream)[gone:]
        return [clients[place] for place in sorted(drawn.tolist())]

    def add_up(
        self,
        name: str,
        clients: Mapping[int, int],
        survivors: Collection[int],
        send: Sends,
        like: Mapping[str, Tensor],
    ) -> Summed:
        """Run the protocol: clients compute and send one after another, and no update is kept.

        Args:
            name: of the sum; the clients' secrets are called after it.
            clients: who takes part, and how many images are behind each one's update.
            survivors: those who do not drop out.
            send: what a client sends; asked for once, of those in the sum alone.
            like: the network's parameters, whose order and precision the mean has.

        Raises:
            MedpflError: an update is not finite.
        """
        numbers, updates = list(clients), _Asked(tuple(clients), send)
        result = self.defense.aggregate(
            updates,
            list(clients.values()),
            generator=generator(self.seed, "secure_aggregation", name),
            dropped=[place for place, client in enumerate(numbers) if client not in survivors],
            keep_masked=False,
        )
        mean = result.view.mean()
        update = _update(
            {name: mean[name].to(tensor) for name, tensor in like.items()},
            result,
            [one.update for one in updates.sent.values()],
        )
        return Summed(update, updates.sent, _facts(update, result, list(updates.sent.values())))


@dataclass(frozen=True)
class _Asked:
    """Clients' updates, computed as the protocol asks for them; see `Updates`."""

    clients: Sequence[int]
    send: Sends
    sent: dict[int, Sent] = field(default_factory=dict)

    def __getitem__(self, number: int) -> Mapping[str, Tensor]:
        client = self.clients[number]
        sent = self.send(client)
        self.sent[client] = replace(sent, update=replace(sent.update, tensors={}))
        return sent.update.tensors


def _update(
    mean: Mapping[str, Tensor], result: Aggregated, sent: Sequence[ClientUpdate]
) -> ClientUpdate:
    """Return the mean as an update, with what its clients know of theirs."""
    trainings = [one.local_training for one in sent if one.local_training is not None]
    orders = tuple(training.order for training in trainings if training.order is not None)
    return ClientUpdate(
        kind=sent[0].kind,
        tensors=mean,
        num_examples=result.view.num_examples,
        local_training=replace(trainings[0], order=None) if trainings else None,
        labels=torch.cat([one.labels for one in sent if one.labels is not None]),
        aggregate=Aggregate(
            clients=len(sent),
            step=result.view.step,
            sizes=tuple(one.num_examples for one in sent),
            orders=orders if len(orders) == len(sent) else None,
        ),
    )


def _facts(update: ClientUpdate, result: Aggregated, sent: Sequence[Sent]) -> UpdateFacts:
    """Return the facts of a sum, and of its clients' own facts their means."""
    aggregate, training = update.aggregate, update.local_training
    if aggregate is None or aggregate.sizes is None or training is None:
        raise ValueError("a sum made here knows its clients' sizes and training")
    unit = UpdateMap.of_clients([training] * aggregate.clients, aggregate.sizes).unit
    scales = [s.facts.noise_scale for s in sent if s.facts.noise_scale is not None]
    bytes_up = fmean(result.cost.bytes_up[number] for number in result.view.survivors)
    norm, names = norm_of(update.tensors), sent[0].facts.defense
    return UpdateFacts(
        gradient_norm=norm / unit,
        true_probability=torch.cat([s.facts.true_probability for s in sent]),
        noise_scale=fmean(scales) if scales else None,
        defense={
            **{name: fmean(s.facts.defense[name] for s in sent) for name in names},
            "sent_norm": norm,
            "bytes_sent": bytes_up,
            "survivors": aggregate.clients,
            "expansion": bytes_up / result.cost.plain_bytes,
            "aggregation_seconds": result.cost.seconds,
            "entries_clipped": sum(result.clipped.values()),
        },
    )
