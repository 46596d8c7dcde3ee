"""What a server is that may change the model before clients get it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from medpfl.planted import Planted
from medpfl.training import LocalTraining
from medpfl.types import DataSpec, ServerPayload


@dataclass(frozen=True, kw_only=True)
class Awaited:
    """What a server knows beforehand of the updates that it will get: it runs the training.

    Args:
        images: behind an update, of all clients in it.
        clients: whose updates are added up.
        training: what each does with its images.
    """

    images: int = 1
    clients: int = 1
    training: LocalTraining = field(default_factory=LocalTraining)


@dataclass(frozen=True)
class Planting:
    """A model as a server sends it, and what it keeps of it.

    Args:
        payload: what every client is sent, or, of a server that sends each another model, what
            the first one is.
        secret: what the server keeps; None of an honest one.
        for_client: what one client is sent, by its place among those of the round; None: `payload`.
        measured: what the server has measured on public images, in lines for people.
    """

    payload: ServerPayload
    secret: Planted | None = None
    for_client: Callable[[int], ServerPayload] | None = None
    measured: tuple[str, ...] = ()

    def sent(self, place: int) -> ServerPayload:
        """Return what the client at a place is sent."""
        return self.payload if self.for_client is None else self.for_client(place)


ONE_UPDATE = Awaited()
"""One update of one image."""


class Server(Protocol):
    """What stands in the group ``server``: it sends the global model, or one that it changed."""

    @property
    def name(self) -> str:
        """As in the configuration."""
        ...

    @property
    def is_honest(self) -> bool:
        """Whether clients get the global model as it is."""
        ...

    @property
    def plants(self) -> type[Planted] | None:
        """What kind of secret it keeps; None of an honest one."""
        ...

    @property
    def wants_public(self) -> bool:
        """Whether it calibrates what it plants on public images."""
        ...

    @property
    def size(self) -> str:
        """The setting that says how much it plants."""
        ...

    def describe(self, awaited: Awaited) -> str | None:
        """Return what it plants, and what it expects of it, in words; None of an honest one."""
        ...

    def entries(self, payload: ServerPayload, spec: DataSpec, awaited: Awaited) -> int:
        """Return the number of parameters that it adds to a client's model."""
        ...

    def plant(
        self,
        payload: ServerPayload,
        spec: DataSpec,
        public: Tensor | None,
        generator: torch.Generator,
        awaited: Awaited = ONE_UPDATE,
    ) -> Planting:
        """Return the model that is sent in place of the global one.

        Args:
            payload: the global model; not changed.
            spec: the kind of data.
            public: `(A, C, *S)` in [0, 1], where `wants_public`.
            generator: where every random number comes from.
            awaited: the updates that will come.

        Raises:
            ConfigurationError: it cannot be planted into such a model.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class HonestServer:
    """Send the global model as it is: the group ``server=honest``."""

    name: ClassVar[str] = "honest"
    is_honest: ClassVar[bool] = True
    plants: ClassVar[None] = None
    wants_public: ClassVar[bool] = False
    size: ClassVar[str] = "server"

    def describe(self, awaited: Awaited) -> str | None:
        """See `Server.describe`."""
        return None

    def entries(self, payload: ServerPayload, spec: DataSpec, awaited: Awaited) -> int:
        """See `Server.entries`."""
        return 0

    def plant(
        self,
        payload: ServerPayload,
        spec: DataSpec,
        public: Tensor | None,
        generator: torch.Generator,
        awaited: Awaited = ONE_UPDATE,
    ) -> Planting:
        """See `Server.plant`."""
        return Planting(payload)
