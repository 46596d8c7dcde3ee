"""The papers' tables and figures: reported numbers beside measured ones, with the reasons."""

from medpfl.paper.comparison import ComparisonTable
from medpfl.paper.frontier import Frontier
from medpfl.paper.mic_table import MicTable
from medpfl.paper.noise_picture import NoiseFigure
from medpfl.paper.noise_table import NoiseTable
from medpfl.paper.pictures import ProgressFigure
from medpfl.paper.product import PaperReport, Product

__all__ = [
    "ComparisonTable",
    "Frontier",
    "MicTable",
    "NoiseFigure",
    "NoiseTable",
    "PaperReport",
    "Product",
    "ProgressFigure",
]
