"""Torchvision's classifiers, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.ops import StochasticDepth

from medpfl._near import did_you_mean
from medpfl.errors import ConfigurationError
from medpfl.models.base import NetworkFactory
from medpfl.models.head import with_own_head
from medpfl.models.weights import load_state, read_state
from medpfl.models.windows import picture_size
from medpfl.settings.hints import checked
from medpfl.types import DataSpec

# Heads for training alone, with which a network returns a tuple.
_EXTRA_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
_NOISE = (nn.Dropout, StochasticDepth)
_LIST = "https://pytorch.org/vision/stable/models.html#classification"


@checked("model")
@dataclass(frozen=True, kw_only=True)
class TorchvisionModel(NetworkFactory):
    """Build any of torchvision's networks for classification, with an output for each class.

    Args:
        init: law of the initial parameters.
        weights: None, or a state-dict file; a head of other classes in it is left out.
        name: torchvision's name of the network, such as ``densenet121``.

    Raises:
        ConfigurationError: torchvision has no classifier of this name, or it is a SqueezeNet, which
            has no fully connected layer.

    Notes:
        Where torchvision's networks have them, three things differ here. Dropout and stochastic
        depth are left out, whichever mode clients train in: they are noise of which the server
        knows nothing, and in eval mode, the default here, there is none either. Where images have
        other than three channels, the first convolution is replaced by one that takes as many, its
        weights drawn after He et al. 2015. The extra heads of GoogLeNet and Inception are left out.
    """

    name: str

    may_be_large: ClassVar[bool] = True

    def __post_init__(self) -> None:
        known = models.list_models(module=models)
        if self.name not in known:
            raise ConfigurationError(
                f"model.name={self.name}: torchvision has no classifier of this name"
                f"{did_you_mean(self.name.lower(), known)} They are listed at {_LIST}"
            )
        if self.name.startswith("squeezenet"):
            raise ConfigurationError(
                f"model.name={self.name} ends in a convolution, and attacks read the classes from "
                "a fully connected last layer: choose another, such as shufflenet_v2_x0_5"
            )

    @property
    def label(self) -> str:
        """What plans call the network."""
        return self.name

    def construct(self, spec: DataSpec) -> nn.Module:
        """Return the network with torchvision's own initial parameters."""
        options = self._size_options(*picture_size(spec, self.name))
        if self.name in _EXTRA_HEADS:
            options = {"aux_logits": False, "init_weights": True}
        builder = models.get_model_builder(self.name)
        try:
            model: nn.Module = builder(weights=None, num_classes=spec.num_classes, **options)
        except (AssertionError, ValueError) as fault:  # of networks made for one size
            raise ConfigurationError(
                f"model.name={self.name} cannot be made for pictures of "
                f"{spec.shape[1]}x{spec.shape[2]} ({fault}): set preprocess.size"
            ) from fault
        _leave_noise_out(model)
        _make_twice_differentiable(model)
        if spec.shape[0] != 3:
            _replace_first_convolution(model, spec.shape[0])
        return model

    def load(self, model: nn.Module, weights: str) -> None:
        """Replace the parameters of `model`, in place; a head of other classes is left out."""
        extra = _EXTRA_HEADS.get(self.name, ())
        state = {n: t for n, t in read_state(weights).items() if not n.startswith(extra)}
        layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        whole = with_own_head(state, model, head=f"{layers[-1]}.", source=weights)
        load_state(model, whole, source=weights)

    def _size_options(self, height: int, width: int) -> dict[str, Any]:
        """Return what networks that are made for one size are told of it."""
        if self.name.startswith("maxvit"):
            return {"input_size": (height, width)}
        if not self.name.startswith("vit"):
            return {}
        if height != width:
            raise ConfigurationError(
                f"model.name={self.name} takes square pictures, these are {height}x{width}: set "
                "preprocess.size or choose another model"
            )
        return {"image_size": height}


def _leave_noise_out(model: nn.Module) -> None:
    """Put layers that pass on what they are given where there is dropout, in place."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, _NOISE):
                setattr(module, name, nn.Identity())


class _Hardsigmoid(nn.Module):
    """``nn.Hardsigmoid`` from operations of which torch knows the second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `relu6(x + 3) / 6`, of any shape."""
        return functional.relu6(x + 3) / 6


def _attend_plainly(
    module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Ask for the weights of attention: they are not there in torch's fused one."""
    return args, {**given, "need_weights": True}


def _make_twice_differentiable(model: nn.Module) -> None:
    """Replace, in place, what gradient matching cannot differentiate."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(_attend_plainly, with_kwargs=True)
        for name, child in module.named_children():
            if isinstance(child, nn.Hardsigmoid):
                setattr(module, name, _Hardsigmoid())


def _replace_first_convolution(model: nn.Module, channels: int) -> None:
    name, old = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        kernel_size=(old.kernel_size[0], old.kernel_size[1]),
        stride=(old.stride[0], old.stride[1]),
        padding=old.padding if isinstance(old.padding, str) else (old.padding[0], old.padding[1]),
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
