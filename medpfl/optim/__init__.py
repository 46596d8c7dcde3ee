"""Optimisers that move many independent rows at once."""

from medpfl.optim.adam import Adam
from medpfl.optim.base import BatchedOptimizer, RowState, status_of
from medpfl.optim.lbfgs import LBFGS
from medpfl.optim.levenberg_marquardt import LevenbergMarquardt

__all__ = ["LBFGS", "Adam", "BatchedOptimizer", "LevenbergMarquardt", "RowState", "status_of"]
