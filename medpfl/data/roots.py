"""Finding a catalogued dataset on this machine, or fetching it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medpfl._paths import expanded, is_folder, looking, printable, subfolders
from medpfl.data.catalogue import CatalogueEntry
from medpfl.data.download import CACHE_VARIABLE, cache_folder, cached_versions, download
from medpfl.errors import DataError

DATA_ROOT_VARIABLE = "MEDPFL_DATA_ROOT"


def find_splits(
    entry: CatalogueEntry, *, root: str | None, split: str, fetch: bool, names_shown: bool = True
) -> dict[str, Path]:
    """Find the folders of a dataset's splits: the one asked for, and the others that are there.

    Looks into `root` alone if it is given; else below ``$MEDPFL_DATA_ROOT``, then into kagglehub's
    cache, then downloads. A variable that is empty counts as not set.

    Args:
        entry: the dataset.
        root: the dataset's folder, its parent, or a level in between; None to search.
        split: the split that must be there, ``train`` or ``test``.
        fetch: whether to download what is not found.
        names_shown: whether messages may name the folders that lie where the dataset should.

    Returns:
        The folders by split; they lie side by side.

    Raises:
        DataError: if it is not found, with every place that was looked at and what to do; if a
            place cannot be looked into.
    """
    search = _Search(entry, split, names_shown)
    if root:
        return search.at(expanded(root, setting="dataset.root"))
    looked: list[str] = []
    for base, setting in _local_places(entry, looked):
        found, fault = search.below(base, setting)
        if found is not None:
            return found
        looked.append(fault)
    if not fetch:
        looked.append("Kaggle: not asked, because of dataset.download=false")
        raise DataError(_not_found(entry, looked))
    try:
        base = download(entry.handle)
    except DataError as error:
        looked.append(f"Kaggle ({entry.handle}): {error}")
        raise DataError(_not_found(entry, looked)) from error
    found, fault = search.below(base, CACHE_VARIABLE)
    if found is None:
        raise DataError(_not_found(entry, [*looked, fault]))
    return found


@dataclass(frozen=True)
class _Search:
    """Looks for a split of a dataset below a folder."""

    entry: CatalogueEntry
    split: str
    names_shown: bool

    def at(self, root: Path) -> dict[str, Path]:
        """Return the splits of the folder that the user named."""
        found, fault = self.below(root, "dataset.root")
        if found is None:
            entry = self.entry
            raise DataError(
                f"dataset.root does not hold the dataset {entry.name} ({entry.title})\n"
                f"  {fault}\n"
                f"expected below it, from any level on:\n{_indented(entry.layout())}"
            )
        return found

    def below(self, base: Path, setting: str) -> tuple[dict[str, Path] | None, str]:
        """Return the splits, or else why there are none; raise DataError where it cannot be told.

        Args:
            base: the dataset's folder, its parent, or a level in between.
            setting: what named it.
        """
        with looking(f"{setting}: {printable(base)}"):
            found = _splits_below(self.entry, base, self.split)
            return found, "" if found else self._fault(base)

    def _fault(self, base: Path) -> str:
        shown = printable(base)
        if not is_folder(base):
            return f"{shown}: {'not a folder' if base.exists() else 'no such folder'}"
        names = " or ".join(self.entry.splits[self.split])
        wanted = f"{shown}: no folder {names} with {', '.join(self.entry.classes)}"
        return f"{wanted}; it holds {self._held(subfolders(base))}"

    def _held(self, folders: list[str]) -> str:
        if not folders or not self.names_shown:
            return f"{len(folders) or 'no'} folders"
        names = ", ".join(map(printable, folders[:8]))
        return f"the folders {names}{', ...' if len(folders) > 8 else ''}"


def _local_places(entry: CatalogueEntry, looked: list[str]) -> Iterator[tuple[Path, str]]:
    """Yield the places on this machine and what names them; note those that are not there."""
    data_root = os.environ.get(DATA_ROOT_VARIABLE)
    if data_root:
        yield expanded(data_root, setting=DATA_ROOT_VARIABLE) / entry.name, DATA_ROOT_VARIABLE
    else:
        looked.append(f"${DATA_ROOT_VARIABLE}: not set")
    with looking(CACHE_VARIABLE):
        cached = cached_versions(entry.handle)
    if not cached:
        place = printable(cache_folder() / "datasets" / entry.handle)
        looked.append(f"{place}: no complete download")
    yield from ((folder, CACHE_VARIABLE) for folder in cached)


def _splits_below(entry: CatalogueEntry, base: Path, split: str) -> dict[str, Path] | None:
    slug = entry.handle.split("/")[1]
    for level in (base, base / entry.name, base / slug):
        for dataset in dict.fromkeys((level, level / entry.inner)):
            splits = {
                known: dataset / name
                for known, names in entry.splits.items()
                for name in reversed(names)  # the original name wins
                if all(is_folder(dataset / name / class_name) for class_name in entry.classes)
            }
            if split in splits:
                return splits
    return None


def _not_found(entry: CatalogueEntry, looked: list[str]) -> str:
    places = "\n".join(looked)
    return (
        f"the dataset {entry.name} ({entry.title}) was not found\n"
        f"looked at:\n{_indented(places)}\n"
        f"to place it by hand: download {entry.page}\n"
        f"unpack it so that these folders exist:\n{_indented(entry.layout())}\n"
        f"and set dataset.root to the folder {entry.name}, or {DATA_ROOT_VARIABLE} to its parent"
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
