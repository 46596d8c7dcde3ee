"""Find the image behind the layers below a network's first fully connected one, whatever they are.

With one image behind an update, the gradient of the first fully connected layer gives two things
exactly: its input h (`layer_input`), and dL/dh, its bias gradient carried back through its weights.
What is left to explain are the features h and the gradients of the layers below, the *trunk*: few
equations beside those of the whole network, and all that speak of the image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp

from medpfl.attacks.closed_form.features import layer_input
from medpfl.attacks.closed_form.steps import grey, likely_unknowns, outside, solve
from medpfl.attacks.curvature import gauss_newton
from medpfl.attacks.determination import FLOAT32_ROUNDING, determined_share, in_pixels
from medpfl.attacks.unknowns import Unknowns
from medpfl.optim import LevenbergMarquardt
from medpfl.optim.base import Curvature, Product
from medpfl.types import DataSpec, Observation, ServerPayload

# Forming the curvature takes one product an unknown. Above this many unknowns, or entries of all
# products together, it takes longer than a search.
_MOST_UNKNOWNS = 4096
_MOST_ENTRIES = 500_000_000
_PRODUCTS_AT_ONCE = 64
# Above, the matrix takes minutes a step in three dimensions, and products alone take seconds.
_MOST_DENSE = 3_200
_PRODUCTS = 200
# Of a pixel outside [0, 1], against a tensor's relative error.
_RANGE_WEIGHT = 0.01
_STEPS = 60
# Sigmoid networks are below `_WORST` after five steps; the others are stuck (ReLU networks).
_PATIENCE = 12
_FIRST_DAMPING = 1e-5
# A few times what the rounding of a float32 client leaves of the equations.
_SOLVED = 1e-12
# A step that gains less than this is the end: what is left is rounding, or it is stuck.
_SLOWEST = 0.03
# Stuck: no use in asking how much is determined.
_WORST = 1e-4


@dataclass(frozen=True)
class Trunk:
    """The layers that run before a network's first fully connected layer.

    Args:
        model: a float64 copy of the whole network, in the client's mode.
        state: its parameters and buffers, float64.
        below: names of the trunk's parameters.
        head: name of the first fully connected layer.
        entries: numbers that one pass through the trunk computes with, at least 1.
    """

    model: nn.Module
    state: Mapping[str, Tensor]
    below: tuple[str, ...]
    head: str
    entries: int

    @classmethod
    def of(cls, payload: ServerPayload, shape: tuple[int, ...]) -> Trunk | None:
        """Find the trunk of a network that takes images `(C, *S)`; None where it has none.

        It has none where the first fully connected layer has no bias, does not take one vector an
        image, or runs twice, and where the client's own batch enters (BatchNorm in train mode).
        """
        if payload.training and payload.buffers:
            return None
        model = copy.deepcopy(payload.model).cpu().double().train(payload.training)
        ran, entries = _running_order(model, torch.zeros(1, *shape, dtype=torch.float64))
        linear = [name for name, module, _ in ran if isinstance(module, nn.Linear)]
        if not linear or linear.count(linear[0]) > 1:
            return None
        place = next(i for i, (name, _, _) in enumerate(ran) if name == linear[0])
        _, layer, inputs = ran[place]
        if not isinstance(layer, nn.Linear) or layer.bias is None or inputs != 2:
            return None
        earlier = dict.fromkeys(name for name, _, _ in ran[:place])
        own = dict(model.named_parameters())
        below = tuple(n for n in own if n.rpartition(".")[0] in earlier)
        state = {**payload.parameters, **payload.buffers}
        wide = {n: t.double().cpu() if t.is_floating_point() else t.cpu() for n, t in state.items()}
        return cls(model, wide, below, linear[0], entries + sum(own[n].numel() for n in below))

    def suits(self, unknowns: int) -> bool:
        """Say whether an image of so many unknowns can be found in reasonable time."""
        return unknowns <= _MOST_UNKNOWNS and unknowns * self.entries <= _MOST_ENTRIES

    def pass_through(self, parameters: Mapping[str, Tensor], inputs_norm: Tensor) -> Tensor:
        """Return the features `(F,)` of one image `(1, C, *S)`, given the trunk's parameters."""
        caught: list[Tensor] = []
        layer = self.model.get_submodule(self.head)
        hook = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            functional_call(self.model, {**self.state, **parameters}, (inputs_norm,))
        finally:
            hook.remove()
        return caught[0].squeeze(0)


def _running_order(
    model: nn.Module, inputs_norm: Tensor
) -> tuple[list[tuple[str, nn.Module, int]], int]:
    """Return layers with parameters as they run, each with its input's axes, and all entries."""
    ran: list[tuple[str, nn.Module, int]] = []
    entries = 0

    def note(name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal entries
        entries += output.numel() if isinstance(output, Tensor) else 0
        if any(True for _ in module.parameters(recurse=False)):
            first = inputs[0] if inputs else None
            ran.append((name, module, first.ndim if isinstance(first, Tensor) else 0))

    leaves = [(n, m) for n, m in model.named_modules() if not any(m.children())]
    hooks = [m.register_forward_hook(partial(note, n)) for n, m in leaves]
    try:
        with torch.no_grad():
            model(inputs_norm)
    finally:
        for hook in hooks:
            hook.remove()
    return ran, entries


@dataclass(frozen=True)
class TrunkEquations:
    """What an image must explain: features and the trunk's gradients, each relative to its size.

    Args:
        trunk: the layers.
        features: `(F,)` float64, the exact input of the first fully connected layer.
        above: `(F,)` float64, dL/dh.
        sent: the trunk's gradients, float64; those that are zero are left out.
        unknowns: how a vector is read as the image.
    """

    trunk: Trunk
    features: Tensor
    above: Tensor
    sent: Mapping[str, Tensor]
    unknowns: Unknowns

    @classmethod
    def of(cls, observation: Observation, trunk: Trunk) -> TrunkEquations | None:
        """Read the equations off an update; None where it is zero or not finite."""
        tensors = {n: t.double().cpu() for n, t in observation.tensors.items()}
        bias = tensors[f"{trunk.head}.bias"]
        features = layer_input(tensors[f"{trunk.head}.weight"], bias)
        if features is None:
            return None
        above = trunk.state[f"{trunk.head}.weight"].T @ bias
        sent = {n: tensors[n] for n in trunk.below if float(tensors[n].norm()) > 0}
        return cls(trunk, features, above, sent, image_unknowns(observation.spec))

    @property
    def rounding(self) -> float:
        """What the rounding of a float32 client alone leaves of the squared residual."""
        return FLOAT32_ROUNDING**2 * (1 + len(self.sent))

    def residual(self, z: Tensor) -> Tensor:
        """Return what an image, a vector `(D,)`, leaves unexplained, `(R,)`."""
        inputs_norm, _ = self.unknowns.unpack(z)

        def towards_loss(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            features = self.trunk.pass_through(parameters, inputs_norm)
            return features @ self.above, features

        own = {name: self.trunk.state[name] for name in self.sent}
        gradients, features = grad(towards_loss, has_aux=True)(own)
        spread = (self.features - self.features.mean()).norm().clamp_min(1e-300)
        return torch.cat(
            [
                (features - self.features) / spread,
                *(((gradients[n] - t) / t.norm()).flatten() for n, t in self.sent.items()),
            ]
        )


def image_unknowns(spec: DataSpec) -> Unknowns:
    """Return how a vector is read as one image; where the data is grey, one unknown a pixel."""
    tied = spec.greyscale and spec.shape[0] > 1
    return Unknowns(spec, images=1, classes=spec.num_classes, joint_labels=False, tied=tied)


def match_trunk(equations: TrunkEquations) -> tuple[Tensor, float, float]:
    """Solve the equations by Levenberg-Marquardt, from a grey image.

    Second order, because the equations' singular values span some seven orders of magnitude
    (LeNet-5 at 32 px), and still all lie above the rounding of a float32 client.

    Returns:
        The image `(C, *S)` in the client's input space, the relative residual, and the share of the
        unknowns that is determined at that residual.
    """
    unknowns = equations.unknowns
    if unknowns.count > _MOST_DENSE:
        return _match_without_matrix(equations)
    best, value = solve_image(equations.residual, unknowns)
    image = unknowns.unpack(best)[0][0]
    if not value <= _WORST:
        return image, math.inf, 0.0
    units = torch.eye(len(best), dtype=torch.float64).unsqueeze(0)
    curvature = _curvature(equations.residual)
    hessian = curvature(best.unsqueeze(0), torch.zeros(1, dtype=torch.int64))(units)[0]
    left = max(value, equations.rounding)
    share = determined_share(in_pixels(hessian, unknowns, best), left)
    return image, math.sqrt(value), share


def solve_image(residual: Callable[[Tensor], Tensor], unknowns: Unknowns) -> tuple[Tensor, float]:
    """Return the vector `(D,)` of least squares, from a grey image, and what is left of the sum.

    Args:
        residual: from a vector to what it leaves unexplained, `(R,)`.
        unknowns: how a vector is read as the image.
    """
    optimizer = LevenbergMarquardt(
        max_steps=_STEPS,
        damping=_FIRST_DAMPING,
        solver="dense",
        objective_below=_SOLVED,
        tolerance_change=_SLOWEST,
    )
    curvature = _curvature(residual)
    state = optimizer.init(unknowns.pack(grey(unknowns), torch.empty(0)).unsqueeze(0))
    while bool(state.running.any()):
        left, backward = vjp(residual, state.z[0])[:2]
        value = left.square().sum()
        (gradient,) = backward(2 * left)
        optimizer.tell(state, value.reshape(1), gradient.unsqueeze(0))
        if int(state.evaluations[0]) >= _PATIENCE and float(state.best_value[0]) > _WORST:
            break
        optimizer.turn(state, curvature)
    return state.best_z[0], float(state.best_value[0])


def _match_without_matrix(equations: TrunkEquations) -> tuple[Tensor, float, float]:
    """See `match_trunk`; what is determined is not asked, as that takes the matrix."""
    spec, tied = equations.unknowns.spec, equations.unknowns.tied
    equations = replace(equations, unknowns=likely_unknowns(spec, tied=tied))
    unknowns = equations.unknowns

    def residual(z: Tensor) -> Tensor:
        return torch.cat([equations.residual(z), _RANGE_WEIGHT * outside(unknowns, z)])

    start = unknowns.pack(grey(unknowns), torch.empty(0))
    z = solve(residual, start, products=_PRODUCTS, damping=_FIRST_DAMPING, solved=_SOLVED)
    return unknowns.unpack(z)[0][0], float(equations.residual(z).norm()), math.nan


def _curvature(residual: Callable[[Tensor], Tensor]) -> Curvature:
    linearise = gauss_newton(residual, rowwise=())

    def curvature(z: Tensor, rows: Tensor) -> Product:
        product = linearise(z)

        def in_parts(vectors: Tensor, /) -> Tensor:
            return torch.cat(
                [product(v) for v in torch.split(vectors, _PRODUCTS_AT_ONCE, dim=1)], dim=1
            )

        return in_parts

    return curvature
