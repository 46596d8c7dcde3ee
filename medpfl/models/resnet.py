"""ResNet-18, torchvision's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from torchvision.models import resnet18

from medpfl.errors import ConfigurationError
from medpfl.models.base import NetworkFactory
from medpfl.models.head import with_own_head
from medpfl.models.weights import imagenet_resnet18, load_state, read_state
from medpfl.models.windows import picture_size
from medpfl.settings.hints import checked
from medpfl.types import DataSpec

_IMAGENET_CLASSES = 1000


@checked("model")
@dataclass(frozen=True, kw_only=True)
class ResNet18(NetworkFactory):
    """Build ResNet-18, as in torchvision, with batch or group normalisation.

    Args:
        init: law of the initial parameters.
        weights: None, ``imagenet`` (torchvision's IMAGENET1K_V1), or a state-dict file.
        head: ``dataset`` gives the last layer the data's K classes; ``imagenet`` keeps 1000, of
            which the data use the first K, as in the GradInv experiments.
        norm: ``batch``, or ``group``: each image is normalised by itself, in groups of channels, so
            that it shares no statistics with others and there are none to send (Wu and He 2018,
            32 groups). ImageNet's weights are for ``batch``.

    He et al. 2016, Table 1.
    """

    head: Literal["dataset", "imagenet"] = "dataset"
    norm: Literal["batch", "group"] = "batch"

    def __post_init__(self) -> None:
        if self.head not in ("dataset", "imagenet"):
            raise ConfigurationError(f"model.head={self.head}: choose dataset or imagenet")
        if self.norm not in ("batch", "group"):
            raise ConfigurationError(f"model.norm={self.norm}: choose batch or group")
        if self.norm == "group" and self.weights == "imagenet":
            raise ConfigurationError(
                "model.norm=group: model.weights=imagenet is of a network with batch "
                "normalisation; choose model.norm=batch, or a state-dict file of your own"
            )

    def construct(self, spec: DataSpec) -> nn.Module:
        """Return the network with torchvision's own initial parameters."""
        picture_size(spec, "resnet18")  # any height and width will do, but it takes no volume
        norm_layer = group_norm if self.norm == "group" else None
        model: nn.Module = resnet18(
            weights=None, num_classes=self._num_outputs(spec), norm_layer=norm_layer
        )
        if spec.shape[0] != 3:
            model.conv1 = _first_convolution(spec.shape[0])
        return model

    def load(self, model: nn.Module, weights: str) -> None:
        """Replace the parameters of `model`, in place; a head of other classes is left out."""
        state = imagenet_resnet18() if weights == "imagenet" else read_state(weights)
        if self.head == "dataset":
            state = with_own_head(state, model, head="fc.", source=weights)
        load_state(model, state, source=weights)

    def _num_outputs(self, spec: DataSpec) -> int:
        if self.head == "dataset":
            return spec.num_classes
        if spec.num_classes > _IMAGENET_CLASSES:
            raise ConfigurationError(
                f"model.head=imagenet has {_IMAGENET_CLASSES} classes, the data have "
                f"{spec.num_classes}: choose model.head=dataset"
            )
        return _IMAGENET_CLASSES


def group_norm(channels: int) -> nn.GroupNorm:
    """Return group normalisation in 32 groups, or in the most below that divide the channels."""
    groups = next(n for n in range(min(32, channels), 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels)


def _first_convolution(channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
