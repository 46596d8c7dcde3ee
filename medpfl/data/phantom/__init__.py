"""Drawn stand-ins for medical images: no download, no patient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medpfl.data.dataset import ImageSet, LoadedData, data_spec
from medpfl.data.phantom import chest, chest_volume, head, head_volume, skin
from medpfl.data.phantom.canvas import Array, Random
from medpfl.data.phantom.solid import SIDE
from medpfl.data.preprocess import Preprocess
from medpfl.data.select import Selector, class_counts_note
from medpfl.data.volumes.grid import Grid
from medpfl.errors import ConfigurationError
from medpfl.geometry import Geometry
from medpfl.seeding import generator
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range

__all__ = ["Phantom"]

_HELD_OUT = 4  # one image for this many
# A sweep draws the same images for every job, and drawing one takes longer than a step of training.
_KEPT_DRAWINGS = 1024
_KEPT_EXAMPLES = 1024


@dataclass(frozen=True)
class _Kind:
    """A way to draw, and the names of its two findings: without and with.

    Of volumes also the millimetres between voxels, which are None of pictures.
    """

    findings: tuple[str, str]
    draw: Callable[[Random, bool], Array]
    spacing_mm: float | None = None

    def grid(self, voxels: Array) -> Grid:
        """Place a drawn volume, its middle at the origin."""
        spacing = self.spacing_mm or 1.0
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = -spacing * (SIDE - 1) / 2
        return Grid(voxels, affine)


_KINDS: Mapping[int, Mapping[str, _Kind]] = MappingProxyType(
    {
        2: MappingProxyType(
            {
                "head": _Kind(head.FINDINGS, head.draw),
                "chest": _Kind(chest.FINDINGS, chest.draw),
                "skin": _Kind(skin.FINDINGS, skin.draw),
            }
        ),
        3: MappingProxyType(
            {
                "head": _Kind(head.FINDINGS, head_volume.draw, head_volume.SPACING_MM),
                "chest": _Kind(chest.FINDINGS, chest_volume.draw, chest_volume.SPACING_MM),
            }
        ),
    }
)


@dataclass(frozen=True)
class _Drawer:
    """Draw the image of an index: ``per_class`` images of each finding of each kind.

    Their numbers begin at `first`.
    """

    kinds: tuple[str, ...]
    per_class: int
    seed: int
    preprocess: Preprocess
    first: int = 0
    dimensions: int = 2

    def __call__(self, index: int) -> Tensor:
        label, number = divmod(index, self.per_class)
        kind, finding = self.kinds[label // 2], bool(label % 2)
        drawn = _drawn(self.dimensions, kind, finding, self.seed, self.first + number)
        if self.dimensions == 2:
            return self.preprocess(Image.fromarray(drawn))
        grid = self._kind(index).grid(drawn.astype(np.float32) / 255)
        return self.preprocess.example(self.preprocess.volume(grid))

    def place(self, index: int) -> Geometry:
        """Say where a volume's voxels lie, which is the same for all of a kind."""
        blank = np.zeros((SIDE,) * 3, dtype=np.float32)
        return self.preprocess.volume(self._kind(index).grid(blank)).geometry

    def _kind(self, index: int) -> _Kind:
        return _KINDS[self.dimensions][self.kinds[index // self.per_class // 2]]


@lru_cache(maxsize=_KEPT_DRAWINGS)
def _drawn(dimensions: int, kind: str, finding: bool, seed: int, number: int) -> NDArray[np.uint8]:
    """Return a drawing in levels of grey or colour; not to be changed."""
    how = _KINDS[dimensions][kind]
    purpose = "phantom" if dimensions == 2 else "phantom3d"
    random = Random(generator(seed, purpose, f"{kind}_{how.findings[finding]}", number))
    return np.round(how.draw(random, finding) * 255).astype(np.uint8)


@checked("dataset")
class Phantom:
    """Draw head, chest and skin images, or volumes, whose classes differ by a finding.

    An image depends on the run's seed, its class and its number alone. A quarter more of them is
    held out: the numbers that follow the attacked ones.

    Args:
        name: what tables and records call the dataset.
        dimensions: 2 for pictures, 3 for volumes.
        kinds: one or more of ``head``, ``chest`` and, of pictures, ``skin``; each makes two
            classes.
        per_class: images a class, at least 1.
        select: see `Selector`.
        stride: see `Selector`.

    Raises:
        ConfigurationError: if a setting leaves the range above.
    """

    def __init__(
        self,
        *,
        name: str = "phantom",
        dimensions: Literal[2, 3] = 2,
        kinds: Sequence[str] = ("head", "chest", "skin"),
        per_class: Annotated[int, Range(1, 100_000)] = 32,
        select: str | Sequence[str] = "stride",
        stride: int | Literal["auto"] = "auto",
    ) -> None:
        if dimensions not in _KINDS:
            raise ConfigurationError(f"dataset.dimensions is {dimensions!r}: use 2 or 3")
        known = ", ".join(_KINDS[dimensions])
        there = _KINDS[dimensions]
        if isinstance(kinds, str) or not kinds or any(kind not in there for kind in kinds):
            raise ConfigurationError(f"dataset.kinds is {kinds!r}: list one or more of {known}")
        if len(set(kinds)) < len(kinds):
            raise ConfigurationError(f"dataset.kinds is {kinds!r}: list each kind once")
        self.name = name
        self.dimensions = dimensions
        self.kinds = tuple(kinds)
        self.per_class = per_class
        self.selector = Selector(select=select, stride=stride)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, such as ``head_lesion``, in the order of their labels."""
        return tuple(
            f"{kind}_{finding}"
            for kind in self.kinds
            for finding in _KINDS[self.dimensions][kind].findings
        )

    def load(self, *, preprocess: Preprocess, n_images: int | None, seed: int) -> LoadedData:
        """Name the images and select the attacked ones; see `DatasetSource`."""
        preprocess = preprocess.over(self.dimensions)
        images = self._images(0, self.per_class, preprocess, seed)
        selection = self.selector.choose(images.ids, n_images=n_images, seed=seed)
        return LoadedData(
            name=self.name,
            classes=self.classes,
            synthetic=True,
            spec=data_spec(preprocess, len(self.classes), images),
            images=images,
            train=images,
            selected=selection.indices,
            visited=selection.visited,
            skipped=(),
            notes=(
                f"attacked: {selection.note}",
                class_counts_note([i // self.per_class for i in selection.indices], self.classes),
            ),
            source=f"generated from seed {seed}",
            held_out=self._images(
                self.per_class, math.ceil(self.per_class / _HELD_OUT), preprocess, seed
            ),
        )

    def _images(self, first: int, per_class: int, preprocess: Preprocess, seed: int) -> ImageSet:
        """Name `per_class` images of each class, their numbers from `first` on."""
        numbers = range(first, first + per_class)
        drawer = _Drawer(self.kinds, per_class, seed, preprocess, first, self.dimensions)
        read = lru_cache(maxsize=_KEPT_EXAMPLES if self.dimensions == 2 else 0)(drawer.__call__)
        return ImageSet(
            ids=tuple(f"{name}/{number:04d}" for name in self.classes for number in numbers),
            labels=torch.arange(len(self.classes)).repeat_interleave(per_class),
            read=lambda index: read(index).clone(),
            place=drawer.place if self.dimensions == 3 else None,
        )
