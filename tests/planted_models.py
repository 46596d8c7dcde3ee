"""Models as a malicious server sends them, and honest ones beside, for tests of the inspection."""

from __future__ import annotations

import torch
from helpers import payload_of, seeded, spec_of
from torch import Tensor, nn

from medpfl.federated.malicious import ImprintServer
from medpfl.types import DataSpec, ServerPayload

SPEC = spec_of(1, 16, 16)


def imprinted(
    spec: DataSpec = SPEC, network: str = "idlg_cnn", **settings: object
) -> ServerPayload:
    """Return a network with an imprint ahead of it, or of one of its modules."""
    server = ImprintServer(**{"auxiliary": "normal", "bins": 50, **settings})
    return server.plant(payload_of(network, spec), spec, None, seeded(1)).payload


def traps(rows: int, inputs: int, scale: float, *, signed: bool, jitter: float = 0.0) -> Tensor:
    """Return rows of trap weights, `(K, D)`, jittered relative to their root mean square.

    Args:
        signed: with the sign constraint of Boenisch et al. 2021; MIC's are without.
    """
    stream = seeded(2)
    weight, half = torch.zeros(rows, inputs), inputs // 2
    for row in weight:
        places = torch.randperm(inputs, generator=stream)
        drawn = 0.5 * torch.randn(half, generator=stream)
        drawn = -drawn.abs() if signed else drawn
        row[places[:half]], row[places[half : 2 * half]] = drawn, -scale * drawn
    size = weight.square().mean().sqrt()
    return weight + jitter * size * torch.randn(weight.shape, generator=stream)


def perceptron(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """Return a network whose first layer has the given rows."""
    first = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        first.weight.copy_(weight)
        if bias is not None:
            first.bias.copy_(bias)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(weight.shape[0], 3))
