"""Images of patients: whose each one is, which class it has, and splits that no patient crosses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from medpfl._paths import looking, printable
from medpfl.data.ids import Naming
from medpfl.data.listing import FileList, class_folders, files_below
from medpfl.errors import DataError
from medpfl.seeding import generator

_TOLD_BY = {
    "list": "by dataset.labels",
    "header": "by DICOM headers",
    "subject": "by names sub-...",
    "file": "by folder or file",
}


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A file, or a folder of files, whose class is known.

    Args:
        path: below the dataset's folder.
        label: number of its class.
        inside: its path from where folders may be a hospital's: below its class folder, or below
            the dataset's.
        patient: whose it is, as a list says; empty where it does not.
        line: where the list names it, for messages; 0 without a list.
    """

    path: Path = field(repr=False)
    label: int
    inside: Path = field(repr=False)
    patient: str = field(default="", repr=False)
    line: int = 0


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One image of a patient.

    Args:
        place: its path in a `FileList`: the file's or folder's own, or one below it.
        label: number of its class.
        inside: see `Labelled`.
        patient: how it is told whose it is, a key of `_TOLD_BY`, and whose, after a space; the
            same text for the same patient.
    """

    place: Path = field(repr=False)
    label: int
    inside: Path = field(repr=False)
    patient: str = field(repr=False)


@dataclass(frozen=True, eq=False)
class Cohort:
    """The images of a dataset, in class order, and whose they are.

    Args:
        files: the images.
        patients: one an image.
    """

    files: FileList
    patients: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, scans: Iterable[Scan], *, root: Path, naming: Naming) -> Cohort:
        """Name the images.

        Raises:
            DataError: two would have the same id.
        """
        ordered = sorted(scans, key=lambda s: (s.label, s.place.as_posix()))
        paths = [scan.place for scan in ordered]
        ids = naming.ids(paths, folder=root, dataset=root)
        files = FileList(
            paths=tuple(paths),
            labels=tuple(scan.label for scan in ordered),
            ids=ids,
            titles=naming.titles(paths, ids, dataset=root),
            # As if below a class folder: what the listing of pictures hashes is the next one.
            folders=naming.folders([Path("class") / scan.inside for scan in ordered]),
        )
        return cls(files, tuple(scan.patient for scan in ordered))

    def noting(self, *, ignored: int, unlisted: Sequence[str]) -> Cohort:
        """Return it with what was left out."""
        return Cohort(replace(self.files, ignored=ignored, unlisted=tuple(unlisted)), self.patients)

    def split(self, share: float, *, classes: int, seed: int) -> tuple[FileList, FileList]:
        """Draw the test patients class by class; all images of a patient are on one side.

        A patient with images of several classes is drawn with the first of them. A class keeps at
        least one of its patients for training.

        Args:
            share: of a class's patients, for testing.
            classes: how many there are.
            seed: the run's.

        Returns:
            Training and test images.
        """
        first: dict[str, int] = {}
        for patient, label in zip(self.patients, self.files.labels, strict=True):
            first.setdefault(patient, label)
        test: set[str] = set()
        for label in range(classes):
            own = [patient for patient, of in first.items() if of == label]
            order = torch.randperm(len(own), generator=generator(seed, "split", f"class {label}"))
            count = min(round(len(own) * share), len(own) - 1)
            test |= {own[i] for i in order[: max(0, count)].tolist()}
        sides: tuple[list[int], list[int]] = ([], [])
        for index, patient in enumerate(self.patients):
            sides[patient in test].append(index)
        return self.files.keep(sides[0]), self.files.keep(sides[1])

    def note(self) -> str:
        """Return one line: how many patients there are, and how their images are spread."""
        most = max(Counter(self.patients).values())
        told = Counter(patient.partition(" ")[0] for patient in set(self.patients))
        by = ", ".join(f"{count} {_TOLD_BY[kind]}" for kind, count in sorted(told.items()))
        return f"patients: {by}, with up to {most} images each; none is on both sides of the split"


def in_class_folders(
    root: Path, *, on_error: str
) -> tuple[tuple[str, ...], list[Labelled], tuple[str, ...]]:
    """List all files below the class folders of a dataset.

    Class folders are numbered in messages: one that should not be there may be a patient's.

    Args:
        root: holds one folder a class.
        on_error: ``skip`` passes over folders inside a class that cannot be listed.

    Returns:
        The names of the classes, the files, and lines on folders that could not be listed.

    Raises:
        DataError: there are fewer than two classes, or a folder cannot be listed.
    """
    shown = printable(root)
    with looking(f"dataset.root: {shown}"):
        classes = class_folders(root)
    if len(classes) < 2:
        raise DataError(
            f"dataset.root: {shown} holds {len(classes)} class folders, and at least 2 are needed; "
            f"put the images of each class into a folder of its own, such as {shown}/healthy and "
            f"{shown}/tumour, or list files and classes in a CSV: dataset.labels=FILE"
        )
    found, closed_lines = [], []
    for label, name in enumerate(classes):
        place = root / name
        called = f"class folder {label + 1} of {len(classes)}"
        try:
            files, closed = files_below(place)
        except OSError as error:
            told = error.strerror or type(error).__name__
            raise DataError(f"dataset.root: {shown}: {called} cannot be listed ({told})") from None
        if closed and on_error == "raise":
            raise DataError(
                f"dataset.root: {shown}: {closed} folders inside {called} cannot be listed, so "
                "that images may be missed. Give yourself access (chmod -R u+rX), or leave them "
                "out with dataset.on_error=skip"
            )
        if closed:
            closed_lines.append(f"{closed} in {called}")
        found += [
            Labelled(path=path, label=label, inside=path.relative_to(place)) for path in files
        ]
    return classes, found, tuple(closed_lines)
