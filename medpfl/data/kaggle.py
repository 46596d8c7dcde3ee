"""The three public datasets of the papers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from medpfl.data.catalogue import CATALOGUE
from medpfl.data.dataset import LoadedData, OnError
from medpfl.data.files import checked_on_error, load_files
from medpfl.data.ids import IdKind, IdSettings, Naming
from medpfl.data.listing import FileList, list_images
from medpfl.data.preprocess import Preprocess
from medpfl.data.roots import find_splits
from medpfl.data.select import Selector
from medpfl.errors import ConfigurationError, DataError


class KaggleDataset:
    """Load one of the papers' datasets from this machine, or from Kaggle.

    Args:
        name: ``melanoma``, ``covid`` or ``brain_mri``.
        root: the dataset's folder, or None to search and download; see `find_splits`.
        split: which split to attack, ``train`` or ``test``; None for the paper's.
        select: see `Selector`.
        stride: see `Selector`.
        on_error: ``raise`` stops at files that cannot be read, ``skip`` leaves them out.
        download: whether to ask Kaggle for a dataset that is not on this machine.
        ids: what images are called, ``name`` or ``hashed``; see `IdSettings`.
        salt_file: see `read_salt`.
        id_map: whether to write which file each hashed id stands for.

    Raises:
        ConfigurationError: if a setting leaves the range above.
    """

    def __init__(
        self,
        *,
        name: str,
        root: str | None = None,
        split: Literal["train", "test"] | None = None,
        select: str | Sequence[str] = "stride",
        stride: int | Literal["auto"] = "auto",
        on_error: OnError = "raise",
        download: bool = True,
        ids: IdKind = "name",
        salt_file: str | None = None,
        id_map: bool = False,
    ) -> None:
        if name not in CATALOGUE:
            raise ConfigurationError(f"dataset.name is {name!r}: use {', '.join(CATALOGUE)}")
        self.entry = CATALOGUE[name]
        self.split = self.entry.published.split if split is None else split
        if self.split not in self.entry.splits:
            raise ConfigurationError(f"dataset.split is {split!r}: use train or test")
        self.root = root
        self.on_error = checked_on_error(on_error)
        self.download = download
        published = self.entry.published if self.split == self.entry.published.split else None
        self.ids = IdSettings(ids=ids, salt_file=salt_file, id_map=id_map)
        self.selector = Selector(
            select=select, stride=stride, published=published, hashed=self.ids.hashed
        )

    def load(self, *, preprocess: Preprocess, n_images: int | None, seed: int) -> LoadedData:
        """Find the dataset and select the attacked images; see `DatasetSource`."""
        entry, naming = self.entry, self.ids.naming()
        folders = find_splits(
            entry,
            root=self.root,
            split=self.split,
            fetch=self.download,
            names_shown=not self.ids.hashed,
        )
        source = folders[self.split].parent
        # The map is of all splits, so that a run on another one takes nothing away from it.
        wanted = {self.split, "train", *(folders if self.ids.id_map else ())}
        lists = {
            split: self._listed(folder, source, naming)
            for split, folder in folders.items()
            if split in wanted
        }
        files = {
            i: p for found in lists.values() for i, p in zip(found.ids, found.paths, strict=True)
        }
        naming.write_map(source, files)
        attacked = lists[self.split]
        other = next((split for split in folders if split != self.split), None)
        if other is not None and other not in lists:
            # Only utility is measured on it: a fault in it must not stop an attack.
            with suppress(DataError):
                lists[other] = self._listed(folders[other], source, naming)
        return load_files(
            name=entry.name,
            classes=entry.classes,
            attacked=attacked,
            train=lists.get("train", attacked),
            selector=self.selector,
            on_error=self.on_error,
            preprocess=preprocess,
            n_images=n_images,
            seed=seed,
            source=source,
            naming=naming,
            held_out=None if other is None else lists.get(other),
        )

    def _listed(self, folder: Path, dataset: Path, naming: Naming) -> FileList:
        return list_images(
            folder,
            self.entry.classes,
            dataset=dataset,
            naming=naming,
            on_error=self.on_error,
            setting=f"dataset {self.entry.name}",
        )
