"""Reads captures: all of them are checked before the first is attacked, one at a time."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from medpfl._paths import expanded, is_file, is_folder, looking, printable
from medpfl.captures.contents import Places, client_update, truth_in
from medpfl.captures.manifest import NAME, Defense, Manifest, parse_manifest
from medpfl.captures.network import Network, build_network, payload_of
from medpfl.captures.tensors import PICKLES, SUFFIX, located, read_file, tensors_in
from medpfl.errors import DataError
from medpfl.source import capture_name
from medpfl.types import ClientUpdate, DataSpec, ServerPayload, Truth

_LARGEST_MANIFEST = 2**28


@dataclass(frozen=True)
class CaptureFolder:
    """A capture on the disk: what its manifest says, and where its tensors are.

    Args:
        manifest: checked.
        folder: that it stands in.
        root: the folder that was given; no file of the capture is outside of it.
        trusted: classes beside those of ``medpfl.models`` that its network may be made of.
    """

    manifest: Manifest
    folder: Path
    root: Path
    trusted: frozenset[str] = frozenset()

    @property
    def capture_id(self) -> str:
        """A name that says nothing of the images: ``round-005/client-2``, or ``.../aggregate``."""
        return capture_name(self.manifest.round, self.manifest.client)

    @property
    def place(self) -> str:
        """The manifest, for messages."""
        return printable(self.folder / NAME)

    def truth(self) -> Truth | None:
        """Read the images behind the update, where they are known.

        Raises:
            DataError: the file is unreadable, or not what the manifest says.
        """
        if self.manifest.truth_ids is None:
            return None
        content, place = self._content("truth")
        return truth_in(self.manifest, tensors_in(content, place), place)

    def _content(self, role: str) -> tuple[bytes, str]:
        reference = self.manifest.files[role]
        path = located(self.folder, reference, self.root, self.place)
        return read_file(path, reference), printable(path)


@dataclass(frozen=True)
class CapturedUpdate:
    """A capture in memory: all that ``ThreatModel.observe`` and a score need.

    Args:
        capture_id: ``round-005/client-2``.
        round: rounds that the global model was trained for, counted from 0.
        client: number of the client, counted from 0; None of a mean over several.
        payload: what the server sent; clients that were sent the same share it.
        update: what came back, float32 on the CPU, with how it was computed where that is known.
        spec: shape, classes and normalisation of the data.
        truth: the images behind it, or None where nobody knows them.
        defense: what was done to the update, or None.
    """

    capture_id: str
    round: int
    client: int | None
    payload: ServerPayload
    update: ClientUpdate
    spec: DataSpec
    truth: Truth | None
    defense: Defense | None


def read_captures(
    path: str | Path, *, trusted: Collection[str] = (), setting: str = "source.path"
) -> tuple[CaptureFolder, ...]:
    """Find every capture in a folder, and check each, its tensors included.

    Args:
        path: a capture's folder, or one with such folders in it, at any depth.
        trusted: classes beside those of ``medpfl.models`` that a network may be made of, by the
            name in ``_target_``: building a network runs its code.
        setting: what the path was given with, for messages.

    Returns:
        The captures, by round and client. Their tensors are not kept in memory.

    Raises:
        DataError: there is none, or one of them cannot be attacked: the first fault that is found.
    """
    root = _given(path, setting)
    with looking(f"{setting}={printable(root)}"):
        folders = sorted(_folders(root))
    if not folders:
        raise DataError(
            f"{setting}={printable(root)}: no capture: neither it nor a folder in it holds a "
            f"{NAME}, which is written last. Give the folder that "
            "medpfl.captures.write_capture, or an integration, has written to"
        )
    found = [
        CaptureFolder(_manifest(folder), folder, root, frozenset(trusted)) for folder in folders
    ]
    # A mean over clients comes before what single ones sent.
    found.sort(key=lambda f: (f.manifest.round, -1 if (c := f.manifest.client) is None else c))
    for one, other in pairwise(found):
        if one.capture_id == other.capture_id:
            raise DataError(
                f"{other.place}: {one.capture_id} a second time, after {one.place}: give a folder "
                "that holds one federation's captures, or number rounds and clients anew"
            )
    for _ in load_captures(found):
        pass
    return tuple(found)


def load_captures(
    captures: Iterable[CaptureFolder], leave_out: Collection[str] = ()
) -> Iterator[CapturedUpdate]:
    """Read captures one by one, as they are asked for.

    Args:
        captures: as `read_captures` returns them.
        leave_out: ids of captures that are passed over.

    Raises:
        DataError: a file has changed since, or cannot be read.
    """
    shared = _Shared()
    for capture in captures:
        if capture.capture_id not in leave_out:
            yield _loaded(capture, shared)


class _Shared:
    """The network of the last capture, for the next that was sent the same."""

    def __init__(self) -> None:
        self._of: object = None
        self._sent: tuple[Network, ServerPayload] | None = None

    def sent(self, capture: CaptureFolder) -> tuple[Network, ServerPayload]:
        manifest = capture.manifest
        stated = (manifest.model, manifest.spec, manifest.batch_norm)
        key = (manifest.files["model"].sha256, *stated)
        if self._sent is None or self._of != (key, capture.trusted):
            content, place = capture._content("model")
            network = build_network(manifest, capture.place, capture.trusted, len(content))
            payload = payload_of(manifest, network, tensors_in(content, place), place)
            self._of, self._sent = (key, capture.trusted), (network, payload)
        return self._sent


def _loaded(capture: CaptureFolder, shared: _Shared) -> CapturedUpdate:
    manifest = capture.manifest
    network, payload = shared.sent(capture)
    content, place = capture._content("update")
    truth, count = capture.truth(), manifest.known_examples
    if count is None:
        raise DataError(
            f"{capture.place}: num_examples is null, and no labels, images or order tell it: "
            "write there how many images you take to be behind this update"
        )
    update = client_update(
        manifest,
        tensors_in(content, place),
        network,
        payload,
        Places(manifest=capture.place, update=place),
        truth,
        count,
    )
    return CapturedUpdate(
        capture_id=capture.capture_id,
        round=manifest.round,
        client=manifest.client,
        payload=payload,
        update=update,
        spec=manifest.spec,
        truth=truth,
        defense=manifest.defense,
    )


def _given(path: str | Path, setting: str) -> Path:
    root = expanded(os.fspath(path), setting=setting)
    told = f"{setting}={printable(root)}"
    with looking(told):
        if is_folder(root):
            return root
        if root.suffix.lower() in PICKLES:
            raise DataError(
                f"{told}: files of this kind can run code as they are read, and are refused: write "
                f"the update with medpfl.captures.write_capture, as {SUFFIX} files in a folder"
            )
        if is_file(root):
            raise DataError(f"{told}: a file: give the folder that holds the capture")
    raise DataError(f"{told}: no such folder")


def _folders(root: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for folder, _, files in os.walk(root, onerror=fail):
        if NAME in files:
            yield Path(folder)


def _manifest(folder: Path) -> Manifest:
    path = folder / NAME
    place = printable(path)
    with looking(place):
        if not is_file(path):
            raise DataError(f"{place}: not a file")
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise DataError(f"{place}: larger than any manifest: not a capture")
        content = path.read_bytes()
    return parse_manifest(content, place)
