"""Captures from files as a source of attacked updates."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from medpfl._paths import expanded, printable
from medpfl.batch_norm import IN_WORDS
from medpfl.captures.read import CapturedUpdate, CaptureFolder, load_captures, read_captures
from medpfl.data.dataset import ImageSet, LoadedData
from medpfl.errors import ConfigurationError, DataError
from medpfl.federated.diary import Diary
from medpfl.settings.hints import checked
from medpfl.source import Described, Planned
from medpfl.threat import ThreatModel
from medpfl.training import LocalTraining, UpdateMap
from medpfl.types import Capture, ClientUpdate, ServerPayload, Truth, UpdateFacts


@checked("source")
@dataclass(frozen=True, kw_only=True)
class FileSource:
    """Attack updates that were captured elsewhere; see docs/capture-format.md.

    Args:
        path: the folder of a capture, or one with such folders in it.
    """

    path: str | None = None

    def open(self, threat: ThreatModel, device: torch.device) -> FileCaptures:
        """Read and check every capture.

        Raises:
            ConfigurationError: no path is given, the captures do not go together, or the attacker
                is granted public images.
            DataError: one of them cannot be attacked.
        """
        if not self.path:
            raise ConfigurationError(
                "source.path is not set: give the folder of a capture, or one with captures in it, "
                "such as source.path=captures/round-005"
            )
        if "auxiliary" in threat.granted:
            raise ConfigurationError(
                "threat.knows=[auxiliary]: captures hold no public images. Leave 'auxiliary' out"
            )
        if "same_images" in threat.granted:
            raise ConfigurationError(
                "threat.knows=[same_images]: captures do not say which of them are of the same "
                "images. Leave 'same_images' out"
            )
        found = read_captures(self.path)
        specs = {capture.manifest.spec for capture in found}
        if len(specs) > 1:
            raise ConfigurationError(
                f"source.path={self.path}: the captures are of data of several kinds "
                f"({' and '.join(str(s.shape) for s in specs)}): attack them one by one"
            )
        self._check_seen(found, threat)
        return FileCaptures(found=found, path=self.path, threat=threat, device=device)

    def _check_seen(self, found: tuple[CaptureFolder, ...], threat: ThreatModel) -> None:
        """Refuse captures of what the threat model says that nobody sees."""
        sums = [capture.manifest.aggregate is not None for capture in found]
        alone, several = sums.count(False), sums.count(True)
        odd = {"secure": alone, "running": alone, "individual": several}
        count = 0 if threat.aggregation is None else odd[threat.aggregation]
        if count:
            what = "sums" if threat.aggregation == "individual" else "single clients' updates"
            raise ConfigurationError(
                f"threat.aggregation={threat.aggregation}, and {count} of the {len(found)} captures"
                f" in source.path={self.path} are {what}: leave threat.aggregation out"
            )


@dataclass(frozen=True, kw_only=True)
class FileCaptures:
    """See `medpfl.source.CaptureSource`.

    Args:
        found: the captures, checked.
        path: the folder that was given.
        threat: what of an update is seen.
        device: where updates are wanted.
    """

    found: tuple[CaptureFolder, ...]
    path: str
    threat: ThreatModel
    device: torch.device

    @cached_property
    def plan(self) -> tuple[Planned, ...]:
        """See `CaptureSource.plan`."""
        return tuple(
            Planned(
                c.capture_id,
                c.manifest.round,
                c.manifest.client,
                c.manifest.truth_ids or (),
                unknown=c.manifest.known_examples or 0,
                members=_members(c),
            )
            for c in self.found
        )

    def captures(
        self, leave_out: Collection[str] = (), diary: Diary | None = None
    ) -> Iterator[Capture]:
        """See `CaptureSource.captures`; nothing is trained."""
        for captured in load_captures(self.found, leave_out):
            yield self._capture(captured)

    def truth(self, planned: Planned) -> Truth | None:
        """See `CaptureSource.truth`."""
        (capture,) = (c for c in self.found if c.capture_id == planned.capture_id)
        return capture.truth()

    def sample(self) -> Capture:
        """See `CaptureSource.sample`."""
        return self._capture(self._first)

    def example(self) -> ServerPayload:
        """See `CaptureSource.example`."""
        return self._first.payload

    def describe(self) -> Described:
        """See `CaptureSource.describe`."""
        manifest = self.found[0].manifest
        trainings = {c.manifest.local_training for c in self.found}
        lines = [f"captured: {len(self.found)} updates from files"]
        if manifest.framework is not None:
            lines[0] += f", of {manifest.framework.name} {manifest.framework.version}"
        for training in trainings:
            told = "unknown" if training is None else training.describe()
            lines.append(f"local training: {told}")
        if self._first.payload.buffers:
            for policy in sorted({c.manifest.batch_norm for c in self.found}):
                lines.append(f"BatchNorm: {IN_WORDS[policy]}")
        defenses = {c.manifest.defense for c in self.found}
        told = ", ".join(sorted("none known" if d is None else d.description for d in defenses))
        model = str(manifest.model["_target_"]).rpartition(".")[2]
        return Described(model=model, defense=told, noise=None, federation=tuple(lines))

    @property
    def training(self) -> tuple[LocalTraining | None, ...]:
        """What is on file of each capture's local training."""
        return tuple(c.manifest.local_training for c in self.found)

    def data(self) -> LoadedData:
        """Return what is known of the images, as an experiment wants it."""
        manifest = self.found[0].manifest
        classes = manifest.classes or tuple(map(str, range(manifest.spec.num_classes)))
        images = _images(self.found)
        return LoadedData(
            name="captures",
            classes=classes,
            synthetic=False,
            spec=manifest.spec,
            images=images,
            train=images,
            selected=tuple(range(len(images))),
            visited=tuple(range(len(images))),
            skipped=(),
            notes=(
                "no other images of their kind: the mean image is grey, and grades are left out",
            ),
            source=printable(expanded(self.path, setting="source.path")),
            has_others=False,
        )

    @cached_property
    def _first(self) -> CapturedUpdate:
        return next(load_captures(self.found[:1]))

    def _capture(self, captured: CapturedUpdate) -> Capture:
        payload = _on(captured.payload, self.device)
        update = replace(captured.update, tensors=_moved(captured.update.tensors, self.device))
        observation = self.threat.observe(
            capture_id=captured.capture_id,
            payload=payload,
            update=update,
            spec=captured.spec,
            parameters=tuple(update.tensors),
            defense=None,
        )
        return Capture(
            observation,
            captured.truth,
            _facts(captured),
            captured.round,
            captured.client,
            training=update.local_training,
        )


def _members(capture: CaptureFolder) -> tuple[Planned, ...]:
    """Return of a mean over clients what is known of each: how many images it has, if that."""
    aggregate = capture.manifest.aggregate
    if aggregate is None:
        return ()
    sizes = aggregate.sizes or (0,) * aggregate.clients
    name, round_ = capture.capture_id, capture.manifest.round
    return tuple(Planned(name, round_, None, (), unknown=size) for size in sizes)


def _facts(captured: CapturedUpdate) -> UpdateFacts:
    """Return what the update itself tells, and, where its images are known, what they add."""
    defense = captured.defense
    return UpdateFacts(
        gradient_norm=_norm(captured.update),
        true_probability=_true_probability(captured),
        noise_scale=None if defense is None else defense.noise_scale,
    )


def _norm(update: ClientUpdate) -> float:
    """Return the Euclidean norm of an update as it was captured; see `UpdateFacts`."""
    training, scale = update.local_training, 1.0
    if update.kind == "delta" and training is not None:
        sizes: tuple[int, ...] = (update.num_examples,)
        if update.aggregate is not None and update.aggregate.sizes is not None:
            sizes = update.aggregate.sizes
        scale = UpdateMap.of_clients([replace(training, order=None)] * len(sizes), sizes).unit
    squares = [t.double().square().sum() for t in update.tensors.values()]
    return float(torch.stack(squares).sum().sqrt()) / scale


def _true_probability(captured: CapturedUpdate) -> Tensor:
    truth, payload = captured.truth, captured.payload
    if truth is None:
        return torch.full((captured.update.num_examples,), math.nan)
    with torch.no_grad():
        logits = payload.forward()(payload.parameters, captured.spec.normalise(truth.inputs))
    return logits.softmax(1).gather(1, truth.labels.unsqueeze(1)).squeeze(1)


def _images(found: tuple[CaptureFolder, ...]) -> ImageSet:
    """Return all known images, read when they are asked for."""
    places = [(c, n) for c in found for n in range(len(c.manifest.truth_ids or ()))]

    def read(index: int) -> Tensor:
        capture, number = places[index]
        truth = capture.truth()
        if truth is None:
            raise DataError(f"{capture.place}: its images are not there any more")
        return truth.inputs[number]

    ids = tuple(name for c in found for name in c.manifest.truth_ids or ())
    labels = [label for c in found for label in c.manifest.labels or ()]
    return ImageSet(ids=ids, labels=torch.tensor(labels, dtype=torch.int64), read=read)


def _on(payload: ServerPayload, device: torch.device) -> ServerPayload:
    if device.type == "cpu":
        return payload
    return replace(
        payload,
        model=payload.model.to(device),
        parameters=_moved(payload.parameters, device),
        buffers=_moved(payload.buffers, device),
    )


def _moved(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
