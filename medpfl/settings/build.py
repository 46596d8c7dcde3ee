"""The one place where configurations become objects."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from medpfl.errors import ConfigurationError, MedpflError
from medpfl.settings.check import check_settings
from medpfl.settings.hints import wrong_value
from medpfl.settings.slots import lacking, slot_words


def instantiate(config: DictConfig, **filled_in: object) -> Any:
    """Build the object that a config group describes.

    Args:
        config: the group.
        **filled_in: what its ``_target_`` is given beside its settings.

    Raises:
        MedpflError: as the object's own constructor raised it.
        ConfigurationError: a setting that the object does not take, one that it needs, or one
            of the wrong type.
    """
    check_settings(config, filled_in=filled_in)
    # Hydra 1.4 asks for a list of what may be built; 1.3 does not know of it.
    whitelist = getattr(hydra.utils, "execution_whitelist", None)
    with whitelist(["medpfl.*", "torch.optim.*"]) if whitelist else nullcontext():
        try:
            return hydra.utils.instantiate(config, _convert_="all", **filled_in)
        except InstantiationException as error:
            cause = error.__cause__
            while cause is not None and not isinstance(cause, MedpflError):
                cause = cause.__cause__
            if cause is not None:
                raise cause from error
            raise ConfigurationError(str(error).replace("\n", " ")) from error


def group_at(config: DictConfig, slot: str) -> DictConfig:
    """Return the group in a top-level slot of a configuration.

    Raises:
        ConfigurationError: it is missing, or no description of an object.
    """
    if slot not in config:
        raise ConfigurationError(f"{slot}: must be set")
    group = config[slot]
    if not isinstance(group, DictConfig) or "_target_" not in group:
        raise wrong_value(slot, group, "a group with a _target_")
    return group


def require_kind(slot: str, part: object, needed: Any) -> None:
    """Refuse an object that lacks what its slot needs of it.

    Args:
        slot: where it stands in the configuration.
        part: what was built.
        needed: a protocol or a class, whose public members are what is needed.

    Raises:
        ConfigurationError: says what is missing.
    """
    if lacking(part, needed):
        raise wrong_value(slot, part, slot_words(part, needed))
