"""A simulated federation: from the images of its clients to captures of their updates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from medpfl.batch_norm import IN_WORDS
from medpfl.data import LoadedData
from medpfl.defenses import Defenses
from medpfl.errors import ConfigurationError
from medpfl.federated.capturing import Capturing, each_its_own, probes, whole
from medpfl.federated.client import Client
from medpfl.federated.diary import Diary
from medpfl.federated.evaluate import Utility, evaluate
from medpfl.federated.partition import partition
from medpfl.federated.sending import Sender
from medpfl.federated.server import Federation, ModelFactory
from medpfl.federated.training import ClientStates, Rounds
from medpfl.source import Described, Planned
from medpfl.threat import ThreatModel
from medpfl.types import Capture, ServerPayload, Truth

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

    @cached_property
    def plan(self) -> tuple[Planned, ...]:
        """See `CaptureSource.plan`."""
        ids, size = self.data.images.ids, self.federation.batch_size
        self.capturing.check_rounds(self.federation.rounds)
        if not self.federation.is_shared:
            return each_its_own([ids[i] for i in self.data.selected], size or 1)
        if size is None:
            planned = whole([[ids[i] for i in shard] for shard in self.shards], self.capturing)
            return self._taking_part(planned)
        selected = dict.fromkeys(self.data.selected)
        own = [set(shard) for shard in self.shards]
        return probes(
            [[ids[i] for i in selected if i in shard] for shard in own],
            self.capturing,
            batch_size=size,
            n_images=self.n_images,
            most=_MOST_IMAGES,
        )

    @cached_property
    def shards(self) -> tuple[tuple[int, ...], ...]:
        """Of each client the indices of its images in the attacked split."""
        f = self.federation
        return partition(
            f.partition, self.data.images, clients=f.clients, alpha=f.alpha, seed=self.seed
        )

    def captures(
        self, leave_out: Collection[str] = (), diary: Diary | None = None
    ) -> Iterator[Capture]:
        """See `CaptureSource.captures`."""
        left = [planned for planned in self.plan if planned.capture_id not in leave_out]
        if not self.federation.is_shared:
            for planned in left:
                yield self._capture(planned, self._payload(planned.capture_id), {})
            return
        states: ClientStates = {}
        for round_, payload in self._models(left, diary, states):
            for planned in left:
                if planned.round == round_:
                    yield self._capture(planned, payload, states)

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
        return self._capture(self.plan[0], self.example(), {})

    def example(self) -> ServerPayload:
        """See `CaptureSource.example`."""
        return self._payload(self.plan[0].capture_id)

    def _taking_part(self, planned: tuple[Planned, ...]) -> tuple[Planned, ...]:
        """Refuse updates that are never sent."""
        for p in planned:
            if p.client not in self._rounds.participants(p.round):
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
            defense="\n".join(self.defense.describe()),
            noise=self.defense.noise,
            federation=tuple(self._in_words()),
            privacy=None if self.defense.is_none else self.defense.privacy,
        )

    def _in_words(self) -> Iterator[str]:
        f = self.federation
        if f.is_shared:
            sizes = sorted(map(len, self.shards))
            images = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
            splits = {"folder": "by folder", "dirichlet": f"dirichlet (alpha {f.alpha:g})"}
            split = splits.get(f.partition, f.partition)
            yield f"{len(sizes)} clients of {images} images, {split}; {f.rounds} rounds"
            rounds = ", ".join(str(r) for r in sorted({p.round for p in self.plan}))
            yield f"captured: {len(self.plan)} updates, after rounds {rounds}"
            if f.batch_norm != "eval_public":
                yield f"BatchNorm: {IN_WORDS[f.batch_norm]}"
        if f.local.kind == "delta":
            yield f.local.describe()

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
        rounds, payload, first = self._rounds, self.example(), 0
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

    def _capture(self, planned: Planned, payload: ServerPayload, states: ClientStates) -> Capture:
        """Capture what the client sends, or of a probe would send, with what it keeps by then.

        What a defense keeps belongs to the client, not to the images of one update: a probe adds
        what the client has kept of the rounds before, and leaves it as it is.
        """
        truth, name = self.truth(planned), planned.capture_id
        sent = self._sender.send(name, truth, payload, states.get(planned.client, {}))
        observation = self.threat.observe(
            capture_id=name,
            payload=payload,
            update=sent.update,
            spec=self.data.spec,
            parameters=self.capturing.names_of(list(payload.parameters)),
            defense=self.defense.facts(),
        )
        return Capture(observation, truth, sent.facts, planned.round, planned.client)

    @cached_property
    def _payload(self) -> Callable[[str], ServerPayload]:
        spec, train = self.data.spec, self.data.train
        return self.federation.payloads(self.factory, spec, train, self.device)

    @cached_property
    def _sender(self) -> Sender:
        client = Client(
            spec=self.data.spec,
            device=self.device,
            training=self.federation.local,
        )
        return Sender(client=client, defense=self.defense, seed=self.seed)

    @cached_property
    def _rounds(self) -> Rounds:
        return Rounds(
            images=self.data.images,
            shards=self.shards,
            sender=self._sender,
            count=self.federation.rounds,
            clients_per_round=self.federation.clients_per_round,
            lr=self.federation.local.lr,
        )

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.data.images.ids)}
