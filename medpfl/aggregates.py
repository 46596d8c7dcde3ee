"""What an update is made of that is the mean over several clients."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from medpfl.training import Batches


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """The mean of several clients' updates, weighted by their images, as secure aggregation has it.

    Its images are numbered client after client.

    Args:
        clients: how many are in it, at least 1.
        step: each client's entries were rounded to multiples of it, in the update's own unit; 0
            where they were not rounded.
        sizes: images of each client, or None where withheld.
        orders: of each client the images of its steps, numbered from 0 within the client, as in
            `LocalTraining`; None where withheld, or where nobody knows.
    """

    clients: int
    step: float = 0.0
    sizes: tuple[int, ...] | None = None
    orders: tuple[Batches, ...] | None = None

    def known(self, *, sizes: bool, orders: bool) -> Aggregate:
        """Return the same without what is withheld."""
        return replace(
            self,
            sizes=self.sizes if sizes else None,
            orders=self.orders if orders else None,
        )

    @property
    def averaging(self) -> float:
        """The standard deviation of a mean of the clients' errors, relative to that of one's.

        Errors are independent; where sizes are withheld, clients count as equal.
        """
        sizes = self.sizes or (1,) * self.clients
        return math.sqrt(sum(size**2 for size in sizes)) / sum(sizes)

    @property
    def rounding(self) -> float:
        """The root mean square of what rounding to the step makes of an entry."""
        return self.step / math.sqrt(12) * self.averaging
