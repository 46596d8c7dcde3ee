"""The columns that bounds have in ``metrics.csv``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

BOUND_COLUMNS = (
    *("bound_mse", "bound_mse_error", "bound_psnr_db", "posterior_mse", "prior_mse"),
    *("cramer_rao_mse", "cramer_rao_mse_error", "fisher_loss"),
    *("effective_rank", "effective_rank_error"),
)
"""Columns of ``metrics.csv`` that a table has where bounds apply; see `UpdateBound`."""


@dataclass(frozen=True)
class UpdateBound:
    """What an update tells of its images at most; judgement, and never the attacker's.

    Args:
        columns: of each image by `BOUND_COLUMNS`, those that are known. ``bound_mse``: the least
            mean squared error a pixel of any attacker, on average over images of these classes (van
            Trees); ``bound_psnr_db`` the same in decibels. ``posterior_mse``: what the update
            leaves open of this image where noise is low: no bound, as one image is no average.
            ``prior_mse``: of an attacker that sees no update. ``cramer_rao_mse``: the least error
            of an attacker that is right on average over the noise. ``fisher_loss``: the largest
            singular value of the Jacobian over the noise's scale, of the whole update, and
            ``effective_rank`` of that Jacobian. ``..._error``: one standard deviation of what was
            drawn or averaged for it; 0 where it is exact.
        left: `(N, C, *S)`, C 1 where channels are one unknown: the variance of each pixel that the
            update leaves, whose mean is ``posterior_mse``; None where that is not known.
    """

    columns: tuple[Mapping[str, float], ...]
    left: Tensor | None = field(default=None, repr=False)
