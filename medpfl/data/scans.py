"""Medical files become scans: a picture a frame, a volume a file or series, and whose they are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from torch import Tensor

from medpfl.data.cohort import Labelled, Scan
from medpfl.data.decoding import called, decoding
from medpfl.data.dicom.header import Header, hashed_words, may_be_dicom, read_header, whole_name
from medpfl.data.dicom.pixels import read_frame
from medpfl.data.dicom.series import lacks_slices, read_series
from medpfl.data.files import Example
from medpfl.data.preprocess import Preprocess
from medpfl.data.volumes import nifti, nrrd
from medpfl.data.volumes.grid import Grid, with_spacing
from medpfl.data.volumes.intensity import Window, grey_levels
from medpfl.data.volumes.patches import Patches
from medpfl.errors import DataError

Kind = Literal["frame", "series", "nifti", "nrrd"]

IN_WORDS: Mapping[Kind, str] = {
    "frame": "a DICOM file",
    "series": "a DICOM series",
    "nifti": "a NIfTI file",
    "nrrd": "a NRRD file",
}
_BIDS = re.compile(r"sub-([A-Za-z0-9]+)")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a scan is read from.

    Args:
        kind: of file.
        paths: its files; several of a series alone.
        number: of the frame, from 0, or of the patch.
    """

    kind: Kind
    paths: tuple[Path, ...] = field(repr=False)
    number: int = 0


@dataclass
class Found:
    """What lies in a dataset's folders.

    Args:
        scans: in the order of the files.
        sources: what each is read from, by its place.
        ignored: files that hold no image.
        faults: what is wrong with files that cannot be read, by the file.
        doubts: why series may not be whole, by the folder.
    """

    scans: list[Scan] = field(default_factory=list)
    sources: dict[Path, Source] = field(default_factory=dict, repr=False)
    ignored: int = 0
    faults: dict[Path, str] = field(default_factory=dict, repr=False)
    doubts: dict[Path, str] = field(default_factory=dict, repr=False)

    def add(self, place: Path, source: Source, of: Labelled, patient: str) -> None:
        """Add a scan."""
        self.sources[place] = source
        self.scans.append(Scan(place=place, label=of.label, inside=of.inside, patient=patient))


class Finder:
    """Looks through files for scans.

    Args:
        kinds: which to take.
        salt: the secret of hashes.
        title: gives what messages call a file.
        patches: to cut out of each volume; None for the whole.
    """

    def __init__(
        self,
        *,
        kinds: frozenset[Kind],
        salt: bytes,
        title: Callable[[Path], str],
        patches: int | None,
    ) -> None:
        self._kinds = kinds
        self._salt = salt
        self._title = title
        self._patches = patches

    def find(self, files: Iterable[Labelled], classes: Sequence[str]) -> Found:
        """Find the scans among files.

        Raises:
            DataError: a class is called as one of its patients.
        """
        found = Found()
        dicom: list[tuple[Labelled, Header]] = []
        for file in files:
            kind = self._kind(file.path)
            if kind is None:
                found.ignored += 1
            elif kind in ("nifti", "nrrd"):
                self._add_volume(found, file.path, kind, (file.path,), file, "")
            else:
                self._look(found, dicom, file)
        _check_classes(classes, dicom, self._salt)
        if "series" in self._kinds:
            self._add_series(found, dicom)
        else:
            self._add_frames(found, dicom)
        return found

    def _kind(self, path: Path) -> Kind | None:
        name = path.name.lower()
        if name.endswith(nifti.SUFFIXES):
            return "nifti" if "nifti" in self._kinds else None
        if name.endswith(nrrd.SUFFIXES):
            return "nrrd" if "nrrd" in self._kinds else None
        if name == "dicomdir" or not may_be_dicom(path):
            return None
        return "series" if "series" in self._kinds else "frame"

    def _look(self, found: Found, dicom: list[tuple[Labelled, Header]], file: Labelled) -> None:
        try:
            with decoding(self._title(file.path), IN_WORDS["frame"]):
                header = read_header(file.path, self._salt)
        except DataError as error:
            found.faults[file.path] = str(error)
            return
        if header is None:
            found.ignored += 1
        else:
            dicom.append((file, header))

    def _add_frames(self, found: Found, dicom: Iterable[tuple[Labelled, Header]]) -> None:
        for file, header in dicom:
            patient = _patient(file, header.patient)
            for number in range(header.frames):
                place = file.path / f"frame-{number:04d}" if header.frames > 1 else file.path
                source = Source(kind="frame", paths=(file.path,), number=number)
                found.add(place, source, file, patient)

    def _add_series(self, found: Found, dicom: Iterable[tuple[Labelled, Header]]) -> None:
        """Make a volume of every folder of files, and of every file of many frames."""
        folders: dict[tuple[Path, int], list[tuple[Labelled, Header]]] = defaultdict(list)
        for file, header in dicom:
            if header.frames > 1:
                self._add_volume(found, file.path, "series", (file.path,), file, header.patient)
            else:
                folders[file.path.parent, file.label].append((file, header))
        for (folder, _), members in folders.items():
            first, header = members[0]
            several = len({other.series for _, other in members})
            if several > 1:
                found.faults[folder] = (
                    f"cannot read the image {self._title(folder)}: {several} series lie in one "
                    "folder: put each into a folder of its own"
                )
                continue
            doubt = lacks_slices([other for _, other in members])
            if doubt:
                found.doubts[folder] = doubt
            paths = tuple(file.path for file, _ in members)
            self._add_volume(found, folder, "series", paths, first, header.patient)

    def _add_volume(
        self,
        found: Found,
        place: Path,
        kind: Kind,
        paths: tuple[Path, ...],
        file: Labelled,
        patient: str,
    ) -> None:
        whose = _patient(file, patient)
        if self._patches is None:
            found.add(place, Source(kind=kind, paths=paths), file, whose)
            return
        for number in range(self._patches):
            source = Source(kind=kind, paths=paths, number=number)
            found.add(place / f"patch-{number:04d}", source, file, whose)


class ScanReader:
    """Makes examples of scans; see `medpfl.data.files.Reader`.

    Args:
        sources: what each scan is read from, by its place.
        preprocess: for data of these dimensions.
        window: which values become grey levels; None for the file's own, or robust percentiles.
        spacing_mm: what to resample to, x first; None to leave it.
        patches: cuts patches out of volumes; None for the whole.
    """

    def __init__(
        self,
        *,
        sources: Mapping[Path, Source],
        preprocess: Preprocess,
        window: Window | None,
        spacing_mm: Sequence[float] | None,
        patches: Patches | None,
    ) -> None:
        self._sources = sources
        self._preprocess = preprocess
        self._window = window
        self._spacing_mm = spacing_mm
        self._patches = patches
        # The patches of a volume are read one after another.
        self._grid = lru_cache(maxsize=1)(self._read_grid) if patches else self._read_grid

    @property
    def placed(self) -> bool:
        """See `Reader.placed`."""
        return len(self._preprocess.sides) == 3

    def check(self, path: Path, *, name: str) -> None:
        """See `Reader.check`; headers of DICOM were read as the files were found."""
        source = self._sources[path]
        with decoding(name, IN_WORDS[source.kind]):
            if source.kind == "nifti":
                nifti.check_nifti(source.paths[0])
            elif source.kind == "nrrd":
                nrrd.check_nrrd(source.paths[0])

    def read(self, path: Path, *, name: str) -> Example:
        """See `Reader.read`."""
        source = self._sources[path]
        if source.kind == "frame":
            return Example(self._picture(source, name))
        grid = self._grid(source.kind, source.paths, name)
        with called(name):
            if self._patches is not None:
                grid = self._patches.cut(grid, self._preprocess.sides[::-1], source.number)
            grid = self._preprocess.volume(grid)
        return Example(self._preprocess.example(grid), grid.geometry)

    def _picture(self, source: Source, name: str) -> Tensor:
        with decoding(name, IN_WORDS[source.kind]):
            frame = read_frame(source.paths[0], source.number)
        with called(name):
            return self._preprocess(frame.picture(self._window, self._spacing_mm))

    def _read_grid(self, kind: Kind, paths: tuple[Path, ...], name: str) -> Grid:
        inverted = False
        with decoding(name, IN_WORDS[kind]):
            if kind == "series":
                grid, inverted = read_series(paths)
            else:
                grid = nifti.read_nifti(paths[0]) if kind == "nifti" else nrrd.read_nrrd(paths[0])
        with called(name):
            grey = grey_levels(grid.values, self._window)
            grid = Grid(1 - grey if inverted else grey, grid.affine, grid.stored)
            return grid if self._spacing_mm is None else with_spacing(grid, self._spacing_mm)


def _patient(file: Labelled, header: str) -> str:
    """Return whose a file is: as the list says, its header, its name in BIDS, or its folder.

    A folder may hold several patients: then these stay on one side of a split together.
    """
    if file.patient:
        return f"list {file.patient}"
    if header:
        return f"header {header}"
    subject = _BIDS.search(file.inside.as_posix())
    if subject:
        return f"subject {subject[1]}"
    return f"file {file.inside.parts[0] if len(file.inside.parts) > 1 else file.path}"


def _check_classes(
    classes: Sequence[str], dicom: Iterable[tuple[Labelled, Header]], salt: bytes
) -> None:
    """Refuse classes called as patients: every table and picture would show their names."""
    headers: dict[int, list[Header]] = defaultdict(list)
    for file, header in dicom:
        headers[file.label].append(header)
    for label, own in headers.items():
        names = {name for header in own for name in header.names}
        single = len({header.patient for header in own}) == 1
        words = {word for header in own for word in header.words} if single else set()
        name = classes[label]
        if whole_name(salt, name) in names or hashed_words(salt, name) & words:
            raise DataError(
                f"class {label + 1} of {len(classes)} is called as its files' headers call a "
                "patient (not repeated here), and outputs show the names of classes. Sort the "
                "files into folders of classes, or list files and classes in a CSV: "
                "dataset.labels=FILE"
            )
