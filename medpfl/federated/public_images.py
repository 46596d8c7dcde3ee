"""Public images of the modality, for an attacker that is granted them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from medpfl.data import LoadedData
from medpfl.errors import ConfigurationError

# Root mean square of a difference below which two images are one, stored twice.
_SAME = 0.02
_FEWEST = 8


def public_images(data: LoadedData, attacked: Iterable[int], count: int) -> Tensor:
    """Return images that no client holds, spread over the split that is not attacked.

    The published datasets hold some pictures twice under two names, across their splits, too:
    whatever is as good as equal to an attacked image is left out.

    Args:
        data: the dataset.
        attacked: indices of the images behind the captures.
        count: how many at most.

    Returns:
        `(A, C, *S)` in [0, 1], A at least 8.

    Raises:
        ConfigurationError: the dataset has too few images beside those of the attacked split.
        DataError: an image cannot be read.
    """
    found = [] if data.held_out is None else list(data.held_out.sample(count))
    if found:
        private = torch.stack([data.images.load(index) for index in attacked])
        found = [image for image in found if not _is_one_of(image, private)]
    if len(found) < _FEWEST:
        raise ConfigurationError(
            f"threat.knows=[auxiliary]: dataset {data.name} has {len(found)} images that no client "
            f"holds, and an attacker learns from {_FEWEST} at least. Raise "
            "threat.auxiliary_images, add images to the split that is not attacked "
            "(dataset.split, dataset.test_fraction, dataset.per_class), or do not grant 'auxiliary'"
        )
    return torch.stack(found)


def _is_one_of(image: Tensor, others: Tensor) -> bool:
    apart = (others - image).flatten(1).square().mean(1).sqrt()
    return bool((apart < _SAME).any())
