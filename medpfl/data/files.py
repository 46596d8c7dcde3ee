"""From lists of picture files to a loaded dataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from medpfl._paths import printable
from medpfl.data.dataset import ImageSet, LoadedData, OnError, data_spec
from medpfl.data.ids import Naming
from medpfl.data.images import check_header, read_image
from medpfl.data.listing import FileList
from medpfl.data.preprocess import Preprocess
from medpfl.data.select import Selection, Selector, class_counts_note
from medpfl.errors import ConfigurationError, DataError
from medpfl.geometry import Geometry

_NAMED_IN_MESSAGES = 10
_CACHED_IMAGES = 128
# A federation measures its model on the same images after every round.
_CACHED_BYTES = 128 * 2**20
_REMEDIES = {
    "raise": "replace the file, or leave it out with dataset.on_error=skip",
    "skip": "it began like a picture, so dataset.on_error=skip kept it: replace or remove the file",
}


class Example(NamedTuple):
    """One image: its pixels `(C, *S)` in [0, 1], and of a volume where these lie."""

    pixels: Tensor
    geometry: Geometry | None = None


class Reader(Protocol):
    """Makes an example of what lies at a path of a `FileList`."""

    @property
    def placed(self) -> bool:
        """Whether its images are volumes, which have a place."""
        ...

    def check(self, path: Path, *, name: str) -> None:
        """Raise DataError if it does not begin like an image; its pixels are not decoded."""
        ...

    def read(self, path: Path, *, name: str) -> Example:
        """Return an example, or raise DataError; messages call it by this name."""
        ...


@dataclass(frozen=True)
class Pictures:
    """Reads picture files.

    Args:
        preprocess: makes an example of a picture.
    """

    preprocess: Preprocess
    placed: bool = False

    def check(self, path: Path, *, name: str) -> None:
        """See `Reader.check`."""
        check_header(path, name=name)

    def read(self, path: Path, *, name: str) -> Example:
        """See `Reader.read`."""
        return Example(self.preprocess(read_image(path, self.preprocess.channels, name=name)))


def checked_on_error(on_error: OnError) -> OnError:
    """Return the setting ``dataset.on_error``, or raise ConfigurationError."""
    if on_error not in ("raise", "skip"):
        raise ConfigurationError(f"dataset.on_error is {on_error!r}: use raise or skip")
    return on_error


def load_files(
    *,
    name: str,
    classes: tuple[str, ...],
    attacked: FileList,
    train: FileList,
    selector: Selector,
    on_error: OnError,
    preprocess: Preprocess,
    n_images: int | None,
    seed: int,
    source: Path,
    naming: Naming,
    held_out: FileList | None = None,
    reader: Reader | None = None,
    notes: Sequence[str] = (),
) -> LoadedData:
    """Select the attacked images and leave unreadable files out.

    Only the selected images are decoded here. With ``skip`` the others are opened but not decoded,
    so one that is cut short may remain; reading it raises DataError.

    Args:
        name: the dataset's name.
        classes: the class names, in the order of the labels.
        attacked: the split to attack.
        train: the training split; may be the same.
        selector: chooses among the attacked split.
        on_error: what to do about files that cannot be read.
        preprocess: makes an example of a picture.
        n_images: see `DatasetSource`.
        seed: the run's seed.
        source: the folder in which the dataset was found.
        naming: what gave the files their ids.
        held_out: see `LoadedData`; may be the training split. No file of it is opened here.
        reader: reads the files; None where they are pictures.
        notes: more lines for the user.

    Raises:
        DataError: if selected files cannot be read and `on_error` is ``raise``; if there are too
            few images.
    """
    held_out = held_out if held_out is not None and held_out.paths else None
    lists = [files for files in (train, attacked, held_out) if files is not None]
    readers = _Readers(source, reader or Pictures(preprocess), preprocess, naming, on_error, lists)
    choose = partial(selector.choose, attacked.ids, n_images=n_images, seed=seed)
    selection, bad = _readable_selection(attacked, choose, readers)
    damaged = {attacked.paths[index] for index in bad}
    if on_error == "skip" and train is not attacked:
        damaged |= {train.paths[index] for index in _bad_headers(train, readers)}
    kept = [index for index in range(len(attacked.paths)) if index not in bad]
    images = readers.image_set(attacked.keep(kept))
    training = images if train is attacked else readers.image_set(train.without(damaged))
    rest: ImageSet | None = training
    if held_out is not train:
        rest = readers.image_set(held_out) if held_out is not None else None
    skipped = tuple(sorted(readers.titles[path] for path in damaged))
    position = {index: new for new, index in enumerate(kept)}
    labels = [attacked.labels[index] for index in selection.indices]
    return LoadedData(
        name=name,
        classes=tuple(map(printable, classes)),
        synthetic=False,
        spec=data_spec(preprocess, len(classes), training),
        images=images,
        train=training,
        selected=tuple(position[index] for index in selection.indices),
        visited=tuple(position[index] for index in selection.visited),
        skipped=skipped,
        notes=(
            f"attacked: {selection.note}",
            class_counts_note(labels, tuple(map(printable, classes))),
            *_ignored_note(attacked),
            *_unlisted_note((*attacked.unlisted, *train.unlisted)),
            *notes,
            *_skipped_note(skipped, readers.hint),
        ),
        source=printable(source),
        held_out=rest,
    )


class _Readers:
    """Read the files of a dataset: now, or later with a remedy in the message."""

    def __init__(
        self,
        source: Path,
        reader: Reader,
        preprocess: Preprocess,
        naming: Naming,
        on_error: OnError,
        lists: Sequence[FileList],
    ) -> None:
        self.titles = {
            path: title
            for files in lists
            for path, title in zip(files.paths, files.titles, strict=True)
        }
        self.source = printable(source)
        self.hint = naming.hint(source)
        self.on_error = on_error
        self.reader = reader
        # Large radiographs take 50 ms to decode, and the selected ones are wanted again soon.
        size = 4 * math.prod(preprocess.shape)
        self.now = lru_cache(maxsize=max(_CACHED_IMAGES, _CACHED_BYTES // size))(self._read)

    def image_set(self, files: FileList) -> ImageSet:
        """Return files as images that are read when they are asked for."""
        place = self._place if self.reader.placed else None
        return files.image_set(self._pixels, self.on_error, place)

    def _pixels(self, path: Path) -> Tensor:
        return self._later(path).pixels

    def _place(self, path: Path) -> Geometry | None:
        return self._later(path).geometry

    def _later(self, path: Path) -> Example:
        """Read an image after the selection: the message must say by itself what to do."""
        try:
            return self.now(path)
        except DataError as error:
            remedy = f"{_REMEDIES[self.on_error]}{self.hint}"
            raise DataError(f"{error} (dataset {self.source}); {remedy}") from None

    def _read(self, path: Path) -> Example:
        return self.reader.read(path, name=self.titles[path])


def _readable_selection(
    files: FileList, choose: Callable[..., Selection], readers: _Readers
) -> tuple[Selection, set[int]]:
    """Select until all selected files decode; also return the indices of those that do not."""
    bad = _bad_headers(files, readers) if readers.on_error == "skip" else set()
    decoded: set[int] = set()
    while True:
        selection = choose(unreadable=bad)
        faults = {}
        for index in set(selection.indices) - decoded:
            try:
                readers.now(files.paths[index])
            except DataError as error:
                faults[index] = str(error)
        if not faults:
            return selection, bad
        if readers.on_error == "raise":
            raise DataError(_unreadable([faults[i] for i in sorted(faults)], readers))
        bad |= faults.keys()
        decoded |= set(selection.indices)


def _bad_headers(files: FileList, readers: _Readers) -> set[int]:
    bad = set()
    for index, (path, title) in enumerate(zip(files.paths, files.titles, strict=True)):
        try:
            readers.reader.check(path, name=title)
        except DataError:
            bad.add(index)
    return bad


def _unreadable(faults: list[str], readers: _Readers) -> str:
    head = f"{len(faults)} of the selected images cannot be read (dataset {readers.source}):"
    remedy = "replace these files, or leave them out with dataset.on_error=skip"
    return "\n  ".join([head, *first_of(faults), f"{remedy}{readers.hint}"])


def _skipped_note(skipped: Sequence[str], hint: str) -> list[str]:
    if not skipped:
        return []
    named = ", ".join(first_of(skipped))
    return [f"left out, cannot be read: {len(skipped)} files: {named}{hint}"]


def _unlisted_note(unlisted: Sequence[str]) -> list[str]:
    if not unlisted:
        return []
    told = ", ".join(dict.fromkeys(unlisted))  # the splits of one folder share what is closed
    return [f"left out, folders that cannot be listed: {told}"]


def _ignored_note(files: FileList) -> list[str]:
    return [f"ignored: {files.ignored} files that are not images"] if files.ignored else []


def first_of(lines: Sequence[str]) -> list[str]:
    """Return the first few lines, and how many more there are."""
    rest = len(lines) - _NAMED_IN_MESSAGES
    return [*lines[:_NAMED_IN_MESSAGES], *([f"and {rest} more"] if rest > 0 else [])]
