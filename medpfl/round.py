"""One round: from the selected images to what the attacker observes of each update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch

from medpfl.data import LoadedData
from medpfl.errors import DataError
from medpfl.experiment import Experiment
from medpfl.federated import FedSGDClient
from medpfl.metrics import VictimFacts
from medpfl.report.victim_file import VictimRecord
from medpfl.seeding import generator
from medpfl.types import Observation, ServerPayload, VictimBatch


@dataclass
class Round:
    """The attacked round of an experiment; victims are trained one by one, as they are observed.

    Args:
        experiment: the parts.
        pending: victims observed and not yet reconstructed, with their facts, by victim id. The
            runner takes them from here for scoring; the attacker never sees them.
    """

    experiment: Experiment
    pending: dict[str, tuple[VictimBatch, VictimFacts]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        e = self.experiment
        self._client = FedSGDClient(
            spec=e.data.spec,
            device=e.device,
            shares_buffers=e.federation.buffers == "shared",
        )
        self._on_record: set[tuple[int, ...]] = set()
        self._payload = e.federation.payloads(e.factory, e.data.spec, e.data.train, e.device)

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """The images behind each update, as indices into the attacked split."""
        return updates(self.experiment.data, self.experiment.federation.batch_size)

    @property
    def image_ids(self) -> list[str]:
        """The attacked images, in order."""
        return [self.experiment.data.images.ids[i] for group in self.groups for i in group]

    def payload(self, victim_id: str) -> ServerPayload:
        """Return what the server sends to a victim."""
        return self._payload(victim_id)

    def observations(self) -> Iterator[Observation]:
        """Yield what the attacker sees of each victim, and remember the truth in `pending`."""
        for group in self.groups:
            if group not in self._on_record:
                yield self._observe(self._victim(group))

    def leave_out(self, recorded: Iterable[VictimRecord]) -> None:
        """Pass over victims that are on record, once it is certain that they are the same images.

        Raises:
            DataError: the images have changed since, or others are attacked.
        """
        ids = self.experiment.data.images.ids
        groups = {tuple(ids[i] for i in group): group for group in self.groups}
        for record in recorded:
            names = tuple(score.image_id for score in record.scores)
            group = groups.get(names)
            if group is None or not _same(self._victim(group), record):
                raise DataError(
                    f"{names[0]} is on record, but "
                    f"{'not attacked any more' if group is None else 'another image or label now'}:"
                    " the data has changed since. Put it back as it was (and start medpfl in the "
                    "same directory, where dataset.root is a relative path, and with the same "
                    "salt, where ids are hashed), or run anew."
                )
            self._on_record.add(group)

    def _victim(self, group: tuple[int, ...]) -> VictimBatch:
        images = self.experiment.data.images
        return VictimBatch(
            inputs=torch.stack([images.load(i) for i in group]),
            labels=images.labels[list(group)],
            ids=tuple(images.ids[i] for i in group),
        )

    def _observe(self, victim: VictimBatch) -> Observation:
        e = self.experiment
        victim_id = (
            victim.ids[0] if len(victim.ids) == 1 else f"{victim.ids[0]}+{len(victim.ids) - 1}"
        )
        payload = self.payload(victim_id)
        update, facts = self._client.update(victim, payload)
        update, report = e.defense.on_update(update, generator(e.seed, "defense", victim_id))
        self.pending[victim_id] = (
            victim,
            VictimFacts(
                gradient_norm=facts.gradient_norm,
                true_probability=facts.true_probability,
                noise_scale=report.noise_scale,
                snr_db=report.snr_db,
            ),
        )
        return e.threat.observe(
            victim_id=victim_id,
            payload=payload,
            update=update,
            spec=e.data.spec,
            local_training=self._client.local_training,
        )


def _same(victim: VictimBatch, record: VictimRecord) -> bool:
    labels = [score.label for score in record.scores]
    return torch.equal(victim.inputs, record.original) and victim.labels.tolist() == labels


def updates(data: LoadedData, batch_size: int) -> list[tuple[int, ...]]:
    """Split the selected images into full batches, in order; a rest too small for one is left."""
    count = len(data.selected) // batch_size
    return [data.selected[k * batch_size : (k + 1) * batch_size] for k in range(count)]
