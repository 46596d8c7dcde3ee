"""Optimisers that move many independent rows at once."""

from medpfl.optim.adam import Adam
from medpfl.optim.base import BatchedOptimizer, RowState, status_of
from medpfl.optim.lbfgs import LBFGS

__all__ = ["LBFGS", "Adam", "BatchedOptimizer", "RowState", "status_of"]
