"""ResNet-18, torchvision's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torchvision.models import resnet18

from medpfl.errors import ConfigurationError
from medpfl.models.base import NetworkFactory
from medpfl.models.weights import imagenet_resnet18, load_state, read_state
from medpfl.models.windows import picture_size
from medpfl.settings.hints import checked
from medpfl.types import DataSpec

logger = logging.getLogger(__name__)

_IMAGENET_CLASSES = 1000


@checked("model")
@dataclass(frozen=True, kw_only=True)
class ResNet18(NetworkFactory):
    """Build ResNet-18 with batch normalisation, as in torchvision.

    Args:
        init: law of the initial parameters.
        weights: None, ``imagenet`` (torchvision's IMAGENET1K_V1), or a state-dict file.
        head: ``dataset`` gives the last layer the data's K classes; ``imagenet`` keeps 1000, of
            which the data use the first K, as in the GradInv experiments.

    He et al. 2016, Table 1.
    """

    head: Literal["dataset", "imagenet"] = "dataset"

    def __post_init__(self) -> None:
        if self.head not in ("dataset", "imagenet"):
            raise ConfigurationError(f"model.head={self.head}: choose dataset or imagenet")

    def construct(self, spec: DataSpec) -> nn.Module:
        """Return the network with torchvision's own initial parameters."""
        picture_size(spec, "resnet18")  # any height and width will do, but it takes no volume
        model: nn.Module = resnet18(weights=None, num_classes=self._num_outputs(spec))
        if spec.shape[0] != 3:
            model.conv1 = _first_convolution(spec.shape[0])
        return model

    def load(self, model: nn.Module, weights: str) -> None:
        """Replace the parameters of `model`, in place; a head of other classes is left out."""
        state = imagenet_resnet18() if weights == "imagenet" else read_state(weights)
        if self.head == "dataset":
            state = _with_own_head(state, model, weights)
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


def _first_convolution(channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _with_own_head(
    state: Mapping[str, Tensor], model: nn.Module, source: str
) -> Mapping[str, Tensor]:
    """Return the state with the network's own head where the given one has other classes."""
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("fc.")}
    given = {name: state[name] for name in own if name in state}
    if len(given) < len(own) or all(given[n].shape == own[n].shape for n in own):
        return state
    logger.info(
        "model.weights=%s: its head of shape %s is left out; the network's, of shape %s, keeps its "
        "initial parameters",
        source,
        tuple(given["fc.weight"].shape),
        tuple(own["fc.weight"].shape),
    )
    return {**state, **own}
