"""How one image came out: a row of ``metrics.csv``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from medpfl.outcomes import Status

DEFENSE_COLUMNS = (
    *("sent_norm", "share_sent", "bytes_sent", "clip_factor", "residual_norm"),
    *("survivors", "expansion", "aggregation_seconds", "entries_clipped"),
    *("alarms", "refused"),
)
"""Columns of ``metrics.csv`` that a table has where a defense defines them; see `UpdateFacts`."""


GROUPS = ("measures", "defense", "bounds", "readout")
"""Fields of `ImageScore` that hold columns by their own names, not every table's."""

READOUT_COLUMNS = (
    *("readouts", "readout_mismatch", "readout_out_of_range", "readout_total_variation"),
    *("readout_rows", "expected_share", "mse_batch_mean", "ssim_batch_mean", "mic_protocol"),
)
"""Columns of ``metrics.csv`` that a table has of read-outs; see `medpfl.metrics.readout`."""


@dataclass(frozen=True)
class ImageScore:
    """One row of ``metrics.csv``; field names are the column names, in this order.

    Columns that came later have a default, NaN, None or no text, so that older records can be read.
    Of these, `measures` (``metrics.measures``), `defense` (`DEFENSE_COLUMNS`), `bounds`
    (`medpfl.bounds.columns`) and `readout` (`READOUT_COLUMNS`) hold values by their own column,
    where there are any.

    An image that no reconstruction was left for has the status ``unmatched``: what stands in for
    one is a black image, it is no success, and its inferred label is None.

    Of an image whose truth nobody knows, everything that needs the truth is NaN, None or no text.
    Its `success` is False here, as it counts for nothing, and empty in the record: ask `judged`.
    """

    capture_id: str = field(default="", kw_only=True)
    round: int = field(default=0, kw_only=True)
    client: int | None = field(default=0, kw_only=True)
    image_id: str
    label: int | None
    label_inferred: int | None
    ssim: float
    mse: float
    psnr_db: float
    success: bool
    gradient_norm: float
    true_probability: float
    objective: float
    steps: int
    evaluations: int
    seconds: float
    status: str
    noise_scale: float | None
    snr_db: float | None
    ssim_paper: float
    ssim_zeros: float
    mse_zeros: float
    ssim_mean_image: float
    mse_mean_image: float
    ssim_paper_cpl: float = math.nan
    ssim_paper_dlg: float = math.nan
    ssim_paper_gradinv: float = math.nan
    ssim_oracle: float = math.nan
    mse_oracle: float = math.nan
    closed_form: bool | None = None
    unknowns: int | None = None
    determined: float = math.nan
    grade: str = ""
    grade_mean_image: str = ""
    unexplained: float = math.nan
    agreement: float = math.nan
    grain: float = math.nan
    identification_rank: float = math.nan
    identification_candidates: int | None = None
    measures: Mapping[str, float] = field(default_factory=dict)
    defense: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)
    readout: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def fixed_columns(cls) -> tuple[str, ...]:
        """Return the columns that every table has, in order."""
        return tuple(f.name for f in fields(cls) if f.name not in GROUPS)

    @property
    def judged(self) -> bool:
        """Whether the truth was known, so that it can be said how good the reconstruction is."""
        return not math.isnan(self.ssim)

    @property
    def matched(self) -> bool:
        """Whether a reconstruction was left for this image."""
        return self.status != Status.UNMATCHED

    def row(self) -> dict[str, object]:
        """Return `{column: value}` as it is written, those that not every table has last."""
        fixed = {name: getattr(self, name) for name in self.fixed_columns()}
        known = {} if self.judged else {"success": None}
        return {**fixed, **known, **self.defense, **self.bounds, **self.readout, **self.measures}
