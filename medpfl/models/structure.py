"""Questions about a network's layers."""

from __future__ import annotations

from torch import nn

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
