"""Bounds of one update under Gaussian noise, from the Jacobian of the update in the pixels.

What they say, and of whom:

- Fisher information loss and Cramer-Rao hold for one image, and for attackers that are unbiased:
  right on average over the noise, whatever the image. An attacker that knows what images look like
  is not, and may be nearer than Cramer-Rao; then the bound exceeds the prior's own variance.
- van Trees holds for every attacker, on average over images of N(mean, S). J'J is the mean over
  such images too; from a few, it makes the bound too high: see `medpfl.bounds.expectation`. Real
  images are no Gaussian: one that knows more of them than mean and covariance may be nearer.

Where the bounds fall short of the update:

- Networks must be smooth in the pixels (sigmoid, tanh, GELU, average pooling). With ReLU or
  max-pooling updates jump as pixels move. Cramer-Rao still holds for the image at hand, van Trees
  is then an indication.
- They count the tensors that are named. Whatever else a client sends, such as BatchNorm's
  statistics, tells more. Updates of several rounds, of the same images, add up their J'J.
- Several images are counted in order. A score that matches reconstructions to images with the
  truth in hand may come out below.
- Noise is N(0, s^2) on every entry, after everything else that is done to the update. Of other
  laws only their information about a shift counts: Laplace noise of scale b has 1 / b^2, so that
  all of this holds for it with s = b.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medpfl.bounds.exact import ExactInformation
from medpfl.bounds.information import Information
from medpfl.bounds.pixels import PixelMap
from medpfl.bounds.sketched import SketchedInformation, random_signs
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import check_value
from medpfl.settings.ranges import Steps

# An exact J'J takes a product an unknown, and each about as long as the update has entries.
_MOST_UNKNOWNS = 4_096
_MOST_ENTRIES = 600_000_000
PROBES = 8
"""How many random patterns are followed where J'J is too large; errors fall with its root."""
LANCZOS_STEPS = 24
"""How many products each of them takes."""


def affordable(pixel_map: PixelMap) -> bool:
    """Say whether J'J can be formed: up to 4,096 unknowns, and a minute or two on one core."""
    unknowns = pixel_map.unknowns
    return unknowns <= _MOST_UNKNOWNS and unknowns * pixel_map.entries <= _MOST_ENTRIES


def information(
    pixel_map: PixelMap,
    inputs: Tensor,
    *,
    exact: bool | None = None,
    probes: int = PROBES,
    steps: int = LANCZOS_STEPS,
    generator: torch.Generator | None = None,
) -> Information:
    """Return what the update of some images tells of them.

    Args:
        pixel_map: from images to the update.
        inputs: `(N, C, *S)` in [0, 1].
        exact: whether to form J'J; None does where it is `affordable`.
        probes: m, where J'J is not formed; at least 2.
        steps: k of Lanczos, where J'J is not formed.
        generator: draws the probes; needed where J'J is not formed.

    Raises:
        ConfigurationError: images that the map does not take, or no generator where one is needed.
    """
    return expected_information(
        pixel_map, [inputs], exact=exact, probes=probes, steps=steps, generator=generator
    )


def expected_information(
    pixel_map: PixelMap,
    points: Sequence[Tensor],
    *,
    exact: bool | None = None,
    probes: int = PROBES,
    steps: int = LANCZOS_STEPS,
    generator: torch.Generator | None = None,
) -> Information:
    """Return the mean of J'J over images of the prior, as `Information.van_trees` needs it.

    Its bounds are too high where there are few points: 1 / x curves upwards.

    Args:
        pixel_map: from images to the update.
        points: each `(N, C, *S)` in [0, 1], none of them attacked.
        exact: as in `information`.
        probes: as in `information`.
        steps: as in `information`.
        generator: as in `information`.

    Raises:
        ConfigurationError: no points, and as `information`.
    """
    if not points:
        raise ConfigurationError("the expectation of J'J needs public images: give at least one")
    if affordable(pixel_map) if exact is None else exact:
        return ExactInformation(shape=pixel_map.shape, gram=_mean_gram(pixel_map, points))
    check_value("bound.probes", probes, Steps)
    check_value("bound.lanczos_steps", steps, Steps)
    if generator is None or probes < 2:
        raise ConfigurationError(
            f"{pixel_map.unknowns:,} unknowns and {pixel_map.entries:,} numbers an update are too "
            "many for an exact bound: give a generator and at least 2 probes for an estimate"
        )
    signs = random_signs(probes, pixel_map.unknowns, generator).to(points[0].device)
    return SketchedInformation(
        shape=pixel_map.shape,
        product=_MeanProduct(pixel_map, points),
        probes=signs,
        steps=min(steps, pixel_map.unknowns),
    )


def _mean_gram(pixel_map: PixelMap, points: Sequence[Tensor]) -> Tensor:
    count = pixel_map.unknowns
    total = torch.zeros((count, count), dtype=torch.float64, device=points[0].device)
    for inputs in points:
        total += pixel_map.gram_matrix(inputs)
    return total / len(points)


class _MeanProduct:
    """Products with the mean of J'J; of several images, one is linearised at a time.

    Args:
        pixel_map: from images to the update.
        points: each `(N, C, *S)`.
    """

    def __init__(self, pixel_map: PixelMap, points: Sequence[Tensor]) -> None:
        self._map, self._points = pixel_map, points
        self._only = pixel_map.gram_at(points[0]) if len(points) == 1 else None

    def __call__(self, rows: Tensor) -> Tensor:
        if self._only is not None:
            return self._only(rows)
        total = torch.zeros_like(rows)
        for inputs in self._points:
            total += self._map.gram_at(inputs)(rows)
        return total / len(self._points)
