"""A network between the one sent and the one returned: its gradient stands for many steps."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from torch import Tensor

from medpfl.attacks.reading import update_map_of
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.training import UpdateMap
from medpfl.types import Observation

# As good as w0, and not at it, where the unknown has no slope.
_AT_FIRST = 1e-3


@checked("attack.surrogate")
@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """Take the dummy's gradient at (1 - a) w0 + a wT, with a in [0, 1] one more unknown of a row.

    Here w0 are the weights that a client was sent, and wT those after its local training; the
    attacker knows both. The gradient there costs what one gradient does, however many steps the
    client takes, and asks for none of their settings. That there is such a point is approximate.

    Zhu, Yao and Blaschko 2023 (arXiv 2306.00127).

    Args:
        start: a where the search begins; between 0 and 1. The gradient in the middle is the mean
            along the way, up to the second order in its length.

    Notes:
        The unknown is the angle u of a = sin(u / 2)^2, which reaches both ends and leaves neither.
    """

    start: Annotated[float, Range(0, 1, "()")] = 0.5

    def first(self, *, solved: bool = False) -> float:
        """Return the unknown where the search begins.

        Args:
            solved: whether a closed form has found images whose gradient at w0 is the update.
        """
        return 2 * math.asin(math.sqrt(_AT_FIRST if solved else self.start))

    def share(self, unknown: Tensor) -> Tensor:
        """Return a for each unknown."""
        return (unknown / 2).sin().square()

    def check_update(self, kind: Literal["gradient", "delta"], unseen: Collection[str]) -> None:
        """Raise a `ConfigurationError` where the weights after local training are not known.

        Args:
            kind: of the updates.
            unseen: names of the parameters whose updates are not captured.
        """
        if kind == "gradient":
            raise ConfigurationError(
                "attack.surrogate: under FedSGD a client sends a gradient, and there are no "
                "weights after local training to go towards. Use attack=scale_free, or "
                "federation=fedavg"
            )
        if unseen:
            raise ConfigurationError(
                "attack.surrogate: needs all weights after local training, and capture.parameters "
                f"leaves out {', '.join(sorted(unseen))}. Use capture.parameters=null, or "
                "attack=scale_free"
            )

    def update(self, observation: Observation) -> UpdateMap:
        """Return one plain step as long as all of the client's together: what an update stands for.

        Its learning rate is what the update, in the unit of a gradient, is to be multiplied by for
        the whole way from w0 to wT, turned round.
        """
        update = update_map_of(observation)
        return UpdateMap(lr=update.unit)

    def seen(self, observation: Observation) -> Observation:
        """Return an update, in the unit of a gradient, as that of the network where a starts."""
        payload, way = observation.payload, self.start * self.update(observation).lr
        parameters = {n: p - way * observation.tensors[n] for n, p in payload.parameters.items()}
        return replace(observation, payload=replace(payload, parameters=parameters))
