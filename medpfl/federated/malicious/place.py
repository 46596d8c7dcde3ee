"""Rows deeper in the network: what they read are features, and images must be found from them."""

from __future__ import annotations

import math

from medpfl.errors import ConfigurationError
from medpfl.types import DataSpec, ServerPayload

# Finding an image forms a matrix of as many rows and columns.
_MOST_UNKNOWNS = 4096


def check_place(payload: ServerPayload, place: str | None, spec: DataSpec, features: int) -> str:
    """Return in words whether images can be found from what rows read; empty ahead of the network.

    Args:
        payload: the network.
        place: the module that rows are ahead of.
        spec: the kind of data.
        features: entries that come to this place.

    Raises:
        ConfigurationError: images are too large to be found, or features depend on the batch.
    """
    if place is None:
        return ""
    tied = spec.greyscale and spec.shape[0] > 1
    unknowns = math.prod(spec.shape[1:] if tied else spec.shape)
    if unknowns > _MOST_UNKNOWNS:
        raise ConfigurationError(
            f"server.place={place}: rows read features there, and an image of {unknowns:,} numbers "
            f"takes too long to find from them; choose preprocess.size so that there are "
            f"{_MOST_UNKNOWNS:,} at most, or server.place=null"
        )
    if payload.training and payload.buffers:
        raise ConfigurationError(
            f"server.place={place}: under BatchNorm in train mode features depend on the whole "
            "batch, and no image can be found from its own; choose "
            "federation.batch_norm=eval_public, or server.place=null"
        )
    told = f"rows read {features:,} features, from which {unknowns:,} numbers of an image are found"
    if features < unknowns:
        return f"{told}: too few; many images have the same, and one of these is handed in"
    return told
