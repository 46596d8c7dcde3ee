"""Images as hospitals keep them: DICOM, NIfTI and NRRD, of patients that nobody shall recognise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from medpfl._paths import expanded, is_folder, looking, printable
from medpfl.data.cohort import Cohort, Labelled, in_class_folders
from medpfl.data.dataset import LoadedData, OnError
from medpfl.data.files import checked_on_error, first_of, load_files
from medpfl.data.ids import IdKind, IdSettings, Naming
from medpfl.data.label_table import in_table
from medpfl.data.preprocess import Preprocess
from medpfl.data.scans import Finder, Found, Kind, ScanReader
from medpfl.data.select import Selector
from medpfl.data.volumes.intensity import window_of
from medpfl.data.volumes.patches import Patches
from medpfl.errors import ConfigurationError, DataError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range

Reads = Literal["pictures", "series", "volumes"]
Spacing = Annotated[float, Range(1e-3, 1e4)]

_KINDS: Mapping[Reads, frozenset[Kind]] = MappingProxyType(
    {
        "pictures": frozenset({"frame"}),
        "series": frozenset({"series"}),
        "volumes": frozenset({"nifti", "nrrd", "series"}),
    }
)
_IN_WORDS: Mapping[Reads, str] = MappingProxyType(
    {
        "pictures": "DICOM files",
        "series": "DICOM series",
        "volumes": "volumes (.nii, .nii.gz, .nrrd, or folders of DICOM files)",
    }
)


@checked("dataset")
class HospitalImages:
    """Load DICOM pictures, or volumes, with labels from class folders or from a CSV.

    The patient is the unit of splits. No name of a file, and nothing that a header says of a
    patient, reaches messages, outputs or the attacker: ids are salted hashes.

    Args:
        name: what tables and records call the dataset.
        root: the folder with the class folders, or with the files that `labels` lists.
        reads: ``pictures``: each frame of a DICOM file; ``series``: DICOM series as volumes;
            ``volumes``: NIfTI, NRRD and DICOM series.
        labels: a CSV with the columns ``file``, ``label`` and perhaps ``patient``; None for class
            folders.
        split: which images to attack: ``train``, ``test`` or ``all``.
        test_fraction: the share of each class's patients kept for testing, at least 0, below 1.
        window: ``[center, width]`` in the image's unit, Hounsfield units for CT; None for the
            window of a picture's own file, or else robust percentiles.
        spacing_mm: what to resample to, ``[x, y, z]`` of volumes, ``[x, y]`` of pictures, or one
            number for all; None to leave it.
        patches: boxes of ``preprocess.size`` to cut out of each volume, with
            ``preprocess.resize=keep``; None for whole volumes.
        select: see `Selector`.
        stride: see `Selector`.
        on_error: ``raise`` stops at files that cannot be read, ``skip`` leaves them out.
        ids: ``hashed``.
        salt_file: see `read_salt`.
        id_map: whether to write which file each id stands for.

    Raises:
        ConfigurationError: if a setting leaves the range above.
    """

    def __init__(
        self,
        *,
        name: str = "volume",
        root: str | None = None,
        reads: Reads = "volumes",
        labels: str | None = None,
        split: Literal["train", "test", "all"] = "train",
        test_fraction: Annotated[float, Range(0, 1, "[)")] = 0.25,
        window: Sequence[float] | None = None,
        spacing_mm: Spacing | Sequence[Spacing] | None = None,
        patches: Annotated[int, Range(1, 10_000)] | None = None,
        select: str | Sequence[str] = "stride",
        stride: int | Literal["auto"] = "auto",
        on_error: OnError = "raise",
        ids: IdKind = "hashed",
        salt_file: str | None = None,
        id_map: bool = False,
    ) -> None:
        if reads not in _KINDS:
            raise ConfigurationError(f"dataset.reads is {reads!r}: use {', '.join(_KINDS)}")
        if not root:
            raise ConfigurationError(
                "dataset.root is not set: give the folder that holds, for each class, a folder of "
                f"{_IN_WORDS[reads]}, or the files that dataset.labels lists"
            )
        if split not in ("train", "test", "all"):
            raise ConfigurationError(f"dataset.split is {split!r}: use train, test or all")
        if ids != "hashed":
            raise ConfigurationError(
                f"dataset.ids is {ids!r}: hospitals call files after patients, so that ids are "
                "always hashed here; dataset.id_map=true writes which file an id stands for"
            )
        if patches is not None and reads == "pictures":
            raise ConfigurationError("dataset.patches is for volumes: leave it out of pictures")
        self.name = name
        self.root = expanded(root, setting="dataset.root")
        self.reads = reads
        self.labels = labels
        self.split = split
        self.test_fraction = test_fraction
        self.window = window_of(window)
        self.spacing_mm = _spacing(spacing_mm, self.dimensions)
        self.patches = patches
        self.on_error = checked_on_error(on_error)
        self.ids = IdSettings(ids="hashed", salt_file=salt_file, id_map=id_map)
        self.selector = Selector(select=select, stride=stride, hashed=True)

    @property
    def dimensions(self) -> int:
        """Of one image: 2 or 3."""
        return 2 if self.reads == "pictures" else 3

    def load(self, *, preprocess: Preprocess, n_images: int | None, seed: int) -> LoadedData:
        """Find the scans, split their patients and select images; see `DatasetSource`."""
        preprocess = preprocess.over(self.dimensions)
        if self.patches is not None and preprocess.resize != "keep":
            raise ConfigurationError(
                f"dataset.patches={self.patches} cuts boxes of preprocess.size out of volumes: set "
                f"preprocess.resize=keep, not {preprocess.resize}"
            )
        naming = self.ids.naming()
        classes, found, cohort = self._cohort(naming)
        train, test = cohort.split(self.test_fraction, classes=len(classes), seed=seed)
        attacked = {"train": train, "test": test, "all": cohort.files}[self.split]
        if not attacked.paths:
            raise DataError(
                f"dataset.split={self.split} of {printable(self.root)} has no images: every class "
                "keeps a patient for training. Raise dataset.test_fraction or set dataset.split=all"
            )
        return load_files(
            name=self.name,
            classes=classes,
            attacked=attacked,
            train=train,
            selector=self.selector,
            on_error=self.on_error,
            preprocess=preprocess,
            n_images=n_images,
            seed=seed,
            source=self.root,
            naming=naming,
            held_out={"train": test, "test": train, "all": None}[self.split],
            reader=ScanReader(
                sources=found.sources,
                preprocess=preprocess,
                window=self.window,
                spacing_mm=self.spacing_mm,
                patches=None if self.patches is None else Patches(seed),
            ),
            notes=(
                *self._faults_note(found, naming),
                *self._doubts_note(found, naming),
                cohort.note(),
            ),
        )

    def _cohort(self, naming: Naming) -> tuple[tuple[str, ...], Found, Cohort]:
        """Find what is there: the classes, the scans, and whose they are."""
        with looking(f"dataset.root={printable(self.root)}"):
            if not is_folder(self.root):
                raise DataError(f"dataset.root: {printable(self.root)} is not a folder")
        classes, labelled, unlisted, ignored = self._labelled()
        finder = Finder(
            kinds=_KINDS[self.reads],
            salt=naming.salt or b"",
            title=lambda path: naming.ids([path], folder=self.root, dataset=self.root)[0],
            patches=self.patches,
        )
        found = finder.find(labelled, classes)
        self._write_map(found, naming)
        if found.faults and self.on_error == "raise":
            raise DataError(_unreadable(found, self.root, naming.hint(self.root)))
        there = {scan.label for scan in found.scans}
        for label in range(len(classes)):
            if label not in there:
                raise DataError(
                    f"class {label + 1} of {len(classes)} has no image that can be read: this "
                    f"dataset reads {_IN_WORDS[self.reads]} (dataset {printable(self.root)})"
                )
        cohort = Cohort.of(found.scans, root=self.root, naming=naming)
        return classes, found, cohort.noting(ignored=ignored + found.ignored, unlisted=unlisted)

    def _labelled(self) -> tuple[tuple[str, ...], list[Labelled], tuple[str, ...], int]:
        """Return the classes, the files, lines on closed folders, and how many are not listed."""
        if self.labels is not None:
            classes, labelled, ignored = in_table(self.root, self.labels)
            return classes, labelled, (), ignored
        return *in_class_folders(self.root, on_error=self.on_error), 0

    def _write_map(self, found: Found, naming: Naming) -> None:
        places: list[Path] = [*found.sources, *found.faults]
        ids = naming.ids(places, folder=self.root, dataset=self.root)
        naming.write_map(self.root, dict(zip(ids, places, strict=True)))

    def _faults_note(self, found: Found, naming: Naming) -> list[str]:
        if not found.faults:
            return []
        ids = naming.ids(list(found.faults), folder=self.root, dataset=self.root)
        told = ", ".join(first_of(sorted(ids)))
        hint = naming.hint(self.root)
        return [f"left out, no header that can be read: {len(ids)} files: {told}{hint}"]

    def _doubts_note(self, found: Found, naming: Naming) -> list[str]:
        if not found.doubts:
            return []
        ids = naming.ids(list(found.doubts), folder=self.root, dataset=self.root)
        told = [f"{name} ({why})" for name, why in zip(ids, found.doubts.values(), strict=True)]
        listed = "; ".join(first_of(sorted(told)))
        return [f"series that may lack their first or last slices: {len(ids)}: {listed}"]


def _unreadable(found: Found, root: Path, hint: str) -> str:
    return "\n  ".join(
        [
            f"{len(found.faults)} of the files cannot be read (dataset {printable(root)}):",
            *first_of(sorted(found.faults.values())),
            f"replace these files, or leave them out with dataset.on_error=skip{hint}",
        ]
    )


def _spacing(setting: float | Sequence[float] | None, dimensions: int) -> tuple[float, ...] | None:
    if setting is None:
        return None
    several = (setting,) * dimensions if isinstance(setting, int | float) else tuple(setting)
    if len(several) != dimensions:
        order = "[x, y, z]" if dimensions == 3 else "[x, y]"
        raise ConfigurationError(
            f"dataset.spacing_mm is {list(several)}: give one number or {order}, in millimetres"
        )
    return tuple(float(value) for value in several)
