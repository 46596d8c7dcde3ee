"""Several defenses, one after another, in a stated order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import TypeGuard

import torch
from torch import nn

from medpfl.defenses.base import (
    Checked,
    Defense,
    DefenseReport,
    Expecting,
    Inspected,
    InspectingDefense,
    Part,
    Public,
    Reporting,
    State,
    StatefulDefense,
    StepDefense,
    TrainingDefense,
)
from medpfl.defenses.dp_sgd import DpSgd
from medpfl.defenses.none import NoDefense
from medpfl.defenses.norms import entries_of, norm_of
from medpfl.defenses.privacy import Claim, claim_of
from medpfl.defenses.secure_aggregation import SecureAggregation
from medpfl.defenses.wire import Coding
from medpfl.errors import ConfigurationError
from medpfl.settings.build import require_kind
from medpfl.settings.slots import lacking
from medpfl.training import Gradient, mean_gradient
from medpfl.types import ClientUpdate, DataSpec, DefenseFacts, ServerPayload

ClientState = Mapping[str, State]
"""What the parts of a composition keep on one client, by the parts' names."""


@dataclass(frozen=True)
class Defended:
    """What leaves a client, and what stays.

    Args:
        update: what leaves.
        state: what the client keeps for the next round that it takes part in.
        noise_scale: see `DefenseReport`.
        snr_db: see `DefenseReport`.
        facts: by `medpfl.image_score.DEFENSE_COLUMNS`, those that are defined.
    """

    update: ClientUpdate
    state: ClientState
    noise_scale: float | None = None
    snr_db: float | None = None
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Defenses:
    """What clients do against reconstruction: parts, called in their order.

    What looks at the model comes first, as it does before training, then parts that act inside
    training; secure aggregation, which adds up what all clients send, comes last.

    Args:
        parts: `{name: part}` in their order, at least one.

    Raises:
        ConfigurationError: a part has no hook, or they do not go together in this order.
    """

    parts: Mapping[str, Part]

    def __post_init__(self) -> None:
        for name, part in self.parts.items():
            acts = has_gradient(part) or _is_plain(part) or _is_stateful(part) or inspects(part)
            if not (acts or isinstance(part, SecureAggregation)):
                # What stands alone is called by its group, as are parts of one's own.
                require_kind("defense" if self.is_single else f"defense.{name}", part, Defense)
        self._check_order()

    @property
    def is_single(self) -> bool:
        """Whether there is one part."""
        return len(self.parts) == 1

    @property
    def is_none(self) -> bool:
        """Whether updates leave as they are."""
        return all(isinstance(part, NoDefense) for part in self.parts.values())

    @property
    def aggregation(self) -> SecureAggregation | None:
        """What adds up the clients' updates, so that the server sees their sum alone."""
        found = (p for p in self.parts.values() if isinstance(p, SecureAggregation))
        return next(found, None)

    @property
    def name(self) -> str:
        """The parts' names, in their order."""
        return ", ".join(part.name for part in self.parts.values())

    @property
    def noise(self) -> str | None:
        """The noise that is added in words, or None where none is."""
        told = [
            part.noise_in_words() if isinstance(part, DpSgd) else part.describe()
            for part in self.parts.values()
            if isinstance(part, DpSgd) or hasattr(part, "noise")
        ]
        return ", ".join(text for text in told if text is not None) or None

    def describe(self) -> tuple[str, ...]:
        """Return the parts in words, a line each in their order; of noise see `noise`."""
        lines = []
        for part in self.parts.values():
            told = None if hasattr(part, "noise") else part.describe()
            lines.append(part.name if told is None else f"{part.name}: {told}")
        return tuple(lines)

    def claim(self, tensors: Callable[[], int]) -> Claim | str:
        """Return the theorem that holds for the parts in this order, or why none does.

        Args:
            tensors: tells how many there are in an update.
        """
        return claim_of(tuple(self.parts.values()), tensors)

    @property
    def dp_sgd(self) -> DpSgd | None:
        """The part that clips every image's gradient, where there is one."""
        return next((part for part in self.parts.values() if isinstance(part, DpSgd)), None)

    def with_noise(self, multiplier: float) -> Defenses:
        """Return the same, with the noise that `DpSgd.target_epsilon` was found to take."""
        return Defenses(
            {
                name: replace(part, noise_multiplier=multiplier, target_epsilon=None)
                if isinstance(part, DpSgd)
                else part
                for name, part in self.parts.items()
            }
        )

    def facts(self) -> tuple[DefenseFacts, ...]:
        """Return what an attacker may know of each part; nothing where there is no defense."""
        if self.is_none:
            return ()
        return tuple(
            part.facts() if isinstance(part, Public) else DefenseFacts(name=part.name)
            for part in self.parts.values()
        )

    def check(self, model: nn.Module, spec: DataSpec) -> None:
        """Raise a `ConfigurationError` where a part cannot defend such a network."""
        for part in self.parts.values():
            if isinstance(part, Checked):
                part.check(model, spec)

    def inspect(self, payload: ServerPayload, spec: DataSpec) -> Inspected | None:
        """Return what the parts that look at the model make of it; None where none does."""
        seen = [p.inspect(payload, spec) for p in self.parts.values() if inspects(p)]
        return reduce(Inspected.joined, seen) if seen else None

    def gradient(
        self,
        payload: ServerPayload,
        generator: torch.Generator,
        expected: float | None = None,
    ) -> Gradient:
        """Return what each step of a client's training follows; see `TrainingDefense.gradient`.

        Args:
            payload: the network that the client trains.
            generator: where every random number comes from.
            expected: images a step, in the mean where they are drawn; None for as many as it has.
        """
        gradient: Gradient = mean_gradient
        for part in self.parts.values():
            if has_gradient(part):
                acting: StepDefense = part
                if expected is not None and isinstance(part, Expecting):
                    acting = part.expecting(expected)
                gradient = acting.gradient(gradient, payload, generator)
        return gradient

    def on_update(
        self,
        update: ClientUpdate,
        state: ClientState,
        generator: torch.Generator,
        gradient: Gradient = mean_gradient,
    ) -> Defended:
        """Put an update through all parts.

        Args:
            update: after local training; not changed.
            state: what this client kept before; not changed.
            generator: where every random number of the defense comes from.
            gradient: what its steps followed.
        """
        kept, reports = dict(state), list[DefenseReport]()
        if isinstance(gradient, Reporting):
            reports.append(gradient.report(update))
        total = entries_of(update.tensors)
        for name, hook in self._hooks.items():
            update, kept[name], report = hook(update, state.get(name, {}), generator)
            reports.append(report)
        kept = {name: own for name, own in kept.items() if own}
        if self.is_none:
            return Defended(update, kept)
        return Defended(
            update,
            kept,
            noise_scale=_last(reports, "noise_scale"),
            snr_db=_last(reports, "snr_db"),
            facts=_facts(update, reports, total),
        )

    @cached_property
    def _hooks(self) -> dict[str, _Hook]:
        """Every part that acts on an update, called as one that remembers."""
        hooks: dict[str, _Hook] = {}
        for name, part in self.parts.items():
            if _is_stateful(part):
                hooks[name] = part.on_update
            elif _is_plain(part):
                hooks[name] = _remembering_nothing(part)
        return hooks

    def _check_order(self) -> None:
        listed = ",".join(self.parts)
        if not self.is_single:
            for name, part in self.parts.items():
                if isinstance(part, NoDefense):
                    raise ConfigurationError(
                        f"defense=[{listed}]: {name} goes alone: leave it out, or the others"
                    )
        acted: str | None = None
        noisy: str | None = None
        *first, last = self.parts
        for name in first:
            if isinstance(self.parts[name], SecureAggregation):
                raise ConfigurationError(
                    f"defense=[{listed}]: {name} hides what clients send, and {last} would act on "
                    f"that: list {name} last"
                )
        for name, part in self.parts.items():
            if has_gradient(part) and acted is not None:
                raise ConfigurationError(
                    f"defense=[{listed}]: {name} acts inside training, before {acted} sees the "
                    f"update: list {name} before {acted}"
                )
            if has_gradient(part) and noisy is not None:
                raise ConfigurationError(
                    f"defense=[{listed}]: {name} looks at the images again after {noisy} has added "
                    f"its noise, and no epsilon would hold: list {name} before {noisy}"
                )
            if isinstance(part, DpSgd):
                noisy = name
            if inspects(part) and name != next(iter(self.parts)):
                raise ConfigurationError(
                    f"defense=[{listed}]: {name} looks at the model before any of the others does "
                    f"anything: list {name} first"
                )
            if not has_gradient(part) and not inspects(part):
                acted = acted or name


_Hook = Callable[[ClientUpdate, State, torch.Generator], tuple[ClientUpdate, State, DefenseReport]]


def has_gradient(part: Part) -> TypeGuard[TrainingDefense]:
    """Tell whether a part acts inside training."""
    return not lacking(part, TrainingDefense)


def inspects(part: Part) -> TypeGuard[InspectingDefense]:
    """Tell whether a part looks at the model before training."""
    return not lacking(part, InspectingDefense)


def _is_stateful(part: Part) -> TypeGuard[StatefulDefense]:
    return not lacking(part, StatefulDefense)


def _is_plain(part: Part) -> TypeGuard[Defense]:
    return not lacking(part, Defense)


def _remembering_nothing(part: Defense) -> _Hook:
    def hook(
        update: ClientUpdate, state: State, generator: torch.Generator
    ) -> tuple[ClientUpdate, State, DefenseReport]:
        defended, report = part.on_update(update, generator)
        return defended, {}, report

    return hook


def _last(reports: list[DefenseReport], name: str) -> float | None:
    told = [getattr(report, name) for report in reports]
    return next((value for value in reversed(told) if value is not None), None)


def _facts(update: ClientUpdate, reports: list[DefenseReport], total: int) -> dict[str, float]:
    coding = Coding.dense(total)
    for report in reports:
        coding = coding.then(report.coding)
    sent = total if coding.entries is None else coding.entries
    found = {
        "sent_norm": norm_of(update.tensors),
        "share_sent": sent / max(1, total),
        "bytes_sent": coding.bytes_of(total),
        "clip_factor": _last(reports, "clip_factor"),
        "residual_norm": _last(reports, "residual_norm"),
    }
    return {name: value for name, value in found.items() if value is not None}
