"""An architecture without its numbers, for whoever brings parameters and buffers of their own."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def hollow(model: nn.Module) -> nn.Module:
    """Copy a network without its numbers, and without BatchNorm's updates of its statistics.

    In train mode these updates do not enter the gradient, and ``vmap`` cannot make them in place.
    In eval mode the network goes on using the statistics that it is given.
    """
    empty: dict[int, Tensor] = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    for p in model.parameters():
        empty[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
    hollow = copy.deepcopy(model, dict(empty))
    for module in hollow.modules():
        if isinstance(module, _NORMS):
            module.track_running_stats = False
    return hollow
