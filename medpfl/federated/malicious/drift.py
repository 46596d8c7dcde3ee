"""How loud rows may be where clients train: so that what they learn does not move them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.federated.malicious.base import Awaited
from medpfl.models.rows import features_at, loudness
from medpfl.types import DataSpec, ServerPayload

# Adam's steps are lr over this times the gradient where that is far smaller, as torch has it.
_ADAM_EPS = 1e-8
# How far a row's response may move over local training, of a bin's width.
_DRIFT = 0.01
_LOOKED_AT = 16
_LOUDEST = 100.0


def trains(awaited: Awaited) -> bool:
    """Tell whether clients send differences of weights."""
    return awaited.training.kind == "delta"


def moves(awaited: Awaited) -> bool:
    """Tell whether rows move while clients still compute with them: over several steps."""
    return trains(awaited) and _steps(awaited) > 1


@dataclass(frozen=True)
class Loud:
    """How loud rows are.

    Args:
        gain: of their mean response.
        own: factor on each response; None: 1 / gain, so that images are changed as ever.
    """

    gain: float
    own: float | None = None

    @property
    def response(self) -> float:
        """Factor on each response."""
        return 1 / self.gain if self.own is None else self.own


def still(
    payload: ServerPayload,
    spec: DataSpec,
    awaited: Awaited,
    public: Tensor | None,
    *,
    place: str | None,
    bin_width: float,
    rows: int,
) -> Loud:
    """Return how loud rows may be for none to drift by more than a hundredth of a bin.

    A step moves the response of a row to an image x by the learning rate times a |x|^2, where
    a = gain d / K is what an image passes back, and d how the loss changes with a number added to
    all features. A small gain leaves the network as it is, which trains on undisturbed. In sums,
    which are rounded to fixed point, responses are 1 / gain, so that drift is gain^2 of their size
    and gains may be larger; not under Adam, whose steps are in proportion to gradients only where
    these are far below its epsilon.

    Args:
        payload: the network behind the rows.
        spec: the kind of data.
        awaited: how clients train.
        public: `(A, C, *S)` in [0, 1]; None: noise stands for them.
        place: where rows are.
        bin_width: in units of a row's response.
        rows: K.
    """
    images = public
    if images is None:
        images = torch.rand(_LOOKED_AT, *spec.shape, generator=torch.Generator().manual_seed(0))
    inputs_norm = spec.normalise(images[:_LOOKED_AT])
    size = features_at(payload, place, inputs_norm).flatten(1).double().square().sum(1).max()
    loudest = loudness(payload, place, inputs_norm)
    moved = _way(awaited) * loudest * (float(size) + 1) / rows
    most = _DRIFT * bin_width / max(moved, 1e-30)
    if awaited.clients == 1 or awaited.training.optimizer == "adam":
        return Loud(min(1.0, most), 1.0)
    return Loud(min(_LOUDEST, most**0.5))


def _steps(awaited: Awaited) -> int:
    return awaited.training.steps(-(-awaited.images // awaited.clients))


def _way(awaited: Awaited) -> float:
    """Return by how many gradients a weight moves at most."""
    training = awaited.training
    rate = training.lr / (_ADAM_EPS if training.optimizer == "adam" else 1 - training.momentum)
    return rate * _steps(awaited)
