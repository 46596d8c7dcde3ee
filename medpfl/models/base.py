"""How every network is made: construct, initialise, then load weights where some are given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn

from medpfl.models.init import Init
from medpfl.models.weights import load_state, read_state
from medpfl.types import DataSpec


class ModelFactory(Protocol):
    """Builds an initialised network for a kind of data."""

    def build(self, spec: DataSpec, generator: torch.Generator) -> nn.Module:
        """Return a new float32 network on the CPU, drawn from the generator alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class NetworkFactory(ABC):
    """Build one kind of network; a subclass says which in `construct`.

    Args:
        init: law of the initial parameters.
        weights: a ``.pt``, ``.pth`` or ``.safetensors`` state dict that replaces the initial
            parameters, or None.
    """

    init: Init
    weights: str | None = None

    may_be_large: ClassVar[bool] = False
    """Whether a single small image may take more than a machine's memory."""

    @property
    def label(self) -> str:
        """What plans call the network."""
        return type(self).__name__

    @abstractmethod
    def construct(self, spec: DataSpec) -> nn.Module:
        """Return the network with torch's own initial parameters.

        Raises:
            ConfigurationError: the network cannot take the data's shape or classes.
        """

    def build(self, spec: DataSpec, generator: torch.Generator) -> nn.Module:
        """Return a new network, its numbers drawn from the generator alone.

        Args:
            spec: shape and classes of the data.
            generator: a CPU generator; advanced. The global one is left as it was.

        Returns:
            A float32 network on the CPU, `(N, C, *S)` to `(N, K)` logits.

        Raises:
            ConfigurationError: the network cannot take the data, or the weights do not fit.
            DataError: the weights are missing or unreadable.

        Notes:
            Construction draws first and `init` after it, from one stream, so a generator seeded
            with s gives bit for bit the parameters of the usual script
            ``torch.manual_seed(s); net = Net(); net.apply(init)``, the published one among them.
        """
        with _global_rng_from(generator):
            model = self.construct(spec)
        self.init.apply(model, generator)
        if self.weights is not None:
            self.load(model, self.weights)
        return model

    def load(self, model: nn.Module, weights: str) -> None:
        """Replace the parameters of `model` by those of the file, in place."""
        load_state(model, read_state(weights), source=weights)


@contextmanager
def _global_rng_from(generator: torch.Generator) -> Iterator[None]:
    """Let torch's constructors, which take no generator, draw from this one."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        yield
        generator.set_state(torch.get_rng_state())
