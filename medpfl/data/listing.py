"""Class folders of picture files: what is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medpfl._paths import entries, looking, printable, subfolders
from medpfl.data.dataset import ImageSet, OnError
from medpfl.data.ids import Naming
from medpfl.data.images import IMAGE_SUFFIXES
from medpfl.errors import DataError
from medpfl.geometry import Geometry


@dataclass(frozen=True)
class FileList:
    """The picture files of a split, in class order.

    Args:
        paths: the files; within a class sorted by name, as ``torchvision``'s ``ImageFolder`` does.
            Of a file with several images, one path an image that begins with the file's.
        labels: one an image.
        ids: one an image, as `Naming.ids` gives them.
        titles: what messages call the files.
        folders: one an image, see `ImageSet`.
        ignored: how many other files lay beside them; hidden files are not counted.
        unlisted: how many folders could not be listed, a line for each class folder with any.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    ids: tuple[str, ...]
    titles: tuple[str, ...]
    folders: tuple[str, ...]
    ignored: int = 0
    unlisted: tuple[str, ...] = ()

    def keep(self, indices: Iterable[int]) -> FileList:
        """Return the files of these indices, in their order."""
        chosen = list(indices)
        return FileList(
            paths=tuple(self.paths[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
            ids=tuple(self.ids[i] for i in chosen),
            titles=tuple(self.titles[i] for i in chosen),
            folders=tuple(self.folders[i] for i in chosen),
            ignored=self.ignored,
            unlisted=self.unlisted,
        )

    def without(self, paths: Set[Path]) -> FileList:
        """Return the files that are not among these paths."""
        return self.keep(i for i, path in enumerate(self.paths) if path not in paths)

    def image_set(
        self,
        read: Callable[[Path], Tensor],
        on_error: OnError,
        place: Callable[[Path], Geometry | None] | None = None,
    ) -> ImageSet:
        """Return the files as images that are read, and placed, when they are asked for."""
        return ImageSet(
            ids=self.ids,
            labels=torch.tensor(self.labels, dtype=torch.int64),
            read=lambda index: read(self.paths[index]).clone(),
            on_error=on_error,
            folders=self.folders,
            place=None if place is None else lambda index: place(self.paths[index]),
        )


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder, sorted, without hidden ones.

    Raises:
        OSError: the folder cannot be listed.
    """
    return tuple(name for name in subfolders(folder) if not is_hidden(name))


def list_images(
    folder: Path,
    classes: tuple[str, ...],
    *,
    dataset: Path | None = None,
    naming: Naming | None = None,
    on_error: OnError = "raise",
    setting: str = "dataset.root",
) -> FileList:
    """List the picture files of a split.

    Args:
        folder: holds one folder a class; pictures may lie deeper inside these.
        classes: the class folders, in the order of the labels.
        dataset: the folder of the whole dataset; None where that is `folder`.
        naming: gives the ids; None for names.
        on_error: ``skip`` passes over folders inside a class that cannot be listed.
        setting: what the dataset was found by, for messages.

    Raises:
        DataError: if a class has no picture, or a folder that cannot be listed.
    """
    naming, dataset = naming or Naming(), dataset or folder
    paths: list[Path] = []
    labels: list[int] = []
    unlisted: list[str] = []
    ignored = 0
    for label, name in enumerate(classes):
        place = folder / name
        with looking(f"{setting}: {printable(place)}"):
            files, closed = files_below(place)
        if closed and on_error == "raise":
            raise DataError(f"{setting}: {_closed_to_us(place, closed)}")
        if closed:
            unlisted.append(f"{closed} in {printable(place.relative_to(dataset))}")
        pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        if not pictures:
            raise DataError(_no_images(place, len(files), closed))
        ignored += len(files) - len(pictures)
        paths += pictures
        labels += [label] * len(pictures)
    ids = naming.ids(paths, folder=folder, dataset=dataset)
    titles = naming.titles(paths, ids, dataset=dataset)
    return FileList(
        paths=tuple(paths),
        labels=tuple(labels),
        ids=ids,
        titles=titles,
        folders=naming.folders([p.relative_to(folder) for p in paths]),
        ignored=ignored,
        unlisted=tuple(unlisted),
    )


def files_below(folder: Path) -> tuple[list[Path], int]:
    """Return the visible files below a class folder, and how many folders could not be listed.

    Links to files are followed, links to folders inside are not.

    Raises:
        OSError: the class folder itself cannot be listed.
    """
    files: list[Path] = []
    closed = 0
    waiting = [entries(folder)]
    while waiting:
        for entry in waiting.pop():
            if is_hidden(entry.name):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entries(Path(entry.path)))
                elif _may_be_file(entry):
                    files.append(Path(entry.path))
            except OSError:
                closed += 1
    return sorted(files, key=lambda path: (path.parent.as_posix(), path.name)), closed


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to where we may not look: reading the image will say so
        return True


def _closed_to_us(folder: Path, closed: int) -> str:
    # Only the class folder is named: folders inside it can be called after patients.
    where = printable(folder)
    return (
        f"{closed} {'folder' if closed == 1 else 'folders'} inside {where} cannot be "
        f"listed, so that images may be missed. Give yourself access (chmod -R u+rX '{where}'), or "
        "leave them out with dataset.on_error=skip"
    )


def _no_images(folder: Path, others: int, closed: int) -> str:
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    left_out = f", and {closed} folders inside cannot be listed" if closed else ""
    return (
        f"class {printable(folder.name)!r} has no images: {printable(folder)} holds {others} "
        f"files, none of them with a suffix of {suffixes}{left_out}"
    )


def is_hidden(name: str) -> bool:
    """Tell whether a name is none of the user's: a hidden file's, or an archive's own."""
    return name.startswith((".", "__MACOSX"))
