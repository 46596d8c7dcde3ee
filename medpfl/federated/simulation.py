"""A simulated federation: from the selected images to captures of the clients' updates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from medpfl.data import LoadedData
from medpfl.defenses import Defense
from medpfl.federated.client import Client
from medpfl.federated.server import Federation, ModelFactory
from medpfl.seeding import generator
from medpfl.source import Planned, capture_name
from medpfl.threat import ThreatModel
from medpfl.types import Capture, ServerPayload, Truth


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Clients are trained one by one, as their captures are asked for; see `CaptureSource`.

    Args:
        data: the images.
        factory: makes the global model.
        federation: who sends what to whom.
        threat: what of an update is seen.
        defense: what a client does to its update.
        seed: the run's.
        device: where the clients compute.
    """

    data: LoadedData
    factory: ModelFactory
    federation: Federation
    threat: ThreatModel
    defense: Defense
    seed: int
    device: torch.device

    @cached_property
    def plan(self) -> tuple[Planned, ...]:
        """See `CaptureSource.plan`."""
        ids = self.data.images.ids
        return tuple(
            Planned(capture_name(0, client), 0, client, tuple(ids[i] for i in batch))
            for client, batch in enumerate(batches(self.data, self.federation.batch_size))
        )

    def captures(self, leave_out: Collection[str] = ()) -> Iterator[Capture]:
        """See `CaptureSource.captures`."""
        for planned in self.plan:
            if planned.capture_id not in leave_out:
                yield self._capture(planned, self._payload(planned.capture_id))

    def truth(self, planned: Planned) -> Truth:
        """See `CaptureSource.truth`."""
        images = self.data.images
        indices = [self._positions[name] for name in planned.image_ids]
        return Truth(
            inputs=torch.stack([images.load(i) for i in indices]),
            labels=images.labels[indices],
            ids=planned.image_ids,
        )

    def example(self) -> ServerPayload:
        """See `CaptureSource.example`."""
        return self._payload(self.plan[0].capture_id)

    def _capture(self, planned: Planned, payload: ServerPayload) -> Capture:
        truth, name = self.truth(planned), planned.capture_id
        update, facts = self._client.update(truth, payload, generator(self.seed, "order", name))
        update, report = self.defense.on_update(update, generator(self.seed, "defense", name))
        observation = self.threat.observe(
            capture_id=name, payload=payload, update=update, spec=self.data.spec
        )
        facts = replace(facts, noise_scale=report.noise_scale, snr_db=report.snr_db)
        return Capture(observation, truth, facts, planned.round, planned.client)

    @cached_property
    def _payload(self) -> Callable[[str], ServerPayload]:
        spec, train = self.data.spec, self.data.train
        return self.federation.payloads(self.factory, spec, train, self.device)

    @cached_property
    def _client(self) -> Client:
        return Client(
            spec=self.data.spec,
            device=self.device,
            training=self.federation.local,
            shares_buffers=self.federation.buffers == "shared",
        )

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.data.images.ids)}


def batches(data: LoadedData, batch_size: int) -> list[tuple[int, ...]]:
    """Split the selected images into full batches, in order; a rest too small for one is left."""
    count = len(data.selected) // batch_size
    return [data.selected[k * batch_size : (k + 1) * batch_size] for k in range(count)]
