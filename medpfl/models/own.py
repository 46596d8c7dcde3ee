"""Networks of one's own: a plain ``torch.nn.Module``, named by ``model._target_``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, open_dict
from torch import nn

from medpfl.errors import ConfigurationError
from medpfl.models.base import NetworkFactory
from medpfl.models.init import DefaultInit, Init
from medpfl.settings.build import instantiate
from medpfl.settings.check import check_settings, target_of
from medpfl.settings.hints import check_value, checked, hints_of
from medpfl.types import DataSpec


@checked("model")
@dataclass(frozen=True, kw_only=True)
class OwnNetwork(NetworkFactory):
    """Build a module whose class knows nothing of medpfl.

    Args:
        group: the ``model`` group: the class and the settings of its constructor.
        init: law of the initial parameters; by default what the class itself draws.
        weights: as `NetworkFactory`.
    """

    group: DictConfig
    init: Init = field(default_factory=DefaultInit)

    def construct(self, spec: DataSpec) -> nn.Module:
        """Return the module; what YAML does not say of the data's kind is filled in."""
        model = instantiate(self.group, **_filled_in(self.group, spec))
        if not isinstance(model, nn.Module):  # its __new__ may return anything
            raise ConfigurationError(f"model: {type(self).__name__} did not make a torch.nn.Module")
        return model


def factory_of(group: DictConfig) -> Any:
    """Return what the ``model`` group describes, as a factory where it is a plain module.

    Its ``init`` and ``weights`` are the factory's, unless the class has settings of that name.

    Raises:
        ConfigurationError: a setting that the class does not take, or one of the wrong type.
    """
    target = target_of(group)
    if not (inspect.isclass(target) and issubclass(target, nn.Module)) or hasattr(target, "build"):
        return instantiate(group)
    settings, taken = copy.deepcopy(group), _parameters(target)
    ours: dict[str, Any] = {}
    hints = hints_of(OwnNetwork)
    with open_dict(settings):
        for name in ("init", "weights"):
            if name in settings and name not in taken:
                check_value(group._get_full_key(name), group[name], hints[name])
                ours[name] = instantiate(group.init) if name == "init" else group[name]
                del settings[name]
    check_settings(settings, filled_in=_filled_in(settings, _ANY))
    # The plan calls a network by its factory's class.
    kind = type(target.__name__, (OwnNetwork,), {"__module__": target.__module__})
    return kind(group=settings, **ours)


_ANY = DataSpec(shape=(1,), num_classes=2, mean=(0.0,), std=(1.0,))


def _filled_in(group: DictConfig, spec: DataSpec) -> dict[str, int]:
    known = {"num_classes": spec.num_classes, "in_channels": spec.shape[0]}
    taken = _parameters(target_of(group))
    return {name: n for name, n in known.items() if name in taken and name not in group}


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(target).parameters
