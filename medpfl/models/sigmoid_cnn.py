"""The papers' small CNNs: convolutions with sigmoids, then one fully connected layer.

On volumes their convolutions are three-dimensional, and all else is as published for pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from medpfl.models.base import NetworkFactory
from medpfl.models.windows import Window, convolution_over, feature_size
from medpfl.settings.hints import checked
from medpfl.types import DataSpec


@dataclass(frozen=True, kw_only=True)
class Convolution(Window):
    """A convolution: its window, and the channels it gives.

    Args:
        channels: output channels, at least 1.
    """

    channels: int


class SigmoidCNN(nn.Module):
    """Convolutions, a sigmoid after each, then one fully connected layer.

    Args:
        convolutions: in running order.
        in_channels: C.
        size: `*S` of the last convolution's output; as many sides as the data have.
        num_classes: K.
    """

    def __init__(
        self,
        *,
        convolutions: Sequence[Convolution],
        in_channels: int,
        size: tuple[int, ...],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential()
        layer, channels = convolution_over(size), in_channels
        for c in convolutions:
            self.body.append(layer(channels, c.channels, c.kernel, c.stride, c.padding))
            self.body.append(nn.Sigmoid())
            channels = c.channels
        self.fc = nn.Linear(channels * math.prod(size), num_classes)

    def forward(self, inputs_norm: Tensor) -> Tensor:
        """Return logits; `(N, C, *S)` to `(N, K)`."""
        logits: Tensor = self.fc(self.body(inputs_norm).flatten(1))
        return logits


@dataclass(frozen=True, kw_only=True)
class SigmoidCNNFactory(NetworkFactory):
    """Build a `SigmoidCNN`; a subclass names the network and lists its convolutions."""

    name: ClassVar[str]
    convolutions: ClassVar[tuple[Convolution, ...]]

    def construct(self, spec: DataSpec) -> SigmoidCNN:
        """Return the network with torch's own initial parameters."""
        return SigmoidCNN(
            convolutions=self.convolutions,
            size=feature_size(spec, self.convolutions, self.name),
            in_channels=spec.shape[0],
            num_classes=spec.num_classes,
        )


@checked("model")
@dataclass(frozen=True, kw_only=True)
class CPLCNN(SigmoidCNNFactory):
    """Build the 7-layer network of the medical papers' CPL experiments.

    The padding grows a 32x32 picture to 50x50, so the last layer has 40,000 inputs.
    Das et al. 2023 (arXiv 2311.06643), Table I.
    """

    name: ClassVar[str] = "cpl_cnn"
    convolutions: ClassVar[tuple[Convolution, ...]] = 6 * (
        Convolution(channels=16, kernel=2, padding=2),
    )


@checked("model")
@dataclass(frozen=True, kw_only=True)
class DLGCNN(SigmoidCNNFactory):
    """Build the 5-layer network of DLG: 768 inputs to the last layer at 32x32.

    Zhu et al. 2019 (arXiv 1906.08935), released code.
    """

    name: ClassVar[str] = "dlg_cnn"
    convolutions: ClassVar[tuple[Convolution, ...]] = tuple(
        Convolution(channels=12, kernel=5, stride=stride, padding=2) for stride in (2, 2, 1, 1)
    )


@checked("model")
@dataclass(frozen=True, kw_only=True)
class IDLGCNN(SigmoidCNNFactory):
    """Build the 4-layer network of iDLG: 768 inputs to the last layer at 32x32.

    Zhao et al. 2020 (arXiv 2001.02610), released code.
    """

    name: ClassVar[str] = "idlg_cnn"
    convolutions: ClassVar[tuple[Convolution, ...]] = tuple(
        Convolution(channels=12, kernel=5, stride=stride, padding=2) for stride in (2, 2, 1)
    )
