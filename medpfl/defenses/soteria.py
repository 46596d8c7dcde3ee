"""Soteria: a fully connected layer's gradient, less the features that tell most of the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from medpfl.defenses.selection import share_of
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.training import Forward, Gradient, Parameters
from medpfl.types import DataSpec, DefenseFacts, ServerPayload

_AT_ONCE = 64  # derivatives side by side

Features = Callable[[Tensor], Tensor]
"""From images `(N, C, *S)` to the inputs `(N, F)` of the defended layer."""


@dataclass(frozen=True, kw_only=True)
class SoteriaFacts(DefenseFacts):
    """What an attacker may know of `Soteria`; `defended_layer` names the layer."""

    fraction: float
    layer: str | None


@checked("defense.soteria")
@dataclass(frozen=True, kw_only=True)
class Soteria:
    """Hide the features of a layer that tell most of the images behind them (Sun et al. 2021).

    Of the layer's inputs r, those with the smallest ||dr / dx|| / r are taken as zero where the
    layer's weights are differentiated (Sun et al. 2021, Section 4; of a batch, the ratios of its
    images are added up, as in the authors' code). Their columns of the gradient are zero; the
    forward pass, the bias and all other layers are as they were. A feature that is zero in an image
    shows nothing of it, and its ratio there is left out. Ratios are taken anew in every step.

    Args:
        fraction: share of the features that is hidden, in (0, 1); at least one is.
        layer: name of the fully connected layer; None takes the first.
    """

    name: ClassVar[str] = "soteria"

    fraction: Annotated[float, Range(0, 1, "()"), "to hide nothing, choose defense=none"]
    layer: str | None = None

    def describe(self) -> str | None:
        """See `Part.describe`."""
        of = "the first fully connected layer" if self.layer is None else self.layer
        return f"{100 * self.fraction:g} % of the features before {of} hidden from its gradient"

    def facts(self) -> SoteriaFacts:
        """See `Public.facts`."""
        return SoteriaFacts(name=self.name, fraction=self.fraction, layer=self.layer)

    def check(self, model: nn.Module, spec: DataSpec) -> None:
        """See `Checked.check`."""
        layer = defended_layer(model, self.layer)
        own = dict(model.named_parameters())
        with torch.no_grad():
            found = _features(model, layer, {**own, **dict(model.named_buffers())})(
                torch.zeros(1, *spec.shape)
            )
        if found.ndim != 2:
            raise ConfigurationError(
                f"defense.soteria.layer: {layer} of {type(model).__name__} takes "
                f"{found.ndim - 1} axes an image, not one vector of features: name another layer"
            )

    def gradient(
        self, inner: Gradient, payload: ServerPayload, generator: torch.Generator
    ) -> Gradient:
        """See `TrainingDefense.gradient`; nothing is drawn."""
        network = payload.network()
        layer = defended_layer(network, self.layer)

        def followed(
            forward: Forward, parameters: Parameters, inputs_norm: Tensor, probabilities: Tensor
        ) -> dict[str, Tensor]:
            gradient = inner(forward, parameters, inputs_norm, probabilities)
            features = _features(network, layer, {**parameters, **payload.buffers})
            hidden = hidden_features(features, inputs_norm, self.fraction)
            weight = f"{layer}.weight"
            return {**gradient, weight: gradient[weight].masked_fill(hidden, 0)}

        return followed


def defended_layer(model: nn.Module, layer: str | None) -> str:
    """Return the name of the layer that Soteria defends.

    Args:
        model: the network.
        layer: as set; None for the first fully connected one, as layers are registered.

    Raises:
        ConfigurationError: there is none, or it is of another kind.
    """
    modules = model.named_modules()
    names = [str(name) for name, module in modules if isinstance(module, nn.Linear)]
    if not names:
        raise ConfigurationError(
            f"defense=soteria: {type(model).__name__} has no fully connected layer to defend: "
            "choose another defense or model"
        )
    if layer is None:
        return names[0]
    if layer not in names:
        raise ConfigurationError(
            f"defense.soteria.layer={layer}: no fully connected layer of {type(model).__name__}; "
            f"choose from {', '.join(names[:8])}"
        )
    return layer


def hidden_features(features: Features, inputs_norm: Tensor, fraction: float) -> Tensor:
    """Return `(F,)` True at the features that are hidden: those of the smallest ratio.

    Args:
        features: of the network as it is.
        inputs_norm: `(N, C, *S)`.
        fraction: how many of them.
    """
    with torch.no_grad():
        values = features(inputs_norm)
    norms, sizes = sensitivity(features, inputs_norm), values.abs()
    alive = sizes > 0
    ratios = torch.where(alive, norms / sizes, 0).sum(0)
    ratios[~alive.any(0)] = torch.inf
    order = ratios.argsort(stable=True)
    hidden = torch.zeros(len(ratios), dtype=torch.bool, device=ratios.device)
    hidden[order[: share_of(len(ratios), fraction)]] = True
    return hidden


def sensitivity(features: Features, inputs_norm: Tensor) -> Tensor:
    """Return `(N, F)` Euclidean norms of dr / dx, image by image.

    Taken feature by feature, or pixel by pixel where these are fewer: the squares are the same
    where images do not act on each other (BatchNorm in train mode makes them).

    Args:
        features: of the network as it is.
        inputs_norm: `(N, C, *S)`.
    """
    with torch.no_grad():
        count = features(inputs_norm).shape[1]
    pixels = inputs_norm[0].numel()
    by_feature = count <= pixels
    squares = (_by_feature if by_feature else _by_pixel)(features, inputs_norm, count)
    return squares.sqrt()


def _by_feature(features: Features, inputs_norm: Tensor, count: int) -> Tensor:
    images = len(inputs_norm)
    back = _transposed(features, inputs_norm)
    every = torch.eye(count, dtype=inputs_norm.dtype, device=inputs_norm.device)

    def squared(one: Tensor) -> Tensor:
        return back(one.expand(images, count)).flatten(1).square().sum(1)

    found = [vmap(squared)(chosen) for chosen in torch.split(every, _AT_ONCE)]
    return torch.cat(found).T


def _by_pixel(features: Features, inputs_norm: Tensor, count: int) -> Tensor:
    images, pixels = len(inputs_norm), inputs_norm[0].numel()
    # The derivative along a direction is the transpose of the transpose: two reverse passes.
    along = _transposed(_transposed(features, inputs_norm), inputs_norm.new_zeros(images, count))
    every = torch.eye(pixels, dtype=inputs_norm.dtype, device=inputs_norm.device)

    def squared(one: Tensor) -> Tensor:
        return along(one.reshape(1, *inputs_norm.shape[1:]).expand_as(inputs_norm)).square()

    total = inputs_norm.new_zeros(images, count)
    for chosen in torch.split(every, _AT_ONCE):
        total = total + vmap(squared)(chosen).sum(0)
    return total


def _transposed(function: Features, at: Tensor) -> Features:
    """Return the transposed derivative of a function, at a point, as a function."""

    def back(cotangent: Tensor) -> Tensor:
        found: Tensor = vjp(function, at)[1](cotangent)[0]
        return found

    return back


def _features(model: nn.Module, layer: str, state: Parameters) -> Features:
    """Return the inputs of a layer as a function of images, with these parameters and buffers."""

    def features(inputs_norm: Tensor) -> Tensor:
        caught: list[Tensor] = []
        hook = model.get_submodule(layer).register_forward_pre_hook(
            lambda _, inputs: caught.append(inputs[0])
        )
        try:
            functional_call(model, dict(state), (inputs_norm,))
        finally:
            hook.remove()
        return caught[0]

    return features
