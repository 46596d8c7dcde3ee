"""How the attacker comes to know the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from medpfl.errors import ConfigurationError
from medpfl.models.structure import last_linear
from medpfl.types import Observation


class LabelStrategy(Protocol):
    """Finds the labels of an update, or leaves them to the optimiser."""

    @property
    def requires(self) -> frozenset[str]:
        """Capabilities of the threat model that the strategy needs."""
        ...

    @property
    def joint(self) -> bool:
        """Whether the labels are unknowns of the optimisation."""
        ...

    def check(self, model: nn.Module, batch_size: int) -> None:
        """Raise a `ConfigurationError` where the strategy cannot work, before any compute."""
        ...

    def labels(self, observation: Observation) -> Tensor | None:
        """Return `(N,)` int64 labels, or None where they are optimised jointly."""
        ...


@dataclass(frozen=True, kw_only=True)
class Known:
    """The threat model grants the labels."""

    requires: ClassVar[frozenset[str]] = frozenset({"labels"})
    joint: ClassVar[bool] = False

    def check(self, model: nn.Module, batch_size: int) -> None:
        """Accept every model."""

    def labels(self, observation: Observation) -> Tensor | None:
        """Return the granted labels."""
        if observation.labels is None:
            raise ValueError("the observation holds no labels: call ThreatModel.require first")
        return observation.labels


@dataclass(frozen=True, kw_only=True)
class Joint:
    """The labels are softmax scores optimised together with the image (Zhu et al. 2019)."""

    requires: ClassVar[frozenset[str]] = frozenset()
    joint: ClassVar[bool] = True

    def check(self, model: nn.Module, batch_size: int) -> None:
        """Accept every model."""

    def labels(self, observation: Observation) -> Tensor | None:
        """Return None: nothing is known beforehand."""
        return None


@dataclass(frozen=True, kw_only=True)
class SmallestRow:
    """The class whose row of the last layer's weight gradient has the smallest sum.

    With one image, row c of that gradient is (p_c - y_c) h; where the features h are not negative,
    the true class alone has a negative row (Zhao et al. 2020, Eq. 6).
    """

    requires: ClassVar[frozenset[str]] = frozenset()
    joint: ClassVar[bool] = False

    def check(self, model: nn.Module, batch_size: int) -> None:
        """Refuse updates of several images, and models without a last linear layer."""
        last_linear(model)
        if batch_size != 1:
            raise ConfigurationError(
                f"attack.labels: the smallest-row rule reads one label off an update, but "
                f"federation.batch_size={batch_size}. Use an attack with joint or known labels."
            )

    def labels(self, observation: Observation) -> Tensor | None:
        """Return the inferred label, `(1,)`."""
        weight, _ = last_linear(observation.payload.model)
        return observation.tensors[weight].sum(dim=1).argmin().reshape(1).cpu()
