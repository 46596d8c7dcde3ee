"""Soteria: the columns that it hides are left out, everything else is exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medpfl.attacks.adaptation.ranges import Ranges
from medpfl.attacks.adaptation.through import seen_through
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.problem import Problem
from medpfl.types import DefenseFacts


@dataclass(frozen=True)
class HiddenColumns:
    """Columns of one tensor that are zero were hidden: nothing is known of them.

    Args:
        place: of the tensor in the update.
    """

    place: int

    def before(self, ranges: Ranges, observed: Sequence[Tensor]) -> Ranges:
        """See `View.before`."""
        kept = [torch.ones_like(t, dtype=torch.bool) for t in observed]
        weight = observed[self.place]
        kept[self.place] = (weight != 0).any(0).expand_as(weight)
        return ranges.restricted(kept, [t.new_tensor(math.inf) for t in observed])


def through_soteria(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Match all but the hidden columns; where that layer was not captured, there are none."""
    weight = f"{_layer(problem.payload.model, getattr(facts, 'layer', None))}.weight"
    if weight not in problem.names:
        return parts, search
    return seen_through(parts, HiddenColumns(problem.names.index(weight))), search


def _layer(model: nn.Module, layer: str | None) -> str | None:
    """Return the layer that is defended: the one told of, or the first fully connected one."""
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return next(linear, None) if layer is None else layer
