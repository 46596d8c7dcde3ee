"""Group consistency: a victim's restarts are pulled towards what they have in common.

The restarts of a victim are then members of one group, and a group is one row: its unknowns are
those of all members, one after another. So a row still depends on itself alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.func import grad_and_value, vmap

from medpfl.attacks.curvature import gauss_newton
from medpfl.attacks.matching import Targets
from medpfl.attacks.unknowns import Unknowns
from medpfl.optim.base import Product
from medpfl.optim.scheduler import CurvedObjective

# In place of infinity, which the assignment refuses where it cannot be avoided.
_NEVER = 1e30


class GroupMatching:
    """The sum of the members' matching objectives, plus their group consistency.

        sum_g f(x_g) + weight sum_g mean (x_g - m)^2,    m = mean of x_g over the members g

    with f the distance and its priors, and the inner mean over all pixels of all images. A solution
    stays one where all members find it; what they disagree on is what the update leaves open.

    Args:
        objective: f, of rows that are single members.
        unknowns: how a member's vector is read.
        members: G, at least 2.
        weight: not negative.

    Notes:
        Yin et al. 2021 (arXiv 2104.07586), Eq. 10 and 11. Theirs registers the members by optical
        flow before taking the mean; here they are compared pixel by pixel. Where several images are
        behind an update, each member's are first brought into the order of the first member's that
        costs least, images of one label among themselves.
    """

    def __init__(
        self,
        *,
        objective: CurvedObjective[Targets],
        unknowns: Unknowns,
        members: int,
        weight: float,
    ) -> None:
        self._objective = objective
        self._unknowns = unknowns
        self._members = members
        self._weight = weight
        self._linearise = gauss_newton(self._residual, rowwise=(True,))

    def __call__(self, z: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the objective `(B,)` and its gradient `(B, G * D)` at `(B, G * D)` points."""
        values, gradients = self._objective(apart(z, self._members), self._targets(targets))
        pull, cost = vmap(grad_and_value(self._cost))(z, self._order(z, targets))
        return values.reshape(len(z), -1).sum(1) + cost, gradients.reshape(z.shape) + pull

    def curvature(self, z: Tensor, targets: Targets) -> Product:
        """Return the product with the rows' Gauss-Newton Hessians at `(B, G * D)` points.

        Raises:
            ValueError: the members' objective is no sum of squares.
        """
        single = self._objective.curvature(apart(z, self._members), self._targets(targets))
        pull = self._linearise(z, self._order(z, targets))

        def product(vectors: Tensor) -> Tensor:
            rows, count, _ = vectors.shape
            # From (B, V, G * D) to (B * G, V, D), and back.
            parts = vectors.reshape(rows, count, self._members, -1).movedim(2, 1)
            products = single(parts.flatten(0, 1)).reshape(parts.shape)
            return products.movedim(1, 2).flatten(2) + pull(vectors)

        return product

    def _targets(self, targets: Targets) -> Targets:
        """Return each row's target once a member."""
        rows = torch.arange(len(targets.labels), device=targets.labels.device)
        return targets.select(rows.repeat_interleave(self._members))

    def _cost(self, z: Tensor, order: Tensor) -> Tensor:
        return self._residual(z, order).square().sum()

    def _residual(self, z: Tensor, order: Tensor) -> Tensor:
        """Return `(G * N * C * S,)` entries whose squares sum to a row's group consistency."""
        images = self._images(z)
        order = order.unsqueeze(2).expand(images.shape)
        images = images.gather(1, order)
        away = images - images.mean(0)
        return away.flatten() * math.sqrt(self._weight / away[0].numel())

    def _images(self, z: Tensor) -> Tensor:
        """Return the images of a row's members, `(G, N, C * S)`."""
        unpack = vmap(lambda member: self._unknowns.unpack(member)[0])
        return unpack(z.reshape(self._members, -1)).flatten(2)

    def _order(self, z: Tensor, targets: Targets) -> Tensor:
        """Return `(B, G, N)`: which of a member's images goes with each of the first member's."""
        images = self._unknowns.images
        if images == 1:
            return torch.zeros(len(z), self._members, 1, dtype=torch.int64, device=z.device)
        pictures = vmap(self._images)(z)
        first = pictures[:, :1].expand_as(pictures)
        costs = torch.cdist(first.flatten(0, 1), pictures.flatten(0, 1)).square()
        labels = targets.labels
        others = (labels.unsqueeze(1) != labels.unsqueeze(2)).any(-1)
        forbidden = others.repeat_interleave(self._members, dim=0)
        costs = costs.nan_to_num(_NEVER).clamp_max(_NEVER).masked_fill(forbidden, _NEVER)
        orders = [linear_sum_assignment(c)[1] for c in costs.detach().cpu().numpy()]
        return torch.from_numpy(np.stack(orders)).to(z.device).reshape(len(z), -1, images)


def apart(z: Tensor, members: int) -> Tensor:
    """Return groups `(B, G * D)` as single members, `(B * G, D)`."""
    return z.reshape(len(z) * members, -1)
