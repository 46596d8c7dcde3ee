"""Finding a catalogued dataset on this machine, or fetching it."""

from __future__ import annotations

import os
from pathlib import Path

from medpfl.data.catalogue import CatalogueEntry
from medpfl.data.download import cache_folder, cached_versions, download
from medpfl.errors import DataError

DATA_ROOT_VARIABLE = "MEDPFL_DATA_ROOT"


def find_splits(
    entry: CatalogueEntry, *, root: str | None, split: str, fetch: bool
) -> dict[str, Path]:
    """Find the folders of a dataset's splits: the one asked for, and the others that are there.

    Looks into `root` alone if it is given; else below ``$MEDPFL_DATA_ROOT``, then into kagglehub's
    cache, then downloads.

    Args:
        entry: the dataset.
        root: the dataset's folder, its parent, or a level in between; None to search.
        split: the split that must be there, ``train`` or ``test``.
        fetch: whether to download what is not found.

    Returns:
        The folders by split; they lie side by side.

    Raises:
        DataError: if it is not found, with every place that was looked at and what to do.
    """
    if root is not None:
        return _explicit(entry, Path(root).expanduser(), split)
    looked: list[str] = []
    for base in _local_places(entry, looked):
        found = _splits_below(entry, base, split)
        if found is not None:
            return found
        looked.append(_fault(entry, base, split))
    if not fetch:
        looked.append("Kaggle: not asked, because of dataset.download=false")
        raise DataError(_not_found(entry, looked))
    try:
        base = download(entry.handle)
    except DataError as error:
        looked.append(f"Kaggle ({entry.handle}): {error}")
        raise DataError(_not_found(entry, looked)) from error
    found = _splits_below(entry, base, split)
    if found is None:
        looked.append(_fault(entry, base, split))
        raise DataError(_not_found(entry, looked))
    return found


def _explicit(entry: CatalogueEntry, base: Path, split: str) -> dict[str, Path]:
    found = _splits_below(entry, base, split)
    if found is None:
        raise DataError(
            f"dataset.root does not hold the dataset {entry.name} ({entry.title})\n"
            f"  {_fault(entry, base, split)}\n"
            f"expected below it, from any level on:\n{_indented(entry.layout())}"
        )
    return found


def _local_places(entry: CatalogueEntry, looked: list[str]) -> list[Path]:
    places = []
    data_root = os.environ.get(DATA_ROOT_VARIABLE)
    if data_root:
        places.append(Path(data_root).expanduser() / entry.name)
    else:
        looked.append(f"${DATA_ROOT_VARIABLE}: not set")
    cached = cached_versions(entry.handle)
    if not cached:
        looked.append(f"{cache_folder() / 'datasets' / entry.handle}: no complete download")
    return places + cached


def _splits_below(entry: CatalogueEntry, base: Path, split: str) -> dict[str, Path] | None:
    slug = entry.handle.split("/")[1]
    for level in (base, base / entry.name, base / slug):
        for dataset in dict.fromkeys((level, level / entry.inner)):
            splits = {
                known: dataset / name
                for known, names in entry.splits.items()
                for name in reversed(names)  # the original name wins
                if all((dataset / name / class_name).is_dir() for class_name in entry.classes)
            }
            if split in splits:
                return splits
    return None


def _fault(entry: CatalogueEntry, base: Path, split: str) -> str:
    if not base.is_dir():
        return f"{base}: {'not a folder' if base.exists() else 'no such folder'}"
    inside = sorted(path.name for path in base.iterdir() if path.is_dir())
    held = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "")
    names = " or ".join(entry.splits[split])
    return (
        f"{base}: no folder {names} with {', '.join(entry.classes)}; "
        f"it holds {f'the folders {held}' if inside else 'no folders'}"
    )


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
