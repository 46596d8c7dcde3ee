"""The three public datasets of the papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from medpfl.data.catalogue import CATALOGUE
from medpfl.data.dataset import LoadedData, OnError
from medpfl.data.files import checked_on_error, list_images, load_files
from medpfl.data.preprocess import Preprocess
from medpfl.data.roots import find_splits
from medpfl.data.select import Selector
from medpfl.errors import ConfigurationError


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
        self.selector = Selector(select=select, stride=stride, published=published)

    def load(self, *, preprocess: Preprocess, n_images: int | None, seed: int) -> LoadedData:
        """Find the dataset and select the attacked images; see `DatasetSource`."""
        entry = self.entry
        folders = find_splits(entry, root=self.root, split=self.split, fetch=self.download)
        attacked = list_images(folders[self.split], entry.classes)
        if self.split == "train" or "train" not in folders:
            train = attacked
        else:
            train = list_images(folders["train"], entry.classes)
        return load_files(
            name=entry.name,
            classes=entry.classes,
            attacked=attacked,
            train=train,
            selector=self.selector,
            on_error=self.on_error,
            preprocess=preprocess,
            n_images=n_images,
            seed=seed,
            source=folders[self.split].parent,
        )
