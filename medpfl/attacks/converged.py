"""Asks of rows that have converged whether their update leaves another image possible."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medpfl.attacks.determination import determined_share, hessian_at, in_pixels, rounding
from medpfl.attacks.distances import Distance
from medpfl.attacks.matching import Targets
from medpfl.attacks.stages import Key
from medpfl.attacks.victim_rows import VictimRows, from_closed_form
from medpfl.optim.scheduler import CurvedObjective, Outcome
from medpfl.outcomes import Status


@dataclass(frozen=True)
class ConvergedRows:
    """Says which share of an image the update determines, where a search has converged.

    Args:
        objective: of single rows, in float64.
        rows: what they are.
        distance: the objective's, without priors.
    """

    objective: CurvedObjective[Targets]
    rows: VictimRows
    distance: Distance

    def __call__(self, outcome: Outcome[Key]) -> float:
        """Return the share in [0, 1]; NaN of rows that ended otherwise."""
        key = outcome.key
        if key.solution is not None or outcome.status is not Status.CONVERGED:
            return from_closed_form(outcome)
        z = outcome.z.to(self.rows.device, torch.float64)
        hessian = hessian_at(self.objective, z, self.rows.target(key, torch.float64))
        left = max(outcome.objective, rounding(self.distance, key.observation))
        unknowns = self.rows.unknowns(key.observation)
        return determined_share(in_pixels(hessian, unknowns, z), left)
