"""Laws of a network's initial parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import nn

from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range


class Init(Protocol):
    """Draws the initial parameters of a freshly constructed network."""

    def apply(self, model: nn.Module, generator: torch.Generator) -> None:
        """Set the parameters of `model` in place, drawing from the generator alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class DefaultInit:
    """Keep the parameters that the framework's constructors drew.

    A `NetworkFactory` lets those constructors draw from its generator, so this is seeded too.
    """

    def apply(self, model: nn.Module, generator: torch.Generator) -> None:
        """Change nothing."""


@checked("model.init")
@dataclass(frozen=True, kw_only=True)
class UniformInit:
    """Draw every weight and bias from U(-bound, bound).

    Args:
        bound: half-width of the interval, positive.

    Zhu et al. 2019 (DLG), released code, with bound 0.5; the medical papers use it too.
    """

    bound: Annotated[float, Range(0, 1e18, "(]")] = 0.5

    @torch.no_grad()
    def apply(self, model: nn.Module, generator: torch.Generator) -> None:
        """Draw module by module, weight before bias: the order of ``model.apply``."""
        for parameter in model.parameters():
            parameter.uniform_(-self.bound, self.bound, generator=generator)
