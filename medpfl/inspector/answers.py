"""From a command line to the models that it names, and what is found in each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from medpfl._paths import expanded, is_folder, looking, printable
from medpfl.captures.read import CapturedUpdate, load_captures, read_captures
from medpfl.errors import ConfigurationError
from medpfl.inspection.agreed import architecture_hash, check_hash
from medpfl.inspection.examine import examine
from medpfl.inspection.received import Received
from medpfl.inspection.verdict import Verdict
from medpfl.inspector.flags import Asked
from medpfl.models.weights import read_state

_LIKE_A_HASH = re.compile(r"[0-9a-fA-F]{20,}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found in one model.

    Args:
        name: the file, or the capture.
        parameters: how many numbers were looked at.
        hash: of the architecture.
        agreed: the hash agreed on, or None.
        verdict: what was found.
    """

    name: str
    parameters: int
    hash: str
    agreed: str | None
    verdict: Verdict


def answer(asked: Asked) -> tuple[Answer, ...]:
    """Look at every model that the path holds: one, or that of each capture.

    Raises:
        MedpflError: there is none, or it cannot be read.
    """
    agreed = None if asked.agreed is None else _agreed(asked.agreed)
    return tuple(
        Answer(
            name=name,
            parameters=sum(tensor.numel() for tensor in received.parameters.values()),
            hash=architecture_hash(received),
            agreed=agreed,
            verdict=examine(received, agreed),
        )
        for name, received in _models(asked.path, "PATH", asked.input_shape)
    )


def hashes(asked: Asked) -> dict[str, str]:
    """Return the hash of every model's architecture, by its name."""
    return {
        name: architecture_hash(received)
        for name, received in _models(asked.path, "PATH", asked.input_shape)
    }


def _agreed(text: str) -> str:
    """Return a hash: the one given, or that of the model at a path."""
    if _LIKE_A_HASH.fullmatch(text):
        check_hash(text.lower(), "--agreed")
        return text.lower()
    found = {architecture_hash(received) for _, received in _models(text, "--agreed", None)}
    if len(found) > 1:
        raise ConfigurationError(
            f"--agreed={printable(text)}: holds models of {len(found)} architectures: give one"
        )
    return found.pop()


def _models(
    path: str, setting: str, input_shape: tuple[int, ...] | None
) -> Iterator[tuple[str, Received]]:
    place = expanded(path, setting=setting)
    with looking(f"{setting}={printable(place)}"):
        folder = is_folder(place)
    if not folder:
        yield path, Received.of_state(read_state(path, setting=setting), input_shape)
        return
    last: object = None
    for captured in load_captures(read_captures(place, setting=setting)):
        if captured.payload is not last:  # neighbours that were sent the same share it
            yield captured.capture_id, _of_capture(captured, input_shape)
        last = captured.payload


def _of_capture(captured: CapturedUpdate, input_shape: tuple[int, ...] | None) -> Received:
    return Received.of_payload(captured.payload, input_shape or captured.spec.shape)
