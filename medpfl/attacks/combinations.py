"""Which settings of gradient matching go together."""

from __future__ import annotations

from collections.abc import Sequence

from medpfl.attacks.stages import Stage
from medpfl.errors import ConfigurationError
from medpfl.optim import Adam


def choose(key: str, value: object, choices: Sequence[object]) -> None:
    """Raise a `ConfigurationError` where a setting is none of its choices."""
    if value not in choices:
        *first, last = (str(c).lower() if isinstance(c, bool) else str(c) for c in choices)
        raise ConfigurationError(f"attack.{key}={value}: choose {', '.join(first)} or {last}")


def check_projections(stages: Sequence[Stage], *, channels: str, pixels: str) -> None:
    """Raise a `ConfigurationError` where images cannot be projected after a step."""
    for stage in stages:
        if not isinstance(stage.optimizer, Adam):
            raise ConfigurationError(
                f"attack.projections: {type(stage.optimizer).__name__} cannot go on from a "
                "point that was moved. Use medpfl.optim.Adam, or attack.projections=null"
            )
    for key, choice in (("channels", channels), ("pixels", pixels)):
        if choice != "free":
            raise ConfigurationError(
                f"attack.{key}={choice}: projections are made for free {key}. "
                f"Use attack.{key}=free, or attack.projections=null"
            )


def check_group(weight: float | None, restarts: int, restart_above: float | None) -> None:
    """Raise a `ConfigurationError` where restarts cannot pull on each other."""
    if weight is None:
        return
    setting = f"attack.group_consistency={weight}"
    if restarts < 2:
        raise ConfigurationError(
            f"{setting}: one restart has no others to agree with. Use attack.restarts=2 or more"
        )
    if restart_above is not None:
        raise ConfigurationError(
            f"{setting}: restarts that pull on each other run side by side, not one after another. "
            "Use attack.restart_above=null"
        )


def check_arrangements(
    arranged: bool, *, grouped: bool, separate: bool, joint: bool, surrogate: bool
) -> None:
    """Raise a `ConfigurationError` where what is unknown of the order is dealt with twice."""
    if surrogate and separate:
        raise ConfigurationError(
            "attack.epochs: a surrogate's one gradient has no epochs. Use attack.epochs=null, or "
            "attack.surrogate=null"
        )
    if separate and joint:
        raise ConfigurationError(
            "attack.epochs: an image has one label in all epochs, and these labels are searched "
            "for. Use medpfl.attacks.labels.Counted, or attack.epochs=null"
        )
    if arranged and separate:
        raise ConfigurationError(
            "attack.arrangements: images of their own for every epoch leave their order open. Use "
            "attack.arrangements=null, or attack.epochs=null"
        )
    if arranged and grouped:
        raise ConfigurationError(
            "attack.arrangements: restarts that pull on each other must agree on which image is "
            "behind which step. Use attack.arrangements=null, or attack.group_consistency=null"
        )
