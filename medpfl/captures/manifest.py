"""`capture.json`: what a capture is, in plain words and numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, cast

import medpfl
from medpfl.aggregates import Aggregate
from medpfl.batch_norm import POLICIES, BatchNormPolicy
from medpfl.captures.fields import Fields, is_text, is_whole, parsed
from medpfl.captures.parts import MOST_IMAGES, SPEC, spec_in, training_in
from medpfl.captures.sums import aggregate_in, check_aggregate, check_order, images_of
from medpfl.captures.versions import FORMAT, VERSION, by_todays_names
from medpfl.captures.voxels import Geometries, check_geometry, geometry_in, geometry_of
from medpfl.errors import DataError
from medpfl.training import LocalTraining
from medpfl.types import DataSpec

NAME = "capture.json"

Kind = Literal["gradient", "delta", "weights"]

_KINDS = ("gradient", "delta", "weights")
_MOST_ROUNDS = 10_000_000
_ROLES = ("update", "model", "truth")


@dataclass(frozen=True, kw_only=True)
class Framework:
    """Who federated.

    Args:
        name: such as ``flower``.
        version: of the framework.
        round: the framework's own name for the round, or None.
        client: the framework's own name for the client, or None.
    """

    name: str
    version: str
    round: str | None = None
    client: str | None = None


@dataclass(frozen=True, kw_only=True)
class Defense:
    """What was done to an update before it was captured.

    Args:
        description: in words.
        noise_scale: scale of the noise that was added, not negative, or None where unknown.
    """

    description: str
    noise_scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class FileReference:
    """A file of the capture.

    Args:
        path: relative to the capture's folder, with slashes.
        bytes: its size.
        sha256: of its content, in hexadecimal.
    """

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `capture.json` says; see docs/capture-format.md.

    Args:
        round: rounds that the global model was trained for, counted from 0.
        client: number of the client, counted from 0; None of a mean over several.
        kind: what the update's tensors are: the mean gradient, weights after minus before local
            training, or the weights after it.
        model: the network, as the ``model`` group of a configuration.
        spec: shape, classes and normalisation of the data.
        update_tensors: ``{name: (shape, dtype)}``.
        files: of `update`, `model` and, where the images are known, `truth`.
        batch_norm: how the client ran BatchNorm, and whether its statistics came with the update.
        local_training: how the update was computed, or None where unknown.
        num_examples: N, or None where unknown.
        labels: N labels, or None where unknown.
        classes: K names, or None.
        defense: what was done to the update, or None where nothing was, or nobody knows.
        truth_ids: N names of the images, or None where the images are unknown.
        framework: who federated, or None.
        medpfl: version of the program that wrote the capture.
        aggregate: of a mean over several clients, what it is made of; then `local_training` has no
            order. None of one client's update.
        geometry: where the voxels of each image lie; empty where nobody says it.
    """

    round: int
    client: int | None
    kind: Kind
    model: Mapping[str, object]
    spec: DataSpec
    update_tensors: Mapping[str, tuple[tuple[int, ...], str]]
    files: Mapping[str, FileReference]
    batch_norm: BatchNormPolicy = "train_private"
    local_training: LocalTraining | None = None
    num_examples: int | None = None
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    defense: Defense | None = None
    truth_ids: tuple[str, ...] | None = None
    framework: Framework | None = None
    medpfl: str = ""
    aggregate: Aggregate | None = None
    geometry: Geometries = ()

    @property
    def known_examples(self) -> int | None:
        """N as stated, or as the labels, the images, the clients' sizes or the order tell it."""
        if self.num_examples is not None:
            return self.num_examples
        if self.aggregate is not None and self.aggregate.sizes is not None:
            return sum(self.aggregate.sizes)
        for known in (self.labels, self.truth_ids):
            if known is not None:
                return len(known)
        order = None if self.local_training is None else self.local_training.order
        return None if order is None else len({i for batch in order for i in batch})

    def to_json(self) -> str:
        """Return the text of the file."""
        training = self.local_training
        content = {
            "format": FORMAT,
            "version": VERSION,
            "medpfl": self.medpfl or medpfl.__version__,
            "framework": None if self.framework is None else asdict(self.framework),
            "round": self.round,
            "client": self.client,
            "aggregate": None if self.aggregate is None else asdict(self.aggregate),
            "kind": self.kind,
            "model": self.model,
            "batch_norm": self.batch_norm,
            "data": {**asdict(self.spec), "classes": self.classes},
            "local_training": None if training is None else asdict(training),
            "num_examples": self.num_examples,
            "labels": self.labels,
            "defense": None if self.defense is None else asdict(self.defense),
            "truth_ids": self.truth_ids,
            "geometry": geometry_of(self.geometry),
            "tensors": self.update_tensors,
            "files": {role: _as_dict(self.files.get(role)) for role in _ROLES},
        }
        lines = [f" {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in content.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"


def parse_manifest(content: bytes, place: str) -> Manifest:
    """Return what `capture.json` says, each value checked, and all of them together.

    Args:
        content: of the file.
        place: the file, for messages.

    Raises:
        DataError: it is of another format or version, or a value cannot be.
    """
    top = by_todays_names(parsed(content, place))
    spec, classes = _data(top.inner("data", (*SPEC, "classes")))
    files = _files(top)
    manifest = Manifest(
        round=top.whole("round", 0, _MOST_ROUNDS),
        client=top.maybe("client", lambda name: top.whole(name, 0, _MOST_ROUNDS)),
        kind=cast(Kind, top.choice("kind", _KINDS)),
        model=_model(top),
        spec=spec,
        update_tensors=_tensors(top),
        files=files,
        batch_norm=cast(BatchNormPolicy, top.choice("batch_norm", POLICIES)),
        local_training=top.maybe("local_training", lambda name: training_in(top.inner(name))),
        num_examples=top.maybe("num_examples", lambda name: top.whole(name, 1, MOST_IMAGES)),
        labels=top.maybe("labels", lambda name: top.wholes(name, 0, spec.num_classes - 1)),
        classes=classes,
        defense=top.maybe("defense", lambda name: _defense(top, name)),
        truth_ids=top.maybe("truth_ids", top.texts),
        framework=top.maybe("framework", lambda name: _framework(top, name)),
        medpfl=top.text("medpfl"),
        aggregate=top.maybe("aggregate", lambda name: aggregate_in(top, name)),
        geometry=top.maybe("geometry", lambda name: geometry_in(top, name)) or (),
    )
    check_together(manifest, place)
    return manifest


def check_together(manifest: Manifest, place: str) -> None:
    """Refuse values that contradict each other.

    Raises:
        DataError: says which.
    """
    _check_training(manifest, place)
    count = manifest.known_examples
    order = None if manifest.local_training is None else manifest.local_training.order
    lengths = {
        "labels": None if manifest.labels is None else len(manifest.labels),
        "truth_ids": None if manifest.truth_ids is None else len(manifest.truth_ids),
        "local_training.order": images_of(manifest.local_training),
    }
    for name, length in lengths.items():
        if length is not None and length != count:
            raise DataError(
                f"{place}: {name} tells of {length} images, and num_examples of {count}"
            )
    if count == 0:
        raise DataError(f"{place}: num_examples must be at least 1: no image is behind this update")
    if manifest.aggregate is not None:
        check_aggregate(manifest.aggregate, manifest.local_training, count, place)
    if (manifest.client is None) != (manifest.aggregate is not None):
        raise DataError(
            f"{place}: client={manifest.client} and aggregate: an update is one client's, by its "
            "number, or the mean over several, with aggregate and client null"
        )
    if order is not None and count is not None:
        training = cast(LocalTraining, manifest.local_training)
        check_order(training, order, count, "local_training.order", place)
    if (manifest.truth_ids is None) != ("truth" not in manifest.files):
        raise DataError(
            f"{place}: truth_ids and files.truth go together: give both, or null for both"
        )
    check_geometry(manifest.geometry, count, manifest.spec.shape, place)
    if manifest.geometry and manifest.truth_ids is None:
        raise DataError(f"{place}: geometry goes with the images: null where these are not known")
    if manifest.truth_ids is not None and len(set(manifest.truth_ids)) < len(manifest.truth_ids):
        raise DataError(f"{place}: truth_ids holds a name twice: each image has its own")


def _check_training(manifest: Manifest, place: str) -> None:
    training = manifest.local_training
    if training is None:
        return
    sent = "gradient" if manifest.kind == "gradient" else "delta"
    if training.kind != sent:
        raise DataError(
            f"{place}: kind={manifest.kind} does not go with local_training.algorithm="
            f"{training.algorithm}: fedsgd sends a gradient, fedavg a delta or weights"
        )


def _data(data: Fields) -> tuple[DataSpec, tuple[str, ...] | None]:
    spec = spec_in(data)
    classes = data.maybe("classes", data.texts)
    if classes is not None and len(classes) != spec.num_classes:
        raise data.wrong("classes", f"null, or a list of {spec.num_classes} names")
    return spec, classes


def _tensors(top: Fields) -> dict[str, tuple[tuple[int, ...], str]]:
    def fits(entry: object) -> bool:
        return (
            isinstance(entry, list)
            and len(entry) == 2
            and isinstance(entry[0], list)
            and all(is_whole(size, 0, 2**40) for size in entry[0])
            and is_text(entry[1])
        )

    value = top.values["tensors"]
    if not isinstance(value, dict) or not all(is_text(n) and fits(e) for n, e in value.items()):
        raise top.wrong("tensors", 'names with a shape and a dtype each: [[12, 3], "float32"]')
    return {name: (tuple(shape), dtype) for name, (shape, dtype) in value.items()}


def _model(top: Fields) -> dict[str, object]:
    value = top.values["model"]
    if not isinstance(value, dict) or not isinstance(value.get("_target_"), str):
        raise top.wrong("model", "a group with a _target_, as the files of conf/model")
    return value


def _defense(top: Fields, name: str) -> Defense:
    given = top.inner(name, ("description", "noise_scale"))
    scale = given.maybe("noise_scale", lambda key: given.number(key, 0))
    return Defense(description=given.text("description"), noise_scale=scale)


def _framework(top: Fields, name: str) -> Framework:
    given = top.inner(name, ("name", "version", "round", "client"))
    return Framework(
        name=given.text("name"),
        version=given.text("version"),
        round=given.maybe("round", given.text),
        client=given.maybe("client", given.text),
    )


def _files(top: Fields) -> dict[str, FileReference]:
    files = top.inner("files", _ROLES)
    found: dict[str, FileReference] = {}
    for role in _ROLES:
        if role == "truth" and files.values[role] is None:
            continue
        given = files.inner(role, ("path", "bytes", "sha256"))
        digest = given.text("sha256")
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise given.wrong("sha256", "64 hexadecimal digits")
        found[role] = FileReference(
            path=given.text("path"), bytes=given.whole("bytes", 0, 2**50), sha256=digest
        )
    return found


def _as_dict(reference: FileReference | None) -> dict[str, object] | None:
    return None if reference is None else asdict(reference)
