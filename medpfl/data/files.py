"""Class folders of picture files: listing them, and turning them into a loaded dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from medpfl.data.dataset import ImageSet, LoadedData, OnError, data_spec
from medpfl.data.images import IMAGE_SUFFIXES, check_header, read_image
from medpfl.data.preprocess import Preprocess
from medpfl.data.select import Selection, Selector, class_counts_note
from medpfl.errors import ConfigurationError, DataError

_NAMED_IN_MESSAGES = 10
_CACHED_IMAGES = 128


@dataclass(frozen=True)
class FileList:
    """The picture files of a split, in class order.

    Args:
        paths: the files; within a class sorted by name, as ``torchvision``'s ``ImageFolder`` does.
        labels: one an image.
        ids: one an image, ``<class folder>/<name>`` without the suffix where that is unique.
        ignored: how many other files lay beside them; hidden files are not counted.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    ids: tuple[str, ...]
    ignored: int = 0

    def keep(self, indices: Iterable[int]) -> FileList:
        """Return the files of these indices, in their order."""
        chosen = list(indices)
        return FileList(
            paths=tuple(self.paths[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
            ids=tuple(self.ids[i] for i in chosen),
            ignored=self.ignored,
        )

    def without(self, paths: Set[Path]) -> FileList:
        """Return the files that are not among these paths."""
        return self.keep(i for i, path in enumerate(self.paths) if path not in paths)

    def image_set(self, read: Callable[[Path], Tensor], on_error: OnError) -> ImageSet:
        """Return the files as images that are read when they are asked for."""
        return ImageSet(
            ids=self.ids,
            labels=torch.tensor(self.labels, dtype=torch.int64),
            read=lambda index: read(self.paths[index]).clone(),
            on_error=on_error,
        )


def checked_on_error(on_error: OnError) -> OnError:
    """Return the setting ``dataset.on_error``, or raise ConfigurationError."""
    if on_error not in ("raise", "skip"):
        raise ConfigurationError(f"dataset.on_error is {on_error!r}: use raise or skip")
    return on_error


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not _hidden(p.name)))


def list_images(folder: Path, classes: tuple[str, ...]) -> FileList:
    """List the picture files of a split.

    Args:
        folder: holds one folder a class; pictures may lie deeper inside these.
        classes: the class folders, in the order of the labels.

    Raises:
        DataError: if a class has no picture.
    """
    paths: list[Path] = []
    labels: list[int] = []
    ignored = 0
    for label, name in enumerate(classes):
        files = sorted(_visible_files(folder / name), key=lambda p: (p.parent.as_posix(), p.name))
        pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        if not pictures:
            raise DataError(
                f"class {name!r} has no images: {folder / name} holds {len(files)} files, none of "
                f"them with a suffix of {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        ignored += len(files) - len(pictures)
        paths += pictures
        labels += [label] * len(pictures)
    return FileList(tuple(paths), tuple(labels), _unique_ids(folder, paths), ignored)


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

    Raises:
        DataError: if selected files cannot be read and `on_error` is ``raise``; if there are too
            few images.
    """

    # Large radiographs take 50 ms to decode, and the selected ones are wanted again soon.
    @lru_cache(maxsize=_CACHED_IMAGES)
    def read(path: Path) -> Tensor:
        return preprocess(read_image(path, preprocess.channels))

    choose = partial(selector.choose, attacked.ids, n_images=n_images, seed=seed)
    selection, bad = _readable_selection(attacked, choose, read, on_error)
    damaged = {attacked.paths[index] for index in bad}
    if on_error == "skip" and train is not attacked:
        damaged |= {train.paths[index] for index in _bad_headers(train)}
    kept = [index for index in range(len(attacked.paths)) if index not in bad]
    images = attacked.keep(kept).image_set(read, on_error)
    training = images if train is attacked else train.without(damaged).image_set(read, on_error)
    skipped = sorted(path.relative_to(source).as_posix() for path in damaged)
    position = {index: new for new, index in enumerate(kept)}
    labels = [attacked.labels[index] for index in selection.indices]
    return LoadedData(
        name=name,
        classes=classes,
        synthetic=False,
        spec=data_spec(preprocess, len(classes), training),
        images=images,
        train=training,
        selected=tuple(position[index] for index in selection.indices),
        skipped=tuple(skipped),
        notes=(
            f"attacked: {selection.note}",
            class_counts_note(labels, classes),
            *_ignored_note(attacked),
            *_skipped_note(skipped),
        ),
        source=str(source),
    )


def _readable_selection(
    files: FileList,
    choose: Callable[..., Selection],
    read: Callable[[Path], Tensor],
    on_error: OnError,
) -> tuple[Selection, set[int]]:
    """Select until all selected files decode; also return the indices of those that do not."""
    bad = _bad_headers(files) if on_error == "skip" else set()
    decoded: set[int] = set()
    while True:
        selection = choose(unreadable=bad)
        faults = {}
        for index in set(selection.indices) - decoded:
            try:
                read(files.paths[index])
            except DataError as error:
                faults[index] = str(error)
        if not faults:
            return selection, bad
        if on_error == "raise":
            raise DataError(_unreadable([faults[i] for i in sorted(faults)]))
        bad |= faults.keys()
        decoded |= set(selection.indices)


def _bad_headers(files: FileList) -> set[int]:
    bad = set()
    for index, path in enumerate(files.paths):
        try:
            check_header(path)
        except DataError:
            bad.add(index)
    return bad


def _unreadable(faults: list[str]) -> str:
    lines = [f"{len(faults)} of the selected images cannot be read:", *_first(faults)]
    return "\n  ".join(
        [*lines, "replace these files, or leave them out with dataset.on_error=skip"]
    )


def _skipped_note(skipped: list[str]) -> list[str]:
    if not skipped:
        return []
    return [f"left out, cannot be read: {len(skipped)} files: {', '.join(_first(skipped))}"]


def _ignored_note(files: FileList) -> list[str]:
    return [f"ignored: {files.ignored} files that are not images"] if files.ignored else []


def _first(lines: list[str]) -> list[str]:
    rest = len(lines) - _NAMED_IN_MESSAGES
    return [*lines[:_NAMED_IN_MESSAGES], *([f"and {rest} more"] if rest > 0 else [])]


def _visible_files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(_hidden(part) for part in path.relative_to(folder).parts)
    ]


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _unique_ids(folder: Path, paths: list[Path]) -> tuple[str, ...]:
    stems = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    times = Counter(stems)
    return tuple(
        stem if times[stem] == 1 else path.relative_to(folder).as_posix()
        for stem, path in zip(stems, paths, strict=True)
    )
