"""Measures that a configuration names: anybody's code, so that what goes wrong names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medpfl.errors import FAULTS, ConfigurationError, MedpflError
from medpfl.metrics.measures.base import Measure
from medpfl.types import DataSpec


@dataclass(frozen=True, kw_only=True)
class OwnMeasure:
    """A measure that cannot harm the record: it is given copies, and must return a number.

    Args:
        name: its name in the configuration.
        measure: what computes it.
    """

    name: str
    measure: Measure

    def __call__(self, original: Tensor, reconstruction: Tensor, spec: DataSpec) -> float:
        """Return the measure's number.

        Raises:
            ConfigurationError: it fails, or returns something else; names it.
        """
        try:
            with torch.no_grad():
                found: object = self.measure(original.clone(), reconstruction.clone(), spec)
        except MedpflError:
            raise
        except (*FAULTS, OSError) as fault:
            raise ConfigurationError(
                f"{self._who} fails on images of shape {tuple(original.shape)} "
                f"({type(fault).__name__}: {fault}). Mend it, or leave it out with "
                f"metrics.measures.{self.name}=null"
            ) from fault
        value = _number(found)
        if value is None:
            raise ConfigurationError(
                f"{self._who} must return a number, NaN where it is not defined, but returns "
                f"{_told(found)}"
            )
        return value

    @property
    def _who(self) -> str:
        return f"metrics.measures.{self.name}: {type(self.measure).__name__}"


def _number(found: Any) -> float | None:
    """Return a single number of Python, NumPy or torch as a float; None of anything else."""
    if isinstance(found, str | bytes) or getattr(found, "ndim", 0) != 0:
        return None
    try:
        return float(found.item() if isinstance(found, Tensor) else found)
    except (TypeError, ValueError, OverflowError):
        return None


def _told(found: object) -> str:
    shape = getattr(found, "shape", None)
    sized = "" if shape is None else f" of shape {tuple(shape)}"
    return "nothing" if found is None else f"{type(found).__name__}{sized}"
