"""The server: keeps the global model and sends it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import torch
from torch import nn

from medpfl.errors import ConfigurationError
from medpfl.federated.pretrain import Pretraining, TrainingImages
from medpfl.seeding import generator
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range, Seed
from medpfl.training import LocalTraining
from medpfl.types import DataSpec, ServerPayload


class ModelFactory(Protocol):
    """Builds an initialised network for a kind of data."""

    def build(self, spec: DataSpec, generator: torch.Generator) -> nn.Module:
        """Return a new network whose random numbers come from the generator."""
        ...


@checked("federation")
@dataclass(frozen=True, kw_only=True)
class Federation:
    """One round of federated learning: who sends what to whom.

    Args:
        pretrain: what the server did to the model before the first round.
        local: what clients do with their images.
        mode: whether clients run the network in ``eval`` mode (BatchNorm uses the statistics that
            the server sent) or in ``train`` mode (it uses those of the client's batch).
        buffers: whether clients keep their BatchNorm statistics ``private``, or have them
            ``shared`` with the update.
        new_model_per_victim: send each victim a newly initialised network (the iDLG experiment).
        model_seed: seed of the initial weights.
        batch_size: images in one update.
    """

    pretrain: Pretraining
    local: LocalTraining = field(default_factory=LocalTraining)
    mode: Literal["eval", "train"] = "eval"
    buffers: Literal["private", "shared"] = "private"
    new_model_per_victim: bool = False
    model_seed: Seed = 50
    batch_size: Annotated[int, Range(1, 100_000)] = 1

    def __post_init__(self) -> None:
        if self.mode not in ("eval", "train"):
            raise ConfigurationError(f"federation.mode={self.mode}: choose eval or train")
        if self.buffers not in ("private", "shared"):
            raise ConfigurationError(f"federation.buffers={self.buffers}: choose private or shared")

    def payloads(
        self,
        factory: ModelFactory,
        spec: DataSpec,
        images: TrainingImages,
        device: torch.device,
    ) -> Callable[[str], ServerPayload]:
        """Return the function that gives each client, by capture id, the payload it receives."""

        def build(stream: torch.Generator) -> ServerPayload:
            model = factory.build(spec, stream)
            self.pretrain(model, images, spec, device)
            return self._payload(model.to(device))

        if self.new_model_per_victim:
            return lambda capture_id: build(generator(self.model_seed, "model", capture_id))
        shared = build(torch.Generator().manual_seed(self.model_seed))
        return lambda _: shared

    def _payload(self, model: nn.Module) -> ServerPayload:
        return ServerPayload(
            model=model,
            parameters={n: p.detach() for n, p in model.named_parameters()},
            buffers={n: b.detach() for n, b in model.named_buffers()},
            training=self.mode == "train",
        )
