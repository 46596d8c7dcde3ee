"""The one place where configurations become objects."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from medpfl._settings import check_settings
from medpfl.errors import ConfigurationError, MedpflError


def instantiate(config: DictConfig) -> Any:
    """Build the object that a config group describes.

    Raises:
        MedpflError: as the object's own constructor raised it.
        ConfigurationError: a setting that the object does not take, one that it needs, or one
            of the wrong type.
    """
    check_settings(config)
    # Hydra 1.4 asks for a list of what may be built; 1.3 does not know of it.
    whitelist = getattr(hydra.utils, "execution_whitelist", None)
    with whitelist(["medpfl.*", "torch.optim.*"]) if whitelist else nullcontext():
        try:
            return hydra.utils.instantiate(config, _convert_="all")
        except InstantiationException as error:
            cause = error.__cause__
            while cause is not None and not isinstance(cause, MedpflError):
                cause = cause.__cause__
            if cause is not None:
                raise cause from error
            raise ConfigurationError(str(error).replace("\n", " ")) from error
