"""Anyone's own images: one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch

from medpfl._paths import expanded, is_folder, looking, printable
from medpfl.data.dataset import LoadedData, OnError
from medpfl.data.files import checked_on_error, load_files
from medpfl.data.ids import IdKind, IdSettings
from medpfl.data.listing import FileList, class_folders, list_images
from medpfl.data.preprocess import Preprocess
from medpfl.data.select import Selector
from medpfl.errors import ConfigurationError, DataError
from medpfl.seeding import generator
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range

_SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation"}


@checked("dataset")
class ImageFolder:
    """Load pictures from a folder that holds one folder a class.

    The split into training and test images is drawn class by class from the run's seed.

    Args:
        name: what tables and records call the dataset.
        root: the folder with the class folders.
        split: which images to attack: ``train`` (as the papers do), ``test`` or ``all``.
        test_fraction: the share of each class that is kept for testing, at least 0, below 1.
        select: see `Selector`.
        stride: see `Selector`.
        on_error: ``raise`` stops at files that cannot be read, ``skip`` leaves them out.
        ids: what images are called, ``name`` or ``hashed``; see `IdSettings`.
        salt_file: see `read_salt`.
        id_map: whether to write which file each hashed id stands for.

    Raises:
        ConfigurationError: if a setting leaves the range above.
    """

    def __init__(
        self,
        *,
        name: str = "folder",
        root: str | None = None,
        split: Literal["train", "test", "all"] = "train",
        test_fraction: Annotated[float, Range(0, 1, "[)")] = 0.25,
        select: str | Sequence[str] = "stride",
        stride: int | Literal["auto"] = "auto",
        on_error: OnError = "raise",
        ids: IdKind = "name",
        salt_file: str | None = None,
        id_map: bool = False,
    ) -> None:
        if not root:
            raise ConfigurationError(
                "dataset.root is not set: give the folder that holds one folder of images a "
                "class, such as dataset.root=my_images with my_images/healthy/001.png inside"
            )
        if split not in ("train", "test", "all"):
            raise ConfigurationError(f"dataset.split is {split!r}: use train, test or all")
        self.name = name
        self.root = expanded(root, setting="dataset.root")
        self.split = split
        self.test_fraction = test_fraction
        self.on_error = checked_on_error(on_error)
        self.ids = IdSettings(ids=ids, salt_file=salt_file, id_map=id_map)
        self.selector = Selector(select=select, stride=stride, hashed=self.ids.hashed)

    def load(self, *, preprocess: Preprocess, n_images: int | None, seed: int) -> LoadedData:
        """Find the images, split them and select the attacked ones; see `DatasetSource`."""
        naming = self.ids.naming()
        with looking(f"dataset.root={printable(self.root)}"):
            classes = _checked_classes(self.root)
        files = list_images(self.root, classes, naming=naming, on_error=self.on_error)
        naming.write_map(self.root, dict(zip(files.ids, files.paths, strict=True)))
        train, test = _split(files, classes, self.test_fraction, seed)
        attacked = {"train": train, "test": test, "all": files}[self.split]
        if not attacked.paths:
            raise DataError(
                f"dataset.split={self.split} of {printable(self.root)} has no images: raise "
                "dataset.test_fraction or set dataset.split=all"
            )
        held_out = {"train": test, "test": train, "all": None}[self.split]
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
            held_out=held_out,
        )


def _checked_classes(root: Path) -> tuple[str, ...]:
    shown = printable(root)
    if not is_folder(root):
        raise DataError(f"dataset.root: {shown} is not a folder")
    classes = class_folders(root)
    if classes and {name.lower() for name in classes} <= _SPLIT_NAMES:
        raise DataError(
            f"dataset.root: {shown} holds the folders of splits ({', '.join(classes)}), not of "
            f"classes; point it to one of them, such as dataset.root={shown}/{classes[0]}"
        )
    if len(classes) < 2:
        raise DataError(
            f"dataset.root: {shown} holds {len(classes)} class folders, and at least 2 are needed; "
            "put the images of each class into a folder of its own, such as "
            f"{shown}/healthy and {shown}/tumour"
        )
    return classes


def _split(
    files: FileList, classes: tuple[str, ...], test_fraction: float, seed: int
) -> tuple[FileList, FileList]:
    """Draw the test images of each class; a class keeps at least one image for training."""
    test: set[int] = set()
    for label, name in enumerate(classes):
        members = [index for index, other in enumerate(files.labels) if other == label]
        count = min(round(len(members) * test_fraction), len(members) - 1)
        order = torch.randperm(len(members), generator=generator(seed, "split", printable(name)))
        test |= {members[i] for i in order[:count].tolist()}
    everything = range(len(files.paths))
    return files.keep(i for i in everything if i not in test), files.keep(sorted(test))
