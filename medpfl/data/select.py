"""Which images of a split are attacked."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal

import torch

from medpfl.data.dataset import evenly_spaced
from medpfl.data.ids import check_listed
from medpfl.data.images import IMAGE_SUFFIXES
from medpfl.errors import ConfigurationError, DataError
from medpfl.seeding import generator

DEFAULT_IMAGES = 100


@dataclass(frozen=True)
class PublishedSelection:
    """How a paper chose its images: every `stride`-th of a split of `size` images."""

    split: str
    size: int
    stride: int


@dataclass(frozen=True)
class Selection:
    """The attacked images.

    Args:
        indices: into the split, ascending unless ids were listed.
        note: how they were chosen, one line for the user.
        visited: all that the rule visits, those too that ``n_images`` has left out.
    """

    indices: tuple[int, ...]
    note: str
    visited: tuple[int, ...]


@dataclass(frozen=True)
class Selector:
    """A rule that chooses images by their place in the split, never by what they show.

    Args:
        select: ``stride``, ``random`` or a list of image ids.
        stride: a positive number, or ``auto``: the published stride if the split has the published
            size, else the one that visits up to 100 images.
        published: how the paper chose, where a paper used the split.
        hashed: whether ids are hashed, so that no message may repeat what `select` lists.

    Raises:
        ConfigurationError: if a setting leaves the range above.
    """

    select: str | Sequence[str]
    stride: int | Literal["auto"]
    published: PublishedSelection | None = None
    hashed: bool = False

    def __post_init__(self) -> None:
        if self.hashed:
            check_listed(self.select)
        if isinstance(self.select, str) and self.select not in ("stride", "random"):
            raise ConfigurationError(
                f"dataset.select is {self.select!r}: use stride, random or a list of image ids, "
                f"such as dataset.select=[{self.select}]"
            )
        if not isinstance(self.select, str) and not self.select:
            raise ConfigurationError("dataset.select is an empty list: name at least one image")
        if self.stride != "auto" and (not isinstance(self.stride, int) or self.stride < 1):
            raise ConfigurationError(f"dataset.stride is {self.stride!r}: use auto or 1, 2, 3, ...")

    def choose(
        self,
        ids: Sequence[str],
        *,
        n_images: int | None,
        seed: int,
        unreadable: Set[int] = frozenset(),
    ) -> Selection:
        """Choose the attacked images of a split.

        Args:
            ids: the split's image ids, in class order.
            n_images: how many, at least 1; None for what the rule visits, at most 100 unless ids
                are listed.
            seed: the run's seed; only ``random`` depends on it.
            unreadable: indices that must not be chosen.

        Raises:
            ConfigurationError: if n_images is below 1.
            DataError: if an id is unknown, or if there are fewer images than asked for.
        """
        if n_images is not None and n_images < 1:
            raise ConfigurationError(f"n_images is {n_images}: give at least 1, or null")
        readable = [index for index in range(len(ids)) if index not in unreadable]
        if not readable:
            raise DataError(f"none of the {len(ids)} images of the split can be read")
        if not isinstance(self.select, str):
            return self._listed(ids, self.select, n_images, unreadable)
        if self.select == "random":
            return _random(readable, n_images, seed)
        return self._every(readable, len(ids), n_images)

    def _every(self, readable: list[int], split_size: int, n_images: int | None) -> Selection:
        stride, reason = self._stride(split_size)
        visited = readable[::stride]
        if n_images is not None and n_images > len(visited):
            raise DataError(
                f"n_images is {n_images}, but stride {stride} visits {len(visited)} of "
                f"{len(readable)} images; {_remedy(len(visited), len(readable), n_images)}"
            )
        if self._is_published(split_size, stride):
            # The paper stopped after its first 100 images, short of the end of the split.
            visited = visited[: max(DEFAULT_IMAGES, n_images or 0)]
        kept = evenly_spaced(len(visited), n_images or DEFAULT_IMAGES)
        thinned = "" if len(kept) == len(visited) else f", {len(kept)} of these evenly spread"
        return Selection(
            indices=tuple(visited[i] for i in kept),
            note=f"every {_ordinal(stride)} of {len(readable)} images{thinned} ({reason})",
            visited=tuple(visited),
        )

    def _stride(self, split_size: int) -> tuple[int, str]:
        if self.stride != "auto":
            return self.stride, "the stride was set"
        published = self.published
        if published is not None and split_size == published.size:
            return published.stride, "the published stride"
        stride = math.ceil(split_size / DEFAULT_IMAGES)
        reason = f"the stride was chosen to visit at most {DEFAULT_IMAGES}"
        if published is not None:
            reason += (
                f"; the published stride {published.stride} is for the {published.split} split of "
                f"{published.size} images"
            )
        return stride, reason

    def _is_published(self, split_size: int, stride: int) -> bool:
        published = self.published
        return published is not None and (published.size, published.stride) == (split_size, stride)

    def _listed(
        self,
        ids: Sequence[str],
        wanted: Sequence[str],
        n_images: int | None,
        unreadable: Set[int],
    ) -> Selection:
        named = [_index_of(str(name), ids) for name in wanted]
        if len(set(named)) < len(named):
            raise DataError("dataset.select names an image twice; name each image once")
        indices = [index for index in named if index not in unreadable]
        if not indices:
            raise DataError("none of the images that dataset.select names can be read")
        if n_images is not None and n_images > len(indices):
            raise DataError(
                f"n_images is {n_images}, but dataset.select names {len(indices)} readable images; "
                f"name more, or set n_images={len(indices)}"
            )
        note = "the images that dataset.select names"
        return Selection(tuple(indices[:n_images]), note, tuple(indices))


def class_counts_note(labels: Sequence[int], classes: Sequence[str]) -> str:
    """Return one line that says how many of the attacked images each class has."""
    counts = Counter(labels)
    shares = ", ".join(f"{name} {counts[label]}" for label, name in enumerate(classes))
    return f"attacked images a class: {shares}"


def _random(readable: list[int], n_images: int | None, seed: int) -> Selection:
    count = min(DEFAULT_IMAGES, len(readable)) if n_images is None else n_images
    if count > len(readable):
        raise DataError(
            f"n_images is {count}, but the split has {len(readable)} readable images; "
            f"set n_images={len(readable)}"
        )
    order = torch.randperm(len(readable), generator=generator(seed, "select"))
    indices = sorted(readable[i] for i in order[:count].tolist())
    note = f"{count} of {len(readable)} images at random, seed {seed}"
    return Selection(tuple(indices), note, tuple(readable))


def _remedy(visited: int, available: int, wanted: int) -> str:
    if wanted > available:
        return f"the split has no more: set n_images={available} and dataset.stride=1"
    return f"set dataset.stride={available // wanted} or n_images={visited}"


def _index_of(name: str, ids: Sequence[str]) -> int:
    """Find the index of an id, given with or without the suffix of its file."""
    if name in ids:
        return ids.index(name)
    bare = _bare(name)
    # An id without a suffix stands for its file whatever suffix was given, and an id that keeps
    # its suffix (because two files share a stem) is found by its stem only if that is unique.
    matches = [i for i, known in enumerate(ids) if known == bare or _bare(known) == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        both = ", ".join(ids[i] for i in matches)
        raise DataError(f"dataset.select: {name!r} may be any of {both}; add the suffix")
    close = difflib.get_close_matches(name, ids, n=3, cutoff=0.5) or list(ids[:3])
    raise DataError(
        f"dataset.select: no image is called {name!r}; ids look like {', '.join(close)}"
    )


def _bare(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix.lower() in IMAGE_SUFFIXES else name


def _ordinal(number: int) -> str:
    if number == 1:
        return "one"
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{ending or 'th'}"
