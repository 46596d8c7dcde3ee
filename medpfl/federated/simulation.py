"""A simulated federation: from the images of its clients to captures of their updates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from medpfl.data import LoadedData
from medpfl.defenses import Defenses
from medpfl.errors import ConfigurationError
from medpfl.federated.account import Account, Sending, open_account
from medpfl.federated.capturing import Capturing, each_its_own, probes, whole
from medpfl.federated.client import Client
from medpfl.federated.diary import Diary
from medpfl.federated.evaluate import Utility, evaluate
from medpfl.federated.malicious import Awaited, HonestServer, Planter, Planting, Server
from medpfl.federated.partition import partition
from medpfl.federated.public_images import public_images
from medpfl.federated.repeated import Seen
from medpfl.federated.running import RunningRounds
from medpfl.federated.secure import SecureRounds, Summed, sums
from medpfl.federated.sending import Sender, Sent
from medpfl.federated.server import Federation, ModelFactory
from medpfl.federated.training import ClientStates, Rounds
from medpfl.federated.words import in_words, planted_in_words
from medpfl.source import Described, Planned
from medpfl.threat import ThreatModel
from medpfl.types import Capture, Observation, ServerPayload, Truth

_MOST_IMAGES = 100


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Clients and their updates are simulated: the group ``source=simulation``."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Clients compute their updates one by one, as captures are asked for; see `CaptureSource`.

    Args:
        data: the images.
        factory: makes the global model.
        federation: who trains with whom.
        capturing: which updates are captured.
        threat: what of an update is seen.
        defense: what a client does against reconstruction.
        n_images: to attack, over all captures; None for what the dataset selects.
        seed: the run's.
        device: where the clients compute.
        server: what it does to the model before clients get it. In captured rounds they get what
            it makes of the global model; training goes on with the global model itself.
    """

    data: LoadedData
    factory: ModelFactory
    federation: Federation
    capturing: Capturing
    threat: ThreatModel
    defense: Defenses
    n_images: int | None
    seed: int
    device: torch.device
    server: Server = field(default_factory=HonestServer)

    @property
    def plan(self) -> tuple[Planned, ...]:
        """See `CaptureSource.plan`; what a privacy budget does not reach is not in it."""
        return self.account.planned

    @cached_property
    def account(self) -> Account:
        """What privacy the federation has, and how far its budget lets it train."""
        f = self.federation
        sending = Sending(
            training=f.local,
            sizes={n: len(shard) for n, shard in enumerate(self.shards)} if f.is_shared else {},
            rounds=f.rounds,
            # Updates by themselves have no rounds, and nobody who takes part in them.
            participants=self._crew.participants if f.is_shared else lambda _: (),
            planned=self._wanted,
            are_sent=f.is_shared and f.batch_size is None,
            order_known="local_order" in self.threat.granted,
            statistics=f.batch_norm == "train_shared",
        )
        stream = torch.Generator().manual_seed(0)
        return open_account(
            self.defense, sending, lambda: self.factory.build(self.data.spec, stream)
        )

    @cached_property
    def _wanted(self) -> tuple[Planned, ...]:
        """All updates that are to be attacked, whether or not they are reached."""
        ids, size = self.data.images.ids, self.federation.batch_size
        self.capturing.check_rounds(self.federation.rounds)
        seen = self._in_a_sum()
        if not self.federation.is_shared:
            return each_its_own([ids[i] for i in self.data.selected], size or 1)
        if size is None:
            planned = whole([[ids[i] for i in shard] for shard in self.shards], self.capturing)
        else:
            own = [set(shard) for shard in self.shards]
            selected, visited = (
                [[ids[i] for i in chosen if i in shard] for shard in own]
                for chosen in (self.data.selected, self.data.visited or self.data.selected)
            )
            planned = probes(
                selected,
                self.capturing,
                batch_size=size,
                n_images=self.n_images,
                most=_MOST_IMAGES,
                seen=seen,
                spare=visited,
            )
        if seen is not None:
            return sums(planned, self._crew.survivors)
        return self._taking_part(planned) if size is None else planned

    def _in_a_sum(self) -> int | None:
        """Return how many clients are in the sum of a round; None where there are no sums."""
        secure, f = self._secure, self.federation
        if secure is None:
            return None
        sizes = list(map(len, self.shards)) if f.is_shared else [f.batch_size or 1]
        in_round = f.clients_per_round or len(sizes)
        secure.check(f, self.capturing, sizes, in_round)
        return in_round - secure.leaving(in_round)

    @cached_property
    def shards(self) -> tuple[tuple[int, ...], ...]:
        """Of each client the indices of its images in the attacked split."""
        f = self.federation
        return partition(
            f.partition, self.data.images, clients=f.clients, alpha=f.alpha, seed=self.seed
        )

    @cached_property
    def auxiliary(self) -> Tensor | None:
        """`(A, C, *S)` in [0, 1]: what the attacker has seen elsewhere; None where that is nothing.

        One tensor for all captures: attackers learn from it once. A malicious server that assumes
        a law looks at none.
        """
        unread = not (self.server.is_honest or self.server.wants_public)
        if "auxiliary" not in self.threat.granted or unread:
            return None
        attacked = {self._positions[name] for p in self.plan for name in p.image_ids}
        return public_images(self.data, sorted(attacked), self.threat.auxiliary_images)

    def captures(
        self, leave_out: Collection[str] = (), diary: Diary | None = None
    ) -> Iterator[Capture]:
        """See `CaptureSource.captures`."""
        left = [planned for planned in self.plan if planned.capture_id not in leave_out]
        if not self.federation.is_shared:
            for planned in left:
                yield self._capture(planned, self._payload(planned.capture_id), {})
            return
        wanted, seen, states = {p.capture_id for p in left}, Seen(self.plan), ClientStates()
        made = seen.needed(wanted) if self._remembers else left
        for round_, payload in self._models(made, diary, states):
            for planned in made:
                if planned.round != round_:
                    continue
                capture = self._capture(planned, payload, states, seen.of(planned))
                if self._remembers:
                    seen.add(planned, capture.observation)
                if planned.capture_id in wanted:
                    yield capture

    def truth(self, planned: Planned) -> Truth:
        """See `CaptureSource.truth`."""
        images = self.data.images
        indices = [self._positions[name] for name in planned.image_ids]
        return Truth(
            inputs=torch.stack([images.load(i) for i in indices]),
            labels=images.labels[indices],
            ids=planned.image_ids,
            geometry=images.geometry(indices),
        )

    def sample(self) -> Capture:
        """See `CaptureSource.sample`."""
        payload = self._payload(self.plan[0].capture_id)
        alone = self._capture(self.plan[0], payload, {})
        if not self._remembers:
            return alone
        before = (alone.observation,) * (Seen(self.plan).most() - 1)
        return self._capture(self.plan[0], payload, {}, before)

    def example(self) -> ServerPayload:
        """See `CaptureSource.example`."""
        first = self.plan[0]
        return self._planted(first, self._payload(first.capture_id)).payload

    def _taking_part(self, planned: tuple[Planned, ...]) -> tuple[Planned, ...]:
        """Refuse updates that are never sent."""
        for p in planned:
            if p.client not in self._crew.participants(p.round):
                raise ConfigurationError(
                    f"client {p.client} takes no part in round {p.round} "
                    f"(federation.clients_per_round={self.federation.clients_per_round}): leave it "
                    "out of capture.clients, or set federation.batch_size, for what it would send"
                )
        return planned

    def describe(self) -> Described:
        """See `CaptureSource.describe`."""
        return Described(
            model=getattr(self.factory, "label", type(self.factory).__name__),
            defense="\n".join(self.account.defense.describe()),
            noise=self.account.defense.noise,
            federation=tuple(self._in_words()),
            privacy=self.account.privacy,
            stopped=self.account.stopped,
            # No attack matches through what clients did before their sum was taken.
            unaware=None if self.sees_sums else self.threat.unaware(self.account.defense.facts()),
            undefended=self.defense.is_none,
        )

    def _in_words(self) -> Iterator[str]:
        first, largest = self.plan[0], max(self.plan, key=lambda planned: planned.images)
        told = self.server.describe(self._awaited(largest))
        if told is not None:
            measured = self._planted(first, self._payload(first.capture_id)).measured
            yield from planted_in_words(told, self.rows_planted, measured)
        shards = self.shards if self.federation.is_shared else ()
        yield from in_words(self.federation, shards, self.plan, summed=self.sees_sums)

    def _models(
        self, left: list[Planned], diary: Diary | None, states: ClientStates | None = None
    ) -> Iterator[tuple[int, ServerPayload]]:
        """Yield the global model of every round, from where a diary lets it go on.

        Args:
            left: what is to be captured.
            diary: where rounds are noted.
            states: filled with what clients keep, as it is whenever a model is yielded.
        """
        states = {} if states is None else states
        rounds, first = self._rounds, 0
        payload = self._payload(self.plan[0].capture_id)
        if diary is not None:
            known = diary.latest(min((p.round for p in left), default=rounds.count))
            if known is not None:
                first = known.round
                states.update(known.states)
                payload = replace(
                    payload,
                    # In the network's order, which attacks rely on, whatever a file's is.
                    parameters={n: known.parameters[n] for n in payload.parameters},
                    buffers={n: known.buffers[n] for n in payload.buffers},
                )
        told = None if diary is None else lambda number: diary.begins(number, rounds.count)
        for round_, model in rounds.models(payload, states, first, told):
            if diary is not None:
                diary.ended(round_, model, self._utility(model), states)
            yield round_, model

    def _utility(self, payload: ServerPayload) -> Utility | None:
        if self.data.held_out is None:
            return None
        return evaluate(
            payload.model,
            payload.parameters,
            payload.buffers,
            self.data.held_out,
            spec=self.data.spec,
            device=self.device,
        )

    @property
    def _remembers(self) -> bool:
        """Whether the attacker may know which updates are of the same images."""
        return "same_images" in self.threat.granted

    def _capture(
        self,
        planned: Planned,
        payload: ServerPayload,
        states: ClientStates,
        before: Sequence[Observation] = (),
    ) -> Capture:
        """Capture what the client sends, or of a probe would send, with what it keeps by then.

        What a defense keeps belongs to the client, not to the images of one update: a probe adds
        what the client has kept of the rounds before, and leaves it as it is.
        """
        planting = self._planted(planned, payload)
        payload = planting.payload
        if self._secure is None:
            sent = self._sent(planned, payload, states)
            update, facts = sent.update, sent.facts
        else:
            summed = self._summed(self._secure, planned, planting, states)
            update, facts = summed.update, summed.facts
        of_defense = self.account.defense.facts()
        observation = self.threat.observe(
            capture_id=planned.capture_id,
            payload=payload,
            update=update,
            spec=self.data.spec,
            parameters=self.capturing.names_of(list(payload.parameters)),
            defense=of_defense,
            auxiliary=self.auxiliary,
            same_images=before,
            planted=planting.secret,
        )
        return Capture(
            observation,
            self.truth(planned),
            facts,
            planned.round,
            planned.client,
            training=update.local_training,
            defense=of_defense,
        )

    def _sent(self, planned: Planned, payload: ServerPayload, states: ClientStates) -> Sent:
        """Return what a client sends of the images of a planned update."""
        kept = {} if planned.client is None else states.get(planned.client, {})
        return self._sender.send(planned.capture_id, self.truth(planned), payload, kept)

    def _summed(
        self,
        secure: SecureRounds | RunningRounds,
        planned: Planned,
        planting: Planting,
        states: ClientStates,
    ) -> Summed:
        """Return the sum of what the members of a planned one send, by the protocol."""
        members = {m.client: m for m in planned.members if m.client is not None}
        places = {client: place for place, client in enumerate(members)}
        size = self.federation.batch_size
        return secure.add_up(
            planned.capture_id,
            {
                client: len(self.shards[client]) if size is None else size
                for client in self._rounds.participants(planned.round)
            },
            members,
            lambda client: self._sent(members[client], planting.sent(places[client]), states),
            planting.payload.parameters,
        )

    @property
    def sees_sums(self) -> bool:
        """Whether what is captured is of several clients at once."""
        return self._secure is not None

    @property
    def rows_planted(self) -> int:
        """Parameters that the server adds to the model of a client, at most."""
        largest = max(self.plan, key=lambda planned: len(planned.members))
        payload = self._payload(self.plan[0].capture_id)
        return self.server.entries(payload, self.data.spec, self._awaited(largest))

    def _planted(self, planned: Planned, payload: ServerPayload) -> Planting:
        """Return what the server makes of a global model before clients get it."""
        return self._planter(payload, self._awaited(planned))

    def _awaited(self, planned: Planned) -> Awaited:
        """Return what the server knows of an update beforehand."""
        return Awaited(
            images=planned.images,
            clients=max(1, len(planned.members)),
            training=self.federation.local,
        )

    @cached_property
    def _planter(self) -> Planter:
        return Planter(self.server, self.data.spec, lambda: self.auxiliary, self.seed)

    @cached_property
    def _payload(self) -> Callable[[str], ServerPayload]:
        spec, train = self.data.spec, self.data.train
        return self.federation.payloads(self.factory, spec, train, self.device)

    @cached_property
    def _sender(self) -> Sender:
        return self._sending(self.account.defense)

    def _sending(self, defense: Defenses) -> Sender:
        client = Client(spec=self.data.spec, device=self.device, training=self.federation.local)
        return Sender(client=client, defense=defense, seed=self.seed)

    @cached_property
    def _rounds(self) -> Rounds:
        return replace(self._crew, sender=self._sender, count=self.account.rounds)

    @cached_property
    def _crew(self) -> Rounds:
        """Who takes part, and when; what that costs in privacy is not known yet."""
        return Rounds(
            images=self.data.images,
            shards=self.shards if self.federation.is_shared else (),
            sender=self._sending(self.defense),
            count=self.federation.rounds,
            clients_per_round=self.federation.clients_per_round,
            lr=self.federation.local.lr,
            secure=self._secure,
        )

    @cached_property
    def _secure(self) -> SecureRounds | RunningRounds | None:
        if self.threat.aggregation == "running":
            return RunningRounds()
        part = self.defense.aggregation
        return None if part is None else SecureRounds(defense=part, seed=self.seed)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.data.images.ids)}
