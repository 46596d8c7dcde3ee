"""LeNet-5."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from medpfl.models.base import NetworkFactory
from medpfl.models.windows import Window, convolution_over, feature_size
from medpfl.settings.hints import checked
from medpfl.types import DataSpec

_CONVOLUTION = Window(kernel=5)
_POOL = Window(kernel=2, stride=2)
_WINDOWS = (_CONVOLUTION, _POOL, _CONVOLUTION, _POOL)


@checked("model")
@dataclass(frozen=True, kw_only=True)
class LeNet(NetworkFactory):
    """Build LeNet-5: two convolutions with average pooling, then layers of 120, 84 and K.

    LeCun et al. 1998, Fig. 2.

    Notes:
        Sigmoids stand where the original has scaled hyperbolic tangents: smooth likewise, which
        gradient matching needs, and positive, which the iDLG label rule needs of the features
        before the last layer. Pooling has no weights, and every channel of the second
        convolution reads all six of the first. On volumes convolutions and pooling are
        three-dimensional.
    """

    def construct(self, spec: DataSpec) -> nn.Module:
        """Return the network with torch's own initial parameters."""
        size = feature_size(spec, _WINDOWS, "lenet")
        convolution = convolution_over(size)
        pool = nn.AvgPool2d if convolution is nn.Conv2d else nn.AvgPool3d
        layers: list[tuple[str, nn.Module]] = [
            ("conv1", convolution(spec.shape[0], 6, 5)),
            ("act1", nn.Sigmoid()),
            ("pool1", pool(2)),
            ("conv2", convolution(6, 16, 5)),
            ("act2", nn.Sigmoid()),
            ("pool2", pool(2)),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(16 * math.prod(size), 120)),
            ("act3", nn.Sigmoid()),
            ("fc2", nn.Linear(120, 84)),
            ("act4", nn.Sigmoid()),
            ("fc3", nn.Linear(84, spec.num_classes)),
        ]
        return nn.Sequential(OrderedDict(layers))
