"""Labels of images that were clipped each by itself: clipping shrinks what counts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from medpfl.attacks.image_prior import ImageGaussian
from medpfl.attacks.labels import largest_remainders
from medpfl.models.structure import last_linear
from medpfl.seeding import generator
from medpfl.training import Gradient
from medpfl.types import Observation

# Their gradients differ less than those of two classes do.
_PROBES = 16


@dataclass(frozen=True, kw_only=True)
class CountedThroughClip:
    """How many images of each class explain the last layer's gradient best, through clipping.

    A clipped gradient has its class's direction and no longer its size, so that the bias gradient
    counts nothing, and under noise has too few entries. The mean clipped gradient G_y that images
    of class y have in the last layer stands for theirs, and sum_y n_y G_y is brought nearest to
    what was sent: the most likely counts under Gaussian noise, if all images of a class were alike.

    Args:
        gradient: of a single image, clipped.
        share: what each image's gradient is multiplied by in the update, which is their sum.
        images: what images are like; a few are drawn from it.
    """

    gradient: Gradient
    share: float
    images: ImageGaussian

    requires: ClassVar[frozenset[str]] = frozenset({"num_examples"})
    joint: ClassVar[bool] = False

    def check(self, model: torch.nn.Module, batch_size: int) -> None:
        """Refuse models without a last linear layer."""
        last_linear(model)

    def labels(self, observation: Observation) -> Tensor | None:
        """Return the inferred labels in ascending order, `(N,)`."""
        count = observation.num_examples
        if count is None:
            raise ValueError("the number of examples is withheld: call ThreatModel.require first")
        names = sorted(self.reads(observation.payload.model))
        sent = torch.cat([observation.tensors[name].flatten() for name in names]).double().cpu()
        of_classes = self._of_classes(observation, names) * self.share
        return torch.repeat_interleave(
            torch.arange(len(of_classes)), _nearest_counts(of_classes, sent, count)
        )

    def reads(self, model: torch.nn.Module) -> frozenset[str]:
        """Return the last layer's weight, and its bias where it has one."""
        return frozenset(name for name in last_linear(model) if name is not None)

    def _of_classes(self, observation: Observation, names: list[str]) -> Tensor:
        """Return the mean clipped gradient of each class's images in these tensors, `(K, P)`."""
        payload, spec = observation.payload, observation.spec
        weight = payload.parameters[names[-1]]
        forward, means = payload.forward(training=False), list[Tensor]()
        probes = spec.normalise(self._drawn(spec.shape)).to(weight)
        for one in torch.eye(spec.num_classes).to(weight):
            found = [
                self.gradient(forward, payload.parameters, image[None], one[None])
                for image in probes
            ]
            rows = [torch.cat([g[name].detach().flatten() for name in names]) for g in found]
            means.append(torch.stack(rows).mean(0).double().cpu())
        return torch.stack(means)

    def _drawn(self, shape: tuple[int, ...]) -> Tensor:
        stream = generator(0, "label probes")
        standard = torch.randn((_PROBES, len(self.images.mean)), generator=stream).double()
        pixels = self.images.image(standard).reshape(_PROBES, *self.images.shape).clamp(0, 1)
        return pixels.float().expand(_PROBES, *shape)


def _nearest_counts(of_classes: Tensor, sent: Tensor, count: int) -> Tensor:
    """Return whole numbers `(K,)` that sum to `count` and whose gradients' sum is near to `sent`.

    Rounded least squares, made better one image at a time: no image alone can change
    its class for a better sum.

    Args:
        of_classes: `(K, P)`.
        sent: `(P,)`.
        count: of the images.
    """
    products, along = of_classes @ of_classes.T, of_classes @ sent
    start = torch.linalg.lstsq(products, along.unsqueeze(1), driver="gelsd").solution[:, 0]
    counts = largest_remainders(start, count).bincount(minlength=len(along))
    swaps = torch.eye(len(along), dtype=torch.long)

    def cost(n: Tensor) -> float:
        return float(n.double() @ products @ n.double() / 2 - along @ n.double())

    while True:
        tried = [
            counts - swaps[out] + swaps[into]
            for out in counts.nonzero()[:, 0].tolist()
            for into in range(len(along))
        ]
        best = min(tried, key=cost)
        if not cost(best) < cost(counts):
            return counts
        counts = best
