"""How much of an image an update determines, at the distance that an attack has reached.

An objective near zero says that the dummy explains the update. It does not say that no other image
does: where the gradient hardly depends on some pattern of pixels, the pattern may be anything. The
curvature of the objective tells such patterns from the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medpfl.attacks.distances import Distance
from medpfl.attacks.matching import Targets, activations
from medpfl.attacks.unknowns import Unknowns
from medpfl.optim.scheduler import CurvedObjective
from medpfl.types import Observation, ServerPayload

LEAST_DETERMINED = 0.5
"""The share of an image below which it counts as undetermined."""

# A Hessian takes a product an unknown, and each product a few evaluations of the network.
_MOST_UNKNOWNS = 3_200
_MOST_ENTRIES = 300_000_000
FLOAT32_ROUNDING = 2.0**-24
# Of a Hessian's eigenvalues, relative to the largest; LeNet-5's smallest are thirty times that.
_EIGENVALUE_ROUNDING = 1e-14
# What an image may hold of a pattern: the standard deviation of pixels that are uniform on [0, 1].
_CONTRAST = 0.29


def determined_share(hessian: Tensor, objective: float) -> float:
    """Return the share of the unknowns that an update determines: the effective rank over D.

    Along an eigenvector of the Hessian with the eigenvalue m, the objective rises by m s^2 / 2 at
    the distance s. Where that is less than what the attack has left of the objective, an image with
    and one without the pattern fit equally well: the pattern is open.

    Args:
        hessian: `(D, D)` float64, the Gauss-Newton Hessian 2J'J of the objective by the pixels.
        objective: what is left of it, not negative.

    Returns:
        A share in [0, 1]: patterns determined of D patterns in all.
    """
    curvature = torch.linalg.eigvalsh(hessian)
    seen = curvature > _EIGENVALUE_ROUNDING * curvature[-1]
    return float((seen & (curvature * _CONTRAST**2 / 2 > objective)).double().mean())


def in_pixels(hessian: Tensor, unknowns: Unknowns, z: Tensor) -> Tensor:
    """Return a Hessian by the unknowns as one by the pixels alone, each in [0, 1].

    Args:
        hessian: `(D, D)` at `z`.
        unknowns: how the vector is read.
        z: `(D,)`.

    Returns:
        `(D', D')` for D' pixels: label scores are left out.
    """
    slope = unknowns.slope(z)
    count = len(slope)
    return hessian[:count, :count] * slope.unsqueeze(0) * slope.unsqueeze(1)


def affordable(payload: ServerPayload, unknowns: Unknowns) -> bool:
    """Say whether a row's Hessian can be formed in the time that an attack takes."""
    if unknowns.count > _MOST_UNKNOWNS:
        return False
    parameters = sum(p.numel() for p in payload.parameters.values())
    return unknowns.count * (parameters + activations(payload, unknowns)) <= _MOST_ENTRIES


def hessian_at(objective: CurvedObjective[Targets], z: Tensor, target: Targets) -> Tensor:
    """Return the Gauss-Newton Hessian `(D, D)` of one row at `(D,)`."""
    units = torch.eye(len(z), dtype=z.dtype, device=z.device).unsqueeze(0)
    return objective.curvature(z.unsqueeze(0), target)(units)[0]


def rounding(distance: Distance, observation: Observation) -> float:
    """Return what the rounding of a float32 client alone makes of a distance.

    Of a gradient every entry is rounded; of a difference of weights, the weights are. In a sum
    under secure aggregation, entries are multiples of a step besides.
    """
    sent = {name: t.double() for name, t in observation.tensors.items()}
    rounded = [t + _alternating(t) * _moved(observation, name, t) for name, t in sent.items()]
    return float(distance(rounded, list(sent.values())))


def _moved(observation: Observation, name: str, tensor: Tensor) -> Tensor:
    if observation.weights_rounding == 0:
        moved = FLOAT32_ROUNDING * tensor
    else:
        moved = observation.weights_rounding * observation.payload.parameters[name].double().abs()
    if observation.aggregate is None or observation.aggregate.step == 0:
        return moved
    return (moved.square() + observation.aggregate.rounding**2).sqrt()


def _alternating(like: Tensor) -> Tensor:
    signs = torch.ones_like(like).flatten()
    signs[::2] = -1
    return signs.reshape(like.shape)
