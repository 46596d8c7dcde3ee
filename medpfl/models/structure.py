"""Questions about a network's layers."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor, nn

from medpfl.errors import ConfigurationError


def last_linear(model: nn.Module) -> tuple[str, str | None]:
    """Find the last fully connected layer, in the order in which modules were registered.

    Returns:
        The names of its weight and of its bias (None where it has none), as in
        ``model.named_parameters()``.

    Raises:
        ConfigurationError: the network has no fully connected layer.
    """
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise ConfigurationError(
            f"{type(model).__name__} has no fully connected layer, from whose gradient labels are "
            "inferred: choose a model that ends in one, or an attack that is given the labels"
        )
    name, layer = layers[-1]
    prefix = f"{name}." if name else ""
    return f"{prefix}weight", None if layer.bias is None else f"{prefix}bias"


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def architecture(model: nn.Module) -> Hashable:
    """Return what makes a network another one: its modules and their settings, not its numbers.

    Networks of equal value compute the same from the same parameters and buffers. A setting that
    cannot be compared is taken to be another in every network.
    """
    return tuple((name, type(module), _settings(module)) for name, module in model.named_modules())


def _settings(module: nn.Module) -> Hashable:
    own = {n: v for n, v in vars(module).items() if n not in _OF_EVERY_MODULE}
    return _comparable(own)


def _comparable(value: object) -> Hashable:
    if isinstance(value, dict):
        return tuple((name, _comparable(v)) for name, v in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_comparable, value))
    if isinstance(value, Tensor) or not isinstance(value, Hashable):
        return id(value)
    return value
