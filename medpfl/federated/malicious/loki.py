"""An imprint of which every client in a sum has columns of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from medpfl.errors import ConfigurationError
from medpfl.federated.malicious.base import Awaited
from medpfl.federated.malicious.imprint import ImprintServer
from medpfl.settings.hints import checked


@checked("server")
@dataclass(frozen=True, kw_only=True)
class LokiServer(ImprintServer):
    """Send every client of a sum other kernels, so that no two share columns (Zhao et al. 2023).

    Rows look at the images of all clients side by side, and each client's kernels bring its images
    to its own columns and leave the others zero: the sum of all gradients still holds each
    client's by itself. A bias a client stands for a channel of its own that is constant, without
    which rows would say how loud all clients are together, and not each. Of B images a client, a
    share of (1 - 1/K)^(B - 1) is alone in a bin, however many clients there are. It costs K rows of
    D entries a client.

    Rows are zero, and a query beside them measures; see `ImprintServer`.
    """

    name: ClassVar[str] = "loki"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero_rows is False:
            raise ConfigurationError(
                "server.zero_rows=false: the rows of server=loki are zero; choose null, or "
                "server=imprint"
            )

    def columns(self, awaited: Awaited) -> int:
        """See `ImprintServer.columns`."""
        return awaited.clients

    def _has_zero_rows(self, awaited: Awaited) -> bool:
        return True
