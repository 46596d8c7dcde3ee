"""What images are called: by the names of their files, or by salted hashes that tell nothing."""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from medpfl._atomic import write_text
from medpfl._paths import printable
from medpfl.data.salt import read_salt
from medpfl.errors import ConfigurationError, DataError

IdKind = Literal["name", "hashed"]

ID_MAP = "medpfl-ids.csv"
_HASHED = re.compile(r"h[0-9a-f]{16}")  # the letter keeps an id from being read as a number


@dataclass(frozen=True, kw_only=True)
class IdSettings:
    """What ``dataset.ids``, ``dataset.salt_file`` and ``dataset.id_map`` ask for.

    Args:
        ids: ``name`` or ``hashed``.
        salt_file: see `read_salt`; for ``hashed`` alone.
        id_map: whether to write which file each id stands for; for ``hashed`` alone.

    Raises:
        ConfigurationError: if a setting leaves the range above.
    """

    ids: IdKind = "name"
    salt_file: str | None = None
    id_map: bool = False

    def __post_init__(self) -> None:
        if self.ids not in ("name", "hashed"):
            raise ConfigurationError(f"dataset.ids is {self.ids!r}: use name or hashed")
        if self.ids == "name" and (self.salt_file is not None or self.id_map):
            setting = "salt_file" if self.salt_file is not None else "id_map"
            raise ConfigurationError(
                f"dataset.{setting} is for dataset.ids=hashed: set that too, or leave this out"
            )

    @property
    def hashed(self) -> bool:
        """Whether no name of a file may be shown."""
        return self.ids == "hashed"

    def naming(self) -> Naming:
        """Return the rule that names images.

        Raises:
            DataError: the salt cannot be read or made.
        """
        return Naming(read_salt(self.salt_file) if self.hashed else None, id_map=self.id_map)


@dataclass(frozen=True)
class Naming:
    """Gives images their ids, and files the names that messages call them by.

    Args:
        salt: the secret of hashed ids; None for ids that are names.
        id_map: whether `write_map` has something to write.
    """

    salt: bytes | None = field(default=None, repr=False)
    id_map: bool = False

    @property
    def hashed(self) -> bool:
        """Whether no name of a file may be shown."""
        return self.salt is not None

    def ids(self, paths: Sequence[Path], *, folder: Path, dataset: Path) -> tuple[str, ...]:
        """Return an id for each file of a split.

        Names are relative to the split's folder and without suffix where that is unique. Hashes are
        those of the whole path relative to the dataset, so that an id is an image's own whichever
        split is attacked, and tells nothing of its class.

        Raises:
            DataError: two files would have the same id.
        """
        if self.salt is None:
            return _names([path.relative_to(folder) for path in paths])
        ids = tuple(_hash(self.salt, path.relative_to(dataset)) for path in paths)
        if len(set(ids)) < len(ids):
            raise DataError("two images have the same hashed id: use another dataset.salt_file")
        return ids

    def titles(
        self, paths: Sequence[Path], ids: Sequence[str], *, dataset: Path
    ) -> tuple[str, ...]:
        """Return what messages call the files: their paths inside the dataset, or hashed ids."""
        if self.hashed:
            return tuple(ids)
        return tuple(printable(path.relative_to(dataset).as_posix()) for path in paths)

    def folders(self, inside: Sequence[PurePath]) -> tuple[str, ...]:
        """Return of each image the first folder below its class folder, or nothing.

        A folder has one name in all classes; it is hashed where ids are, as it may be a patient's.

        Args:
            inside: files, relative to the folder that holds the class folders.
        """
        named = [path.parts[1] if len(path.parts) > 2 else "" for path in inside]
        shown = {name: self._folder(name) for name in set(named)}
        return tuple(shown[name] for name in named)

    def _folder(self, name: str) -> str:
        if self.salt is None or not name:
            return printable(name)
        return _hash(self.salt, PurePath(name))

    def hint(self, dataset: Path) -> str:
        """Return how the owner finds the file of an id, or nothing where an id says it."""
        if not self.hashed:
            return ""
        if self.id_map:
            return f"; {ID_MAP} in {printable(dataset)} says which file an id stands for"
        return (
            f"; dataset.id_map=true writes to {ID_MAP} in the dataset's folder which file an id "
            "stands for"
        )

    def write_map(self, dataset: Path, files: Mapping[str, Path]) -> None:
        """Write which file each id stands for into the dataset's folder, if that is asked for.

        Args:
            dataset: the folder that paths are relative to.
            files: `{id: path}`.

        Raises:
            DataError: the file cannot be written.
        """
        if not self.id_map:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("image_id", "file"))
        for image_id, path in files.items():
            writer.writerow((image_id, printable(path.relative_to(dataset).as_posix())))
        try:
            write_text(dataset / ID_MAP, text.getvalue())
        except OSError as error:
            raise DataError(
                f"dataset.id_map=true: cannot write {ID_MAP} to {printable(dataset)} "
                f"({error.strerror}). Make the folder writable (chmod u+w), or leave the map out"
            ) from None


def check_listed(select: object) -> None:
    """Refuse a ``dataset.select`` that lists names where ids are hashed, without repeating them.

    Args:
        select: the setting, plain or as a ``ListConfig``.

    Raises:
        ConfigurationError: it is neither a rule nor a list of hashed ids.
    """
    if isinstance(select, str):
        if select not in ("stride", "random"):
            raise ConfigurationError(
                "dataset.select: use stride, random or a list of hashed ids, as metrics.csv and "
                f"{ID_MAP} have them (dataset.ids=hashed; the value is not repeated here, as it "
                "may be a name)"
            )
        return
    listed = list(select) if isinstance(select, Sequence) else []
    for number, entry in enumerate(listed, start=1):
        if not isinstance(entry, str) or not _HASHED.fullmatch(entry):
            raise ConfigurationError(
                f"dataset.select: entry {number} of {len(listed)} is no hashed id (it is not "
                "repeated here, as it may be a name). With dataset.ids=hashed list ids as "
                f"metrics.csv and {ID_MAP} have them; dataset.id_map=true writes that file"
            )


def _hash(salt: bytes, inside: PurePath) -> str:
    message = os.fsencode(inside.as_posix())
    return f"h{hmac.new(salt, message, hashlib.sha256).hexdigest()[:16]}"


def _names(inside: Sequence[PurePath]) -> tuple[str, ...]:
    whole = [printable(path.as_posix()) for path in inside]
    ids = [printable(path.with_suffix("").as_posix()) for path in inside]
    # More than once, because a.png and a.jpg keep their suffixes, and then a.png.jpg must, too.
    while len(set(ids)) < len(ids):
        times = Counter(ids)
        longer = [full if times[own] > 1 else own for full, own in zip(whole, ids, strict=True)]
        if longer == ids:
            twice = next(own for own in ids if times[own] > 1)
            raise DataError(
                f"two images would be called {twice}, because one's name is not UTF-8: rename one"
            )
        ids = longer
    return tuple(ids)
