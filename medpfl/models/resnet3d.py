"""ResNet-18 for volumes: torchvision's video network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torchvision.models.video import r3d_18

from medpfl.errors import ConfigurationError
from medpfl.models.base import NetworkFactory
from medpfl.settings.hints import checked
from medpfl.types import DataSpec


@checked("model")
@dataclass(frozen=True, kw_only=True)
class ResNet18Volume(NetworkFactory):
    """Build torchvision's r3d_18, whose convolutions are three-dimensional, with BatchNorm.

    Its stem takes as many channels as the data have, drawn after He et al. 2015 where these are
    not three. It halves height and width first, as for frames of a video.

    Tran et al. 2018, Table 1 (R3D).
    """

    def construct(self, spec: DataSpec) -> nn.Module:
        """Return the network with torchvision's own initial parameters."""
        if len(spec.shape) != 4:
            raise ConfigurationError(
                f"r3d_18 takes volumes (C, D, H, W), but one example has the shape {spec.shape}: "
                "choose a dataset of volumes, or model=resnet18"
            )
        model: nn.Module = r3d_18(weights=None, num_classes=spec.num_classes)
        if spec.shape[0] != 3:
            stem = nn.Conv3d(spec.shape[0], 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
            nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
            model.get_submodule("stem")[0] = stem  # type: ignore[operator]
        return model
