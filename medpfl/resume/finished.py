"""Which captures of a source are on record already."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from medpfl.errors import DataError
from medpfl.report.victim_file import VictimRecord
from medpfl.source import CaptureSource
from medpfl.types import Truth


def finished(source: CaptureSource, recorded: Iterable[VictimRecord]) -> frozenset[str]:
    """Return the ids of recorded captures, once it is certain that they are of the same images.

    Args:
        source: makes the captures.
        recorded: what a run has on record.

    Raises:
        DataError: the images have changed since, or others are attacked.
    """
    planned = {(p.round, p.image_ids): p for p in source.plan}
    nameless = {p.capture_id: p for p in source.plan if not p.image_ids}
    found = set()
    for record in recorded:
        names = tuple(score.image_id for score in record.scores)
        first = record.scores[0]
        capture = planned.get((first.round, names)) or nameless.get(first.capture_id)
        if capture is None or not _same(source.truth(capture), record):
            raise DataError(
                f"{names[0]} is on record, but "
                f"{'not attacked any more' if capture is None else 'another image or label now'}:"
                " the data has changed since. Put it back as it was (and start medpfl in the "
                "same directory, where dataset.root is a relative path, and with the same "
                "salt, where ids are hashed), or run anew."
            )
        found.add(capture.capture_id)
    return frozenset(found)


def _same(truth: Truth | None, record: VictimRecord) -> bool:
    if truth is None:
        return not len(record.original)
    labels = [score.label for score in record.scores]
    return torch.equal(truth.inputs, record.original) and truth.labels.tolist() == labels
