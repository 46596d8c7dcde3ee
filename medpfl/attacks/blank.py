"""How much of an update a search has explained, set against an image that shows nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from medpfl.attacks.matching import Targets
from medpfl.attacks.stages import Key
from medpfl.attacks.victim_rows import VictimRows
from medpfl.optim.scheduler import CurvedObjective, Outcome


@dataclass(frozen=True)
class Blank:
    """Says what a row has left of the objective, relative to what a blank image leaves.

    An objective alone has no scale: it depends on the distance, the network and the update. A blank
    image has the brightness of the one that was found, a colour channel, and no content; of labels
    that are unknowns, those that were found.

    Args:
        objective: of single rows.
        rows: what they are.
        dtype: the precision that they ended in.
    """

    objective: CurvedObjective[Targets]
    rows: VictimRows
    dtype: torch.dtype

    def __call__(self, outcome: Outcome[Key]) -> float:
        """Return 0 where everything is explained and 1 where no more than by a blank image.

        NaN where the row never was finite, or a blank image leaves nothing.
        """
        if not math.isfinite(outcome.objective):
            return math.nan
        key, spec = outcome.key, outcome.key.observation.spec
        unknowns = self.rows.unknowns(key.observation)
        images, scores = unknowns.unpack(outcome.z)
        pixels = spec.denormalise(images).clamp(0, 1)
        blank = pixels.mean(tuple(range(2, pixels.ndim)), keepdim=True).expand_as(pixels)
        z = unknowns.pack(
            spec.normalise(blank), torch.zeros(unknowns.label_shape) if scores is None else scores
        )
        target = self.rows.target(key, self.dtype)
        left = float(self.objective(z.to(self.rows.device, self.dtype).unsqueeze(0), target)[0])
        return outcome.objective / left if math.isfinite(left) and left > 0 else math.nan
