"""Plants once into every global model, however many clients are sent it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from medpfl.federated.malicious.base import Awaited, Planting, Server
from medpfl.seeding import generator
from medpfl.types import DataSpec, ServerPayload


class Planter:
    """What a server makes of the global models of one run.

    Args:
        server: what it does.
        spec: the kind of data.
        public: public images `(A, C, *S)`, asked for where the server wants some.
        seed: the run's.
    """

    def __init__(
        self, server: Server, spec: DataSpec, public: Callable[[], Tensor | None], seed: int
    ) -> None:
        self._server, self._spec, self._public, self._seed = server, spec, public, seed
        self._last: tuple[ServerPayload, Awaited, Planting] | None = None

    def __call__(self, payload: ServerPayload, awaited: Awaited) -> Planting:
        """Return the model that is sent in place of a global one.

        What it draws is the same in every round, as its stream is the run's.

        Args:
            payload: the global model.
            awaited: the updates that will come.
        """
        if self._last is not None and self._last[0] is payload and self._last[1] == awaited:
            return self._last[2]
        self._last = None  # not two of them in memory
        public = self._public() if self._server.wants_public else None
        stream = generator(self._seed, "server", self._server.name)
        planting = self._server.plant(payload, self._spec, public, stream, awaited)
        self._last = payload, awaited, planting
        return planting
