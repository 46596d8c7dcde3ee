"""The defenses that a configuration names, built and held against each other."""

from __future__ import annotations

import inspect
from typing import cast

from omegaconf import DictConfig, OmegaConf

from medpfl._parts import defense_parts
from medpfl.defenses.base import Part
from medpfl.defenses.composition import Defenses
from medpfl.errors import ConfigurationError
from medpfl.settings.build import instantiate
from medpfl.settings.check import target_of
from medpfl.settings.hints import wrong_value

_WANTED = "an option by name, or a list of them in their order: defense=[clipping,perturbation]"


def defenses_at(config: DictConfig) -> Defenses:
    """Build the parts of ``defense``, in their order.

    Raises:
        MedpflError: a part cannot be built, they do not go together, or nothing adds the noise
            that is chosen.
    """
    if "defense" not in config:
        raise ConfigurationError("defense: must be set")
    group = config.defense
    if not isinstance(group, DictConfig) or not len(group):
        raise wrong_value("defense", group, _WANTED)
    _refuse_mixture(group)
    parts = {name: _built(name, part) for name, part in defense_parts(group).items()}
    _refuse_idle_noise(config, tuple(parts))
    return Defenses(parts)


def _built(name: str, group: object) -> Part:
    if not isinstance(group, DictConfig) or "_target_" not in group:
        raise wrong_value(f"defense.{name}", group, "a group with a _target_")
    return cast(Part, instantiate(group))


def _refuse_mixture(group: DictConfig) -> None:
    """Refuse parts with a name beside one without, whose settings they would be taken for."""
    if "_target_" not in group:
        return
    target = target_of(group)
    try:
        taken = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some builtins have none
        return
    for name in map(str, group):
        part = group._get_node(name)
        if name not in taken and isinstance(part, DictConfig) and "_target_" in part:
            raise ConfigurationError(
                f"defense: {name} stands beside {target.__name__}, whose configuration gives it no "
                "name in the list: its first line must be '# @package defense.NAME'"
            )


def _refuse_idle_noise(config: DictConfig, names: tuple[str, ...]) -> None:
    """Refuse noise that no part adds: it would be a silent mistake."""
    group = config.get("noise")
    if not isinstance(group, DictConfig) or str(group.get("_target_")).endswith(".NoNoise"):
        return
    noise = OmegaConf.to_container(group, resolve=True)
    if noise not in _values(OmegaConf.to_container(config.defense, resolve=True)):
        raise ConfigurationError(
            f"noise is chosen, and defense={_listed(names)} adds none: choose noise=none, or list "
            f"what adds it: defense={_listed((*names, 'perturbation'))}"
        )


def _values(value: object) -> list[object]:
    """Return what a configuration holds, at any depth."""
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(inner, list):
        return [value]
    return [value, *(found for item in inner for found in _values(item))]


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"[{','.join(names)}]"
