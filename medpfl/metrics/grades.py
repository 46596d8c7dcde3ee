"""How much of an image a reconstruction shows, beside the all or nothing of a threshold.

An SSIM means different things on different data: two smooth pictures of skin share 0.6, two brain
scans 0.1. Grades are therefore read against images that have nothing to do with each other:

- ``exact``: an SSIM of 0.99 or more, where nobody sees a difference;
- ``diagnostic``: at least the success threshold, and more than unrelated images share;
- ``recognisable``: in a line-up of other images of the dataset, the reconstruction is most like its
  own original. A guess that knows nothing of the image passes with a chance of one in k + 1;
- ``nothing``: all else, and what was handed in without a gradient to go by.

Recognisable has no threshold of its own, because none works: noise lowers the SSIM of a picture
that everybody would know again to below what two smooth pictures share, and the mean image, which
shows nobody, is nearer to most images than any other image is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from medpfl.data.pairs import unrelated_pairs
from medpfl.metrics.image_quality import ssim
from medpfl.metrics.line_up import SAME_IMAGE, LineUp
from medpfl.outcomes import Grade
from medpfl.seeding import generator

FEWEST_OTHERS = 19
"""With fewer others, a guess is singled out more often than one time in twenty."""

_QUANTILE = 0.99
_MOST_OTHERS = 99
_PIXELS_OF_PAIRS = 200 * 3 * 32 * 32
_PIXELS_OF_OTHERS = 4_000_000
_FEWEST_PAIRS, _MOST_PAIRS = 40, 200


@dataclass(frozen=True, kw_only=True)
class Grading:
    """What separates the grades on one dataset.

    Args:
        exact: the SSIM from which a reconstruction is exact.
        diagnostic: the SSIM from which it is diagnostic.
        unrelated: the SSIM that one in a hundred pairs of unrelated images exceeds; NaN without
            pairs.
        pairs: pairs of unrelated images that this was read off.
        line_up: images of the dataset; what is recognisable is told from all of them.
    """

    exact: float
    diagnostic: float
    unrelated: float
    pairs: int
    line_up: LineUp = field(repr=False)

    @property
    def others(self) -> int:
        """How many images a reconstruction is told from, where its own is among the line-up."""
        return max(0, len(self.line_up) - 1)

    def grade(
        self, original: Tensor, reconstruction: Tensor, *, informed: bool = True
    ) -> Grade | None:
        """Return the grade of a reconstruction.

        Args:
            original: `(C, *S)` in [0, 1].
            reconstruction: `(C, *S)` in [0, 1].
            informed: whether it was made from an update at all, rather than drawn.

        Returns:
            None where it is below diagnostic, and there are no others to tell it from.
        """
        similarity = ssim(original, reconstruction)
        if similarity >= self.exact:
            return Grade.EXACT
        if similarity >= self.diagnostic:
            return Grade.DIAGNOSTIC
        if not informed:
            return Grade.NOTHING
        if not self.pairs:
            return None
        singled_out = self.line_up.singles_out(original, reconstruction)
        return Grade.RECOGNISABLE if singled_out else Grade.NOTHING


def line_up_size(shape: tuple[int, ...]) -> int:
    """Return how many images `(C, *S)` to calibrate on: fewer where they are large."""
    return 1 + min(_MOST_OTHERS, max(FEWEST_OTHERS + 1, _PIXELS_OF_OTHERS // math.prod(shape)))


def calibrate(images: Iterable[Tensor], *, threshold: float, seed: int) -> Grading:
    """Make the grading of a dataset; the same whatever is attacked.

    Args:
        images: different images of the dataset, `(C, *S)` in [0, 1] each, as preprocessed.
        threshold: the SSIM that counts as success.
        seed: the run's.
    """
    pool = list(images)
    shared = _shared(pool, seed)
    unrelated = float(np.quantile(shared, _QUANTILE)) if shared else math.nan
    diagnostic = max(threshold, unrelated) if shared else threshold
    return Grading(
        exact=max(SAME_IMAGE, diagnostic),
        diagnostic=diagnostic,
        unrelated=unrelated,
        pairs=len(shared),
        line_up=LineUp(pool),
    )


def _shared(pool: list[Tensor], seed: int) -> list[float]:
    """Return the SSIM of drawn pairs, each once, less those that show the same image twice."""
    if len(pool) < 2:
        return []
    count = min(_MOST_PAIRS, max(_FEWEST_PAIRS, _PIXELS_OF_PAIRS // pool[0].numel()))
    stream = generator(seed, "unrelated pairs")
    drawn = {tuple(sorted(pair)) for pair in unrelated_pairs(len(pool), count, stream)}
    values = [ssim(pool[first], pool[second]) for first, second in sorted(drawn)]
    return [value for value in values if value < SAME_IMAGE]
