"""Maps from pixels to updates whose bounds can be written down, for the tests of the bounds."""

from __future__ import annotations

import torch
from helpers import CPU, seeded, spec_of
from torch import Tensor, nn

from medpfl.bounds.pixels import PixelMap
from medpfl.federated import Client
from medpfl.training import LocalTraining, Parameters, UpdateMap
from medpfl.types import DataSpec, ServerPayload, Truth


def no_network(parameters: Parameters, inputs_norm: Tensor) -> Tensor:
    """Stand in where the gradient asks no network."""
    raise AssertionError("nobody asks")


def linear_map(matrix: Tensor, spec: DataSpec, *, images: int = 1, tied: bool = False) -> PixelMap:
    """Return the map whose update is a matrix `(P, N d)` times the images in input space."""

    def gradient(forward, parameters, inputs_norm, probabilities):
        return {"y": matrix @ inputs_norm.flatten()}

    return PixelMap(
        update_map=UpdateMap(),
        forward=no_network,
        parameters={"y": torch.zeros(len(matrix))},
        probabilities=torch.ones(images, 1),
        spec=spec,
        tied=tied,
        gradient=gradient,
    )


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=seeded(seed))


class Smooth(nn.Module):
    """A small network with BatchNorm, smooth in the pixels."""

    def __init__(self, channels: int, classes: int, size: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Flatten()
        )
        self.fc = nn.Linear(3 * size * size, classes)

    def forward(self, inputs_norm: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.fc(self.body(inputs_norm))
        return logits


def client_sends(
    truth: Truth, payload: ServerPayload, spec: DataSpec, training: LocalTraining
) -> Tensor:
    """Return what a client sends, flat and in float64."""
    update, _ = Client(spec=spec, device=CPU, training=training).update(truth, payload)
    return torch.cat([t.flatten() for t in update.tensors.values()]).double()


def normalised(*shape: int, num_classes: int = 3, greyscale: bool = False) -> DataSpec:
    """Describe data that are normalised, each channel in its own way."""
    plain = spec_of(*shape, num_classes=num_classes)
    count = shape[0]
    return DataSpec(
        shape=plain.shape,
        num_classes=num_classes,
        mean=tuple(0.4 + 0.1 * c for c in range(count)),
        std=tuple(0.5 / (c + 1) for c in range(count)),
        greyscale=greyscale,
    )
