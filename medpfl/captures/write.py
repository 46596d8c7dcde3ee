"""Writes captures: whole or not at all, readable by their owner alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medpfl._atomic import make_private_folder, replacing, write_text
from medpfl._paths import looking, printable
from medpfl.aggregates import Aggregate
from medpfl.batch_norm import BatchNormPolicy
from medpfl.captures.contents import Places, client_update, truth_in
from medpfl.captures.manifest import (
    NAME,
    Defense,
    FileReference,
    Framework,
    Kind,
    Manifest,
    parse_manifest,
)
from medpfl.captures.network import Network, build_network, payload_of, targets_of
from medpfl.captures.tensors import SUFFIX, dtype_name, packed, plain
from medpfl.errors import DataError
from medpfl.source import capture_name
from medpfl.training import LocalTraining
from medpfl.types import DataSpec, Truth

Arrays = Mapping[str, Tensor | NDArray[np.generic]]
"""Tensors or numpy's arrays by the names of a state dict."""

_NAMED_BY = 12  # digits of its checksum in the name of a file that captures share


@dataclass(frozen=True, kw_only=True)
class CaptureWriter:
    """Writes the captures of one federation: what all of them have in common.

    Args:
        folder: where they go, each to ``round-005/client-2``, a mean over clients to
            ``round-005/aggregate``; made where it is not there.
        model: the network, as the ``model`` group of a configuration, such as
            ``{"_target_": "medpfl.models.DLGCNN", "init": {"_target_": ...}}``. A class of your
            own is named the same way; who reads the captures must be able to import it, and say
            that it is trusted. Its ``weights`` stay null: what the server sent is captured.
        spec: shape, classes and normalisation of the data.
        batch_norm: how clients run BatchNorm while they train, see `medpfl.batch_norm`; None is
            ``train_shared`` where their buffers come back, and else ``train_private``.
        local_training: how an update is computed, or None where unknown.
        classes: K names, or None.
    """

    folder: str | Path
    model: Mapping[str, object]
    spec: DataSpec
    batch_norm: BatchNormPolicy | None = None
    local_training: LocalTraining | None = None
    classes: Sequence[str] | None = None

    @cached_property
    def network(self) -> Network:
        """The network that `model` names.

        Raises:
            DataError: it cannot be built.
        """
        manifest = Manifest(
            round=0,
            client=0,
            kind="delta",
            model=self.model,
            spec=self.spec,
            update_tensors={},
            files={},
        )
        return build_network(manifest, "write_capture", frozenset(targets_of(self.model)))

    def write(
        self,
        *,
        round: int,  # noqa: A002 - the format's word
        client: int | None,
        kind: Kind,
        update: Arrays,
        sent: Arrays,
        num_examples: int | None = None,
        labels: Sequence[int] | None = None,
        local_training: LocalTraining | None = None,
        truth: Truth | None = None,
        defense: Defense | None = None,
        framework: Framework | None = None,
        aggregate: Aggregate | None = None,
    ) -> Path:
        """Write one capture, once it is certain that it can be read.

        Args:
            round: rounds that the global model was trained for, counted from 0.
            client: number of the client, counted from 0; None of a mean over several.
            kind: what `update` is: the mean ``gradient``, the ``delta`` of weights after minus
                before, or the ``weights`` after local training.
            update: what came back, by the names of the network's parameters; buffers, where they
                came back, with their values.
            sent: the parameters and buffers that the client was sent, as a state dict.
            num_examples: N, or None where unknown.
            labels: N labels, or None where unknown.
            local_training: in place of the federation's, such as one with this client's order.
            truth: the images, where they are known.
            defense: what was done to the update, or None.
            framework: who federated, or None.
            aggregate: of a mean over clients, weighted by images, what it is made of.

        Returns:
            The capture's folder.

        Raises:
            DataError: what is given does not go together, or a capture of this round and client
                is there already, or the disk refuses.
        """
        root, name = Path(self.folder), capture_name(round, client)
        place = printable(root / name / NAME)
        came, model = plain(update, f"{place}: update"), plain(sent, f"{place}: sent")
        contents = {"update": packed(came), "model": packed(model)}
        if truth is not None:
            contents["truth"] = packed({"inputs": truth.inputs, "labels": truth.labels})
        files = {role: _reference(role, content) for role, content in contents.items()}
        manifest = Manifest(
            round=round,
            client=client,
            kind=kind,
            model=self.model,
            spec=self.spec,
            update_tensors={n: (tuple(t.shape), dtype_name(t.dtype)) for n, t in came.items()},
            files=files,
            batch_norm=self._policy(came),
            local_training=local_training or self.local_training,
            num_examples=num_examples,
            labels=None if labels is None else tuple(labels),
            classes=None if self.classes is None else tuple(self.classes),
            defense=defense,
            truth_ids=None if truth is None else truth.ids,
            framework=framework,
            aggregate=aggregate,
            geometry=() if truth is None else truth.geometry,
        )
        text = _text(manifest, place)
        self._check(manifest, came, model, truth, place)
        with looking(place):
            _put(root, root / name, files, contents, text)
        return root / name

    def _policy(self, came: Mapping[str, Tensor]) -> BatchNormPolicy:
        if self.batch_norm is not None:
            return self.batch_norm
        return "train_shared" if self.network.parts(came)[1] else "train_private"

    def _check(
        self,
        manifest: Manifest,
        came: Mapping[str, Tensor],
        sent: Mapping[str, Tensor],
        truth: Truth | None,
        place: str,
    ) -> None:
        """Refuse what a reader would refuse."""
        payload = payload_of(manifest, self.network, sent, f"{place}: sent")
        if truth is not None:
            tensors = {"inputs": truth.inputs, "labels": truth.labels}
            truth = truth_in(manifest, tensors, f"{place}: truth")
        places, count = Places(manifest=place, update=f"{place}: update"), manifest.known_examples
        client_update(manifest, came, self.network, payload, places, truth, count or 1)


def write_capture(
    folder: str | Path,
    *,
    round: int,  # noqa: A002 - the format's word
    client: int | None,
    kind: Kind,
    update: Arrays,
    sent: Arrays,
    model: Mapping[str, object],
    spec: DataSpec,
    batch_norm: BatchNormPolicy | None = None,
    local_training: LocalTraining | None = None,
    num_examples: int | None = None,
    labels: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    truth: Truth | None = None,
    defense: Defense | None = None,
    framework: Framework | None = None,
    aggregate: Aggregate | None = None,
) -> Path:
    """Write one capture; the arguments are those of `CaptureWriter` and its `write`.

    Returns:
        The capture's folder, ``round-005/client-2`` in the one given.

    Raises:
        DataError: as `CaptureWriter.write`.
    """
    writer = CaptureWriter(
        folder=folder,
        model=model,
        spec=spec,
        batch_norm=batch_norm,
        local_training=local_training,
        classes=classes,
    )
    return writer.write(
        round=round,
        client=client,
        kind=kind,
        update=update,
        sent=sent,
        num_examples=num_examples,
        labels=labels,
        truth=truth,
        defense=defense,
        framework=framework,
        aggregate=aggregate,
    )


def _reference(role: str, content: bytes) -> FileReference:
    """Describe a file; clients of a round that were sent the same share its file."""
    digest = hashlib.sha256(content).hexdigest()
    name = f"../model-{digest[:_NAMED_BY]}" if role == "model" else role
    return FileReference(path=f"{name}{SUFFIX}", bytes=len(content), sha256=digest)


def _text(manifest: Manifest, place: str) -> str:
    try:
        text = manifest.to_json()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: cannot be written as JSON ({error}): give plain values, such as int(...) of "
            "a tensor's element"
        ) from error
    parse_manifest(text.encode(), place)
    return text


def _put(
    root: Path,
    folder: Path,
    files: Mapping[str, FileReference],
    contents: Mapping[str, bytes],
    text: str,
) -> None:
    if (folder / NAME).exists():
        raise DataError(
            f"{printable(folder / NAME)}: there already, and is not written over: give another "
            "folder, or remove the captures of the run before"
        )
    for part in _new_folders(root, folder):
        make_private_folder(part)
    for role, reference in files.items():
        path = folder / reference.path
        if role == "model" and path.is_file() and path.stat().st_size == reference.bytes:
            continue  # its name is its checksum
        with replacing(path) as file:
            file.write(contents[role])
    write_text(folder / NAME, text)


def _new_folders(root: Path, folder: Path) -> list[Path]:
    """Return the folders to make, those above first; what is there stays as open as it is."""
    return [path for path in (root, folder.parent, folder) if not path.exists()]
