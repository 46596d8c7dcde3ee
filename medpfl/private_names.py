"""Keeps names out of Hydra's own records, which are written before any part of a run is built."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from medpfl.errors import ConfigurationError
from medpfl.report.console import error

_RULES = {"stride", "random", "choice"}
_BETWEEN = re.compile(r"[\[\](),'\"\s]+")


class PrivateNames(Callback):
    """Refuse images that are listed by name where ``dataset.ids=hashed``."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the setting of a single run."""
        if OmegaConf.select(config, "dataset.ids") == "hashed":
            _check(OmegaConf.select(config, "dataset.select"))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the settings of all jobs of a sweep."""
        overrides = list(config.hydra.overrides.task)
        told = [*_values(overrides, "dataset.ids"), str(OmegaConf.select(config, "dataset.ids"))]
        if not any("hashed" in value for value in told):
            return
        _check(OmegaConf.select(config, "dataset.select"))
        for value in _values(overrides, "dataset.select"):
            _check([entry for entry in _BETWEEN.split(value) if entry and entry not in _RULES])


def _values(overrides: list[str], key: str) -> Iterator[str]:
    for override in overrides:
        name, _, value = override.partition("=")
        if name.lstrip("+") == key:
            yield value


def _check(select: object) -> None:
    # Here, because it brings torch along, and Hydra imports callbacks before every other word.
    from medpfl.data.ids import check_listed

    try:
        check_listed(select)
    except ConfigurationError as mistake:
        error(str(mistake))
        sys.exit(2)  # Hydra makes a mere warning of a callback's exception
