"""Image quality, matching, success rates with intervals."""

from medpfl.metrics.grades import Grading, calibrate, line_up_size
from medpfl.metrics.identification import Identification, Rank, identification, ranks_of
from medpfl.metrics.image_quality import (
    mse,
    mse_per_image,
    psnr_db,
    psnr_db_per_image,
    ssim,
    ssim_per_image,
)
from medpfl.metrics.matching import match
from medpfl.metrics.protocols import (
    ALL_PROTOCOLS,
    PaperCPL,
    PaperDLG,
    PaperGradInv,
    PaperIDLG,
    PaperProtocol,
    paper_defense,
)
from medpfl.metrics.rates import wilson
from medpfl.metrics.scoring import Judgement, Scorer, ssim_over_steps
from medpfl.metrics.success import Summary, summarise
from medpfl.outcomes import Grade

__all__ = [
    "ALL_PROTOCOLS",
    "Grade",
    "Grading",
    "Identification",
    "Judgement",
    "PaperCPL",
    "PaperDLG",
    "PaperGradInv",
    "PaperIDLG",
    "PaperProtocol",
    "Rank",
    "Scorer",
    "Summary",
    "calibrate",
    "identification",
    "line_up_size",
    "match",
    "mse",
    "mse_per_image",
    "paper_defense",
    "psnr_db",
    "psnr_db_per_image",
    "ranks_of",
    "ssim",
    "ssim_over_steps",
    "ssim_per_image",
    "summarise",
    "wilson",
]
