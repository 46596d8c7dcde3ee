"""What every dataset hands to the runner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from medpfl.data.preprocess import Preprocess
from medpfl.errors import DataError
from medpfl.geometry import Geometry
from medpfl.types import DataSpec

OnError = Literal["raise", "skip"]

STATISTICS_IMAGES = 512
_GREYSCALE_IMAGES = 16


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split, in class order. Images are read when they are asked for.

    Args:
        ids: a unique name an image, such as ``glioma/Tr-gl_0048``.
        labels: `(n,)` int64.
        read: maps an index to the image, `(C, *S)` float32 in [0, 1].
        on_error: ``skip`` lets `sample` pass over images that cannot be read.
        folders: of each image the first folder below its class folder, such as a hospital's, and
            nothing where it lies directly in it; empty where images are not files. Hashed where
            ids are.
        place: maps an index to where the image's voxels lie; None for pictures.
    """

    ids: tuple[str, ...]
    labels: Tensor
    read: Callable[[int], Tensor] = field(repr=False)
    on_error: OnError = "raise"
    folders: tuple[str, ...] = ()
    place: Callable[[int], Geometry | None] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def geometry(self, indices: Sequence[int]) -> tuple[Geometry | None, ...]:
        """Return where the voxels of these images lie, and nothing for pictures.

        Raises:
            DataError: if a file cannot be read.
        """
        return () if self.place is None else tuple(self.place(index) for index in indices)

    def load(self, index: int) -> Tensor:
        """Read and preprocess one image.

        Returns:
            `(C, *S)` float32 in [0, 1].

        Raises:
            DataError: if the file cannot be read.
        """
        return self.read(index)

    def sample(self, limit: int = STATISTICS_IMAGES) -> Iterator[Tensor]:
        """Read up to `limit` evenly spaced images, each `(C, *S)`."""
        for index in evenly_spaced(len(self), limit):
            try:
                image = self.load(index)
            except DataError:
                if self.on_error == "raise":
                    raise
                continue
            yield image


@dataclass(frozen=True, eq=False)
class LoadedData:
    """A dataset ready for an experiment.

    Args:
        name: the dataset's name, as in ``conf/dataset``.
        classes: K class names; a label is an index into them.
        synthetic: True where no image comes from a patient.
        spec: shape, classes and normalisation.
        images: the attacked split, all of it.
        train: the training split: for pretraining, statistics and the mean image.
        selected: indices into `images`: the attacked images, in order.
        skipped: unreadable files that were left out.
        notes: lines for the user, such as the stride and why it was chosen.
        source: where the images come from.
        held_out: images like the attacked ones that no client trains on, for utility; None where
            the dataset has none. Where the test split is attacked it is the training split, which
            the server may have pretrained on. Its files are not checked before they are read.
        has_others: whether there are images beside the attacked ones, to compare these with.
        visited: indices that the selection visits, whatever number of them is attacked; None where
            that is not known, and `selected` stands for it.
    """

    name: str
    classes: tuple[str, ...]
    synthetic: bool
    spec: DataSpec
    images: ImageSet
    train: ImageSet
    selected: tuple[int, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    source: str
    held_out: ImageSet | None = None
    has_others: bool = True
    visited: tuple[int, ...] | None = None

    def mean_image(self) -> Tensor:
        """Return the mean of up to 512 evenly spaced training images, `(C, *S)`.

        Of attacked images it would be no guess: without others it is grey.
        """
        if not self.has_others:
            return torch.full(self.spec.shape, 0.5)
        total = torch.zeros(self.spec.shape, dtype=torch.float64)
        count = 0
        for image in self.train.sample():
            total += image
            count += 1
        if count == 0:
            raise DataError(f"dataset {self.name}: no training image can be read ({self.source})")
        return (total / count).float()


class DatasetSource(Protocol):
    """A dataset as configured; everything in ``conf/dataset`` is one."""

    def load(self, *, preprocess: Preprocess, n_images: int | None, seed: int) -> LoadedData:
        """Find the images and select the attacked ones.

        Args:
            preprocess: makes an example of a picture.
            n_images: how many images to attack, at least 1; None for what the selection visits,
                at most 100.
            seed: the run's seed.

        Raises:
            ConfigurationError: if a setting cannot work.
            DataError: if the dataset is missing, unreadable or too small.
        """
        ...


def evenly_spaced(n: int, limit: int) -> list[int]:
    """Return min(n, limit) indices below n, the first of them 0, as evenly spaced as can be."""
    count = min(n, limit)
    return [i * n // count for i in range(count)]


def data_spec(preprocess: Preprocess, num_classes: int, train: ImageSet) -> DataSpec:
    """Describe the examples, with the normalisation of the training split where it is asked for."""
    mean, std = preprocess.mean, preprocess.std
    if "train" in (mean, std):
        train_mean, train_std = _channel_statistics(train)
        mean = train_mean if mean == "train" else mean
        std = train_std if std == "train" else std
    return DataSpec(
        shape=preprocess.shape,
        num_classes=num_classes,
        mean=(0.0,) * preprocess.channels if mean is None else tuple(map(float, mean)),
        std=(1.0,) * preprocess.channels if std is None else tuple(map(float, std)),
        greyscale=_is_greyscale(train),
    )


def _is_greyscale(images: ImageSet) -> bool:
    """Tell whether a few images spread over the split have equal channels, each of them.

    A file that cannot be read says nothing here; it is an error only where its image is used.
    """
    readable = replace(images, on_error="skip").sample(_GREYSCALE_IMAGES)
    channels_agree = [len(i) > 1 and bool((i == i[:1]).all()) for i in readable]
    return bool(channels_agree) and all(channels_agree)


def _channel_statistics(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of all sampled pixels of each channel."""
    moments = [
        torch.stack([flat.mean(1), flat.square().mean(1)])
        for flat in (image.double().flatten(1) for image in images.sample())
    ]
    if not moments:
        raise DataError("preprocess.mean=train: no training image can be read")
    mean, square = torch.stack(moments).mean(0)
    std = (square - mean.square()).clamp(min=0).sqrt()
    if not bool((std > 1e-6).all()):
        raise DataError("preprocess.std=train: a channel of the training split is constant")
    return tuple(mean.tolist()), tuple(std.tolist())
