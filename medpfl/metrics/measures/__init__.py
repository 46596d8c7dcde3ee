"""Measures: numbers on a pair of images, each with its column, its summary and its tables."""

from medpfl.metrics.measures.base import Measure
from medpfl.metrics.measures.gradients import GMSD
from medpfl.metrics.measures.intensity import NRMSE
from medpfl.metrics.measures.plain import MSE, SSIM

__all__ = ["GMSD", "MSE", "NRMSE", "SSIM", "Measure"]
