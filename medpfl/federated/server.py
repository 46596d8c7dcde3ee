"""The server: keeps the global model and sends it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Protocol, get_args

import torch
from torch import nn

from medpfl.batch_norm import POLICIES, BatchNormPolicy
from medpfl.errors import ConfigurationError
from medpfl.federated.partition import Alpha, Clients, PartitionKind
from medpfl.federated.pretrain import Pretraining, TrainingImages
from medpfl.seeding import generator
from medpfl.settings.hints import checked, wrong_value
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
    """Who trains with whom, and what passes between them.

    Args:
        pretrain: what the server did to the model before the first round.
        local: what clients do with their images.
        batch_norm: how clients run BatchNorm, and whether its statistics leave with the update;
            ``eval_public``, ``train_private`` or ``train_shared``, see `medpfl.batch_norm`. It is
            the mode of other layers that have one, too.
        new_model_per_victim: send each client a newly initialised network (the iDLG experiment).
        model_seed: seed of the initial weights.
        batch_size: images behind an attacked update; None: all that the client has, so that the
            update it really sends is attacked.
        clients: clients that share the attacked split; None gives every attacked update a client
            of its own, which holds nothing else.
        rounds: of training.
        clients_per_round: clients drawn for each round of training; None takes all.
        partition: how the split is shared out; see `medpfl.federated.partition`.
        alpha: concentration, where that is by ``dirichlet``.
    """

    pretrain: Pretraining
    local: LocalTraining = field(default_factory=LocalTraining)
    batch_norm: BatchNormPolicy = "eval_public"
    new_model_per_victim: bool = False
    model_seed: Seed = 50
    batch_size: Annotated[int, Range(1, 100_000)] | None = 1
    clients: Clients | None = None
    rounds: Annotated[int, Range(0, 1_000_000)] = 0
    clients_per_round: Clients | None = None
    partition: PartitionKind = "iid"
    alpha: Alpha = 0.5

    @property
    def is_shared(self) -> bool:
        """Whether clients share one split and train together."""
        return self.clients is not None or self.partition == "folder"

    def __post_init__(self) -> None:
        kinds = get_args(PartitionKind)
        if self.partition not in kinds:
            raise ConfigurationError(
                f"federation.partition={self.partition}: choose {', '.join(kinds)}"
            )
        if not isinstance(self.local, LocalTraining):
            raise wrong_value("federation.local", self.local, "local training (LocalTraining)")
        self._check_clients()
        if self.batch_norm not in POLICIES:
            raise ConfigurationError(
                f"federation.batch_norm={self.batch_norm}: choose {', '.join(POLICIES)}"
            )

    def _check_clients(self) -> None:
        if not self.is_shared:
            for name, plain in (("rounds", 0), ("clients_per_round", None)):
                if getattr(self, name) != plain:
                    raise ConfigurationError(
                        f"federation.{name}={getattr(self, name)}: nobody trains together, as "
                        "every attacked update has a client of its own. Set federation.clients"
                    )
            if self.batch_size is None:
                raise ConfigurationError(
                    "federation.batch_size=null is all that a client has: set federation.clients "
                    "to share the images out, or a number of images"
                )
            return
        if self.new_model_per_victim:
            raise ConfigurationError(
                "federation.new_model_per_victim=true: clients that train together share one "
                "model. Set it to false, or federation.clients=null"
            )
        drawn = self.clients_per_round
        if drawn is not None and self.clients is not None and drawn > self.clients:
            raise ConfigurationError(
                f"federation.clients_per_round={drawn}: there are federation.clients={self.clients}"
            )

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
            batch_norm=self.batch_norm,
        )
