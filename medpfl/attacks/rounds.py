"""Several updates of the same images: one row, whose images must explain all of them.

Each round has an objective of its own, with the weights that were sent in it and the update that
came back. The images and the labels are the same in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medpfl.attacks.matching import MatchingObjective, Targets
from medpfl.errors import ConfigurationError
from medpfl.optim.base import Product
from medpfl.training import LocalTraining


class RoundsMatching:
    """The objectives of T rounds, at the same images.

    Likelihoods in nats add up, and what images are like counts once:

        -log p(x | u_1 .. u_T) = sum_t -log p(u_t | x) - log p(x) + const,

    as the noise of every round is drawn anew. With Gaussian noise that leaves what the mean of T
    updates would: 10 log10 T dB less of it. Distances without a unit are averaged, so that a
    threshold and the weight of a prior mean what they mean of one update.

    Args:
        objectives: one a round, first to last, at least 2. Of likelihoods, the last alone holds the
            priors; of other distances, all of them do.
        summed: whether the distances are likelihoods.
    """

    def __init__(self, objectives: Sequence[MatchingObjective], *, summed: bool) -> None:
        self._objectives = tuple(objectives)
        self._share = 1.0 if summed else 1 / len(self._objectives)

    def __call__(self, z: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the objective `(B,)` and its gradient `(B, D)` at `(B, D)` points."""
        pairs = zip(self._objectives, targets.rounds(len(self._objectives)), strict=True)
        values, gradients = zip(*(objective(z, own) for objective, own in pairs), strict=True)
        return self._share * torch.stack(values).sum(0), self._share * torch.stack(gradients).sum(0)

    def curvature(self, z: Tensor, targets: Targets) -> Product:
        """Return the product with the rows' Gauss-Newton Hessians at `(B, D)` points.

        Raises:
            ValueError: the distance or a prior is no sum of squares.
        """
        pairs = zip(self._objectives, targets.rounds(len(self._objectives)), strict=True)
        products = [objective.curvature(z, own) for objective, own in pairs]

        def product(vectors: Tensor) -> Tensor:
            return self._share * torch.stack([one(vectors) for one in products]).sum(0)

        return product


def check_rounds(
    training: LocalTraining | None,
    images: int,
    *,
    grouped: bool,
    separate: bool,
    surrogate: bool,
    arranged: bool,
) -> None:
    """Raise a `ConfigurationError` where an attack cannot match several rounds together.

    Args:
        training: what is known of the clients' local training.
        images: behind an update.
        grouped: whether restarts pull on each other.
        separate: whether every local epoch has images of its own.
        surrogate: whether gradients are taken between two networks.
        arranged: whether it is tried which image is behind which local step.
    """
    parts = {
        "group_consistency": (grouped, "pulls restarts towards their mean"),
        "epochs": (separate, "has images of its own for every epoch of one client's training"),
        "surrogate": (surrogate, "looks between the two networks of one round"),
    }
    for name, (used, does) in parts.items():
        if used:
            raise ConfigurationError(
                f"attack.{name} {does}, and under threat.knows=[same_images] several rounds are "
                f"matched together. Set attack.{name}=null, or leave same_images out"
            )
    steps = 1 if training is None else training.steps(images)
    if arranged and steps > 1:
        raise ConfigurationError(
            f"attack.arrangements tries which of {images} images is behind which of {steps} local "
            "steps, and under threat.knows=[same_images] that is another in every round. Set "
            "attack.arrangements=null (images are then taken in turn, or in the order granted), "
            "set federation.local.batch_size=null federation.local.epochs=1, or leave same_images "
            "out"
        )
