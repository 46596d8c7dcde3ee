"""Labels in a CSV: which class a file has, and whose it is. No value of it is ever repeated."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from medpfl._paths import expanded, looking, printable
from medpfl.data.cohort import Labelled
from medpfl.data.listing import files_below
from medpfl.errors import DataError

_WANTED = ("file", "label")
_PATIENT = "patient"


def in_table(root: Path, setting: str) -> tuple[tuple[str, ...], list[Labelled], int]:
    """Read which files below a folder have which class.

    Args:
        root: the dataset's folder; the column ``file`` is relative to it. A folder stands for all
            files below it.
        setting: ``dataset.labels``: a CSV with the columns ``file`` and ``label``, and where it
            is known ``patient``.

    Returns:
        The classes, sorted; the files; and how many files below the folder are not listed.

    Raises:
        DataError: the table cannot be read, or a line of it cannot be followed.
    """
    told = f"dataset.labels={printable(setting)}"
    path = expanded(setting, setting="dataset.labels")
    rows = list(_rows(path, told))
    classes = tuple(sorted({row["label"] for _, row in rows}))
    if len(classes) < 2:
        raise DataError(f"{told}: it has {len(classes)} classes in the column label, not 2 or more")
    numbers = {name: label for label, name in enumerate(classes)}
    seen: dict[Path, int] = {}
    listed = []
    for line, row in rows:
        for file in _files(root, row["file"], f"{told}: line {line}"):
            if file in seen:
                raise DataError(f"{told}: lines {seen[file]} and {line} name the same file")
            seen[file] = line
            listed.append(
                Labelled(
                    path=file,
                    label=numbers[row["label"]],
                    inside=file.relative_to(root),
                    patient=(row.get(_PATIENT) or "").strip(),
                    line=line,
                )
            )
    with looking(f"dataset.root: {printable(root)}"):
        everything, _ = files_below(root)
    return classes, listed, len(set(everything) - set(seen))


def _rows(path: Path, told: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield the lines of the table with their numbers, as they are in the file."""
    with looking(told):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise DataError(f"{told}: not UTF-8 text: save it as CSV in UTF-8") from None
    reader = csv.DictReader(text.splitlines(), strict=True)
    try:
        missing = [name for name in _WANTED if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{told}: its first line has no column {' and no '.join(missing)}: a table begins "
                "with file,label or file,label,patient"
            )
        for row in reader:
            if None in row or not all((row[name] or "").strip() for name in _WANTED):
                raise DataError(
                    f"{told}: line {reader.line_num} has more or fewer values than the first line, "
                    "or an empty one"
                )
            yield reader.line_num, {name: value or "" for name, value in row.items()}
    except csv.Error:
        raise DataError(
            f"{told}: line {reader.line_num + 1} is no CSV: look at its quotation marks"
        ) from None


def _files(root: Path, text: str, told: str) -> list[Path]:
    """Return the files that an entry stands for."""
    place = Path(text.strip())
    if place.is_absolute() or ".." in place.parts:
        raise DataError(f"{told} names a file outside dataset.root, to which paths are relative")
    try:
        if (root / place).is_dir():
            return files_below(root / place)[0]
        if (root / place).is_file():
            return [root / place]
    except (OSError, ValueError):
        pass  # such a path cannot be
    raise DataError(
        f"{told} names a file that is not below dataset.root (it is not repeated here, as it may "
        "be a patient's name)"
    )
