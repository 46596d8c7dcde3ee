"""Start a search where the closed forms end: usually at the image itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from medpfl.attacks.closed_form.feature_matching import match_features
from medpfl.attacks.closed_form.features import layer_input, misfit
from medpfl.attacks.closed_form.layerwise import (
    Convolution,
    ConvolutionInverse,
    convolved,
    stands_alone,
)
from medpfl.attacks.closed_form.together import Layer, LowerEquations, match_lower
from medpfl.attacks.closed_form.trunk import Trunk, TrunkEquations, image_unknowns, match_trunk
from medpfl.attacks.starts import Solution, Start
from medpfl.models.sigmoid_cnn import SigmoidCNN
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import DataSpec, Observation, ServerPayload

# Unknowns of a layer up to which its normal matrix is factorised (6144^2 float64 are 288 MiB): what
# the second layer of dlg_cnn has on volumes of 16 voxels a side, and its third on those of 32.
_LARGEST_DENSE = 6144


@checked("attack.start")
class ClosedForm:
    """Compute the start from the update, where one image is behind it and the network allows.

    The last layer's gradient gives its exact input, the features. Where there are more features
    than pixels the image is found by matching them; otherwise the papers' networks are inverted
    layer by layer. Of every other network the layers below the first fully connected one are
    matched, features and gradients (`Trunk`). Updates that fit none of these (added noise,
    BatchNorm in train mode, networks too large) start with the fallback.

    Args:
        fallback: the start where no closed form holds.
        several: the start where several images are behind the update; the fallback where None.
        largest_residual: relative residual of the equations above which their solution is
            not trusted.
    """

    def __init__(
        self,
        *,
        fallback: Start,
        several: Start | None = None,
        largest_residual: Annotated[float, Range(0, 1e6)] = 1e-3,
    ) -> None:
        self._fallback = fallback
        self._several = fallback if several is None else several
        self._largest_residual = largest_residual
        self._prepared: tuple[ServerPayload, dict[int, ConvolutionInverse]] | None = None
        self._trunk: tuple[ServerPayload, Trunk | None] | None = None

    def __call__(
        self, observation: Observation, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """Return the closed-form image `(1, C, *S)`, or what another start gives, `(N, C, *S)`."""
        solution = self.solve(observation)
        if solution is None:
            return self.draw(observation, shape, generator)
        return solution.image.unsqueeze(0)

    def draw(
        self, observation: Observation, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """Return what another start gives, `(N, C, *S)`."""
        start = self._several if shape[0] > 1 else self._fallback
        return start(observation, shape, generator)

    def solve(self, observation: Observation) -> Solution | None:
        """See `Solving.solve`."""
        if observation.num_examples != 1 or observation.kind != "gradient":
            return None
        if set(observation.tensors) != set(observation.payload.parameters):
            return None
        try:
            found = self._found(observation)
        except RuntimeError:
            # Of linear algebra, where nothing depends on the image (a network of zeros), or of a
            # network of one's own that does not run in float64: the search can do without.
            return None
        if found is None:
            return None
        solution, residual = found
        if residual > self._largest_residual or not bool(solution.image.isfinite().all()):
            return None
        return replace(solution, image=solution.image.expand(observation.spec.shape))

    def _found(self, observation: Observation) -> tuple[Solution, float] | None:
        """Return an image and the relative residual of its equations."""
        model, shape = observation.payload.model, observation.spec.shape
        if isinstance(model, SigmoidCNN):
            rows, bias = observation.tensors["fc.weight"], observation.tensors["fc.bias"]
            features = layer_input(rows, bias)
            # Told in no time, where the layers below would take seconds: most defenses end here.
            if features is None or misfit(rows, bias, features) > self._largest_residual:
                return None
            if len(features) >= torch.Size(shape).numel():
                return self._by_features(observation, features)
            return self._layer_by_layer(observation, features)
        return self._by_trunk(observation)

    def _by_trunk(self, observation: Observation) -> tuple[Solution, float] | None:
        payload, spec = observation.payload, observation.spec
        if self._trunk is None or self._trunk[0] is not payload:
            self._trunk = (payload, Trunk.of(payload, spec.shape))
        trunk = self._trunk[1]
        if trunk is None or not trunk.suits(image_unknowns(spec).count):
            return None
        equations = TrunkEquations.of(observation, trunk)
        if equations is None:
            return None
        image, residual, determined = match_trunk(equations)
        return Solution(image, determined), residual

    def _by_features(self, observation: Observation, features: Tensor) -> tuple[Solution, float]:
        extract, spec = _extractor(observation.payload), observation.spec
        unknown = (1, *spec.shape[1:]) if _is_tied(spec) else spec.shape

        def extract_expanded(image: Tensor) -> Tensor:
            return extract(image.expand(1, *spec.shape))

        image, residual = match_features(extract_expanded, features, unknown)
        return Solution(image, math.nan), residual

    def _layer_by_layer(
        self, observation: Observation, features: Tensor
    ) -> tuple[Solution, float] | None:
        model, tensors = observation.payload.model, observation.tensors
        fc = observation.payload.parameters["fc.weight"].double()
        shapes = _shapes(model, observation.spec.shape)
        output = features.reshape(shapes[-1])
        above = (fc.T @ tensors["fc.bias"].double()).reshape(output.shape)
        worst = 0.0
        for place, (name, layer) in reversed([*enumerate(_convolutions(model))]):
            if not stands_alone(layer, shapes[place], shapes[place + 1], most=_LARGEST_DENSE):
                lower = _lower_layers(observation, place + 1)
                tied = _is_tied(observation.spec)
                equations = LowerEquations.of(lower, output, above, observation.spec, tied=tied)
                if not equations.suit:
                    return None
                image, residual = match_lower(equations)
                share = equations.most_determined
                return Solution(image, share, final=share < 1), max(worst, residual)
            inverse = self._inverse(observation, place)
            below = inverse.gradient_below(output, above)
            sent = tensors[f"{name}.weight"]
            if inverse.shape[0] < sent.shape[1]:  # of equal channels: their equations are equal
                sent = sent.mean(1, keepdim=True)
            output, residual = inverse.solve(output, above, sent)
            above, worst = below, max(worst, residual)
            if worst > self._largest_residual:  # the layers below are larger, and would cost most
                break
        return Solution(output, math.nan), worst

    def _inverse(self, observation: Observation, place: int) -> ConvolutionInverse:
        """Return the network's part of a convolution's equations, computed once a payload."""
        payload = observation.payload
        if self._prepared is None or self._prepared[0] is not payload:
            self._prepared = (payload, {})
        known = self._prepared[1]
        if place not in known:
            name, layer = _convolutions(payload.model)[place]
            shape = _shapes(payload.model, observation.spec.shape)[place]
            weight = payload.parameters[f"{name}.weight"]
            if place == 0 and _is_tied(observation.spec):
                shape, weight = torch.Size((1, *shape[1:])), weight.sum(1, keepdim=True)
            bias = payload.parameters[f"{name}.bias"]
            known[place] = ConvolutionInverse.prepare(layer, weight, bias, shape)
        return known[place]


def _lower_layers(observation: Observation, count: int) -> list[Layer]:
    """Return the lowest convolutions of a network, with what was sent of them."""
    parameters, sent = observation.payload.parameters, observation.tensors
    return [
        Layer(
            layer,
            *(
                source[f"{name}.{part}"].double()
                for source, part in itertools.product((parameters, sent), ("weight", "bias"))
            ),
        )
        for name, layer in _convolutions(observation.payload.model)[:count]
    ]


def _is_tied(spec: DataSpec) -> bool:
    """Say whether all channels of an image are equal in the client's input space, too."""
    return spec.greyscale and len(set(spec.mean)) == len(set(spec.std)) == 1


def _convolutions(model: nn.Module) -> list[tuple[str, Convolution]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, Convolution)]


def _shapes(model: nn.Module, shape: tuple[int, ...]) -> list[torch.Size]:
    """Return `(C, *S)` before every convolution, in running order, and after the last."""
    inputs = torch.zeros(1, *shape)
    shapes = [inputs.shape[1:]]
    for _, layer in _convolutions(model):
        weight = torch.zeros_like(layer.weight, device="cpu")
        inputs = convolved(layer, inputs, weight)
        shapes.append(inputs.shape[1:])
    return shapes


def _extractor(payload: ServerPayload) -> Callable[[Tensor], Tensor]:
    parameters = {name: p.double() for name, p in payload.parameters.items()}
    layers = [
        (layer, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
        for name, layer in _convolutions(payload.model)
    ]

    def features(inputs_norm: Tensor) -> Tensor:
        for layer, weight, bias in layers:
            inputs_norm = convolved(layer, inputs_norm, weight, bias).sigmoid()
        return inputs_norm.flatten(1)

    return features
