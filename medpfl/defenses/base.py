"""What a defense is: the hooks that a part may have, and what it says of itself.

A part has a name, words for people, and one hook or more; `medpfl.defenses.composition` calls them
in order. Each hook is a protocol, so that a part has those that it needs and no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from medpfl.defenses.wire import Coding
from medpfl.training import Gradient
from medpfl.types import ClientUpdate, DataSpec, DefenseFacts, ServerPayload

State = Mapping[str, Tensor]
"""What a part keeps on a client from round to round; nothing before the first."""


@dataclass(frozen=True, kw_only=True)
class DefenseReport:
    """Facts about one defended update, for the record and never for the attacker.

    None stands for what a part has nothing to do with.

    Args:
        noise_scale: the scale of the noise in the update's own unit (Laplace b, Gaussian std).
        snr_db: 10 log10 of the update's energy over the energy of the noise that was added; of
            DP-SGD, of the clipped update's. It is no privacy guarantee.
        clip_factor: norm after clipping over norm before, in [0, 1].
        residual_norm: Euclidean norm of what the client keeps back for later rounds.
        coding: how entries are put into bytes from here on.
    """

    noise_scale: float | None = None
    snr_db: float | None = None
    clip_factor: float | None = None
    residual_norm: float | None = None
    coding: Coding | None = None


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """What a client makes of a model that it was sent.

    Args:
        alarms: how many things were found that honest models do not have.
        refused: whether it sends nothing.
    """

    alarms: int = 0
    refused: bool = False

    def joined(self, other: Inspected) -> Inspected:
        """Return what two parts make of it."""
        return Inspected(alarms=self.alarms + other.alarms, refused=self.refused or other.refused)


class Part(Protocol):
    """Changes what leaves the client."""

    @property
    def name(self) -> str:
        """The defense's name, as in the configuration."""
        ...

    def describe(self) -> str | None:
        """Return what the defense does in words, or None where its name says it."""
        ...


class Defense(Part, Protocol):
    """Changes what leaves the client."""

    def on_update(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, DefenseReport]:
        """Return the defended update and what was done to it.

        Args:
            update: after local training; not changed.
            generator: where every random number of the defense comes from.

        Returns:
            An update of the same names, shapes and dtypes, and the report.
        """
        ...


class StatefulDefense(Part, Protocol):
    """Changes what leaves the client, and remembers from round to round."""

    def on_update(
        self, update: ClientUpdate, state: State, generator: torch.Generator
    ) -> tuple[ClientUpdate, State, DefenseReport]:
        """Return the defended update, what the client keeps, and what was done.

        Args:
            update: after local training; not changed.
            state: what this client kept in the last round that it took part in; not changed.
            generator: where every random number of the defense comes from.

        Returns:
            An update of the same names, shapes and dtypes, the new state, and the report.
        """
        ...


class InspectingDefense(Part, Protocol):
    """Looks at what the server sent before the client trains it."""

    def inspect(self, payload: ServerPayload, spec: DataSpec) -> Inspected:
        """Return what was found in a model, and whether the client sends nothing.

        Args:
            payload: as received; not changed.
            spec: the kind of the client's data.
        """
        ...


class TrainingDefense(Part, Protocol):
    """Changes the gradient that a client's steps follow, where the network and images are seen."""

    def gradient(
        self, inner: Gradient, payload: ServerPayload, generator: torch.Generator
    ) -> Gradient:
        """Return what each step follows instead of `inner`.

        Args:
            inner: the gradient as the parts before this one have it.
            payload: the network that the client trains.
            generator: where every random number of the defense comes from.
        """
        ...


@runtime_checkable
class Expecting(Protocol):
    """A part inside training that has to know how many images a step takes."""

    def expecting(self, images: float) -> StepDefense:
        """Return the same for steps of so many images, in the mean where they are drawn."""
        ...


class StepDefense(Protocol):
    """A `TrainingDefense` that was told of its steps."""

    def gradient(
        self, inner: Gradient, payload: ServerPayload, generator: torch.Generator
    ) -> Gradient:
        """See `TrainingDefense.gradient`."""
        ...


@runtime_checkable
class Reporting(Protocol):
    """A gradient that adds noise in its steps, and can tell of it when they are over."""

    def report(self, update: ClientUpdate) -> DefenseReport:
        """Return the noise in an update whose every step followed this gradient.

        Nothing where it does not simply add up: under momentum and Adam.

        Args:
            update: of those steps, before anything else is done to it.
        """
        ...


@runtime_checkable
class Public(Protocol):
    """A part whose parameters an attacker can be told."""

    def facts(self) -> DefenseFacts:
        """Return the part's public parameters; nothing that it drew, and nothing of an update."""
        ...


@runtime_checkable
class Checked(Protocol):
    """A part that not every network can have."""

    def check(self, model: nn.Module, spec: DataSpec) -> None:
        """Raise a `ConfigurationError` where the network is none that the part can defend.

        Args:
            model: on the CPU, in the mode in which clients run it; not changed.
            spec: the kind of data.
        """
        ...
