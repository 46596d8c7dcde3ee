"""What an attack searches for, as one vector: images, and what else is unknown beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.attacks.image_prior import ImageGaussian
from medpfl.attacks.surrogate import Surrogate
from medpfl.types import DataSpec

# Where a sigmoid's slope is still a twentieth of its largest.
_DARKEST = 0.0125


@dataclass(frozen=True)
class Unknowns:
    """How a row's vector of D unknowns is read.

    N images come first, then, if joint, N x K label scores, then the surrogate's unknown.

    Args:
        spec: the kind of data.
        images: N.
        classes: K, the network's outputs (more than the data's classes for an ImageNet head).
        joint_labels: whether the labels are unknowns, too.
        tied: whether all channels of a pixel are one unknown, a grey value in [0, 1].
        boxed: whether pixels are sigmoids of their unknowns, and so never leave (0, 1).
        surrogate: at which network the dummy's gradient is taken; None: at the one sent.
        likely: what images are like: pixels are then read as an image of it, whose unknowns are
            independent standard normals; None reads them as they are.
    """

    spec: DataSpec
    images: int
    classes: int
    joint_labels: bool
    tied: bool = False
    boxed: bool = False
    surrogate: Surrogate | None = None
    likely: ImageGaussian | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(N, C, *S)`."""
        return (self.images, *self.spec.shape)

    @property
    def label_shape(self) -> tuple[int, int]:
        """`(N, K)`."""
        return (self.images, self.classes)

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """`(N, C, *S)`, or `(N, 1, *S)` where the channels are tied."""
        return (self.images, 1, *self.spec.shape[1:]) if self.tied else self.image_shape

    @property
    def in_pixels(self) -> bool:
        """Whether what is searched for is read as pixels in [0, 1], and not in input space."""
        return self.tied or self.boxed or self.likely is not None

    @property
    def count(self) -> int:
        """D."""
        scores = self.images * self.classes if self.joint_labels else 0
        between = 0 if self.surrogate is None else 1
        return torch.Size(self.pixel_shape).numel() + scores + between

    def pack(self, images: Tensor, scores: Tensor, *, solved: bool = False) -> Tensor:
        """Return the `(D,)` vector with which a search begins.

        Boxed pixels are first moved a little away from black and white, which no sigmoid reaches.

        Args:
            images: `(N, C, *S)` in input space.
            scores: `(N, K)` of the labels, if joint.
            solved: whether the images come from a closed form.
        """
        if self.in_pixels:
            images = self.spec.denormalise(images)
        if self.tied:
            images = images.mean(1)
        if self.likely is not None:
            images = self.likely.standard(images.flatten(1))
        if self.boxed:
            images = images.clamp(_DARKEST, 1 - _DARKEST).logit()
        parts = [images, scores] if self.joint_labels else [images]
        if self.surrogate is not None:
            parts.append(images.new_tensor(self.surrogate.first(solved=solved)))
        return torch.cat([part.flatten() for part in parts])

    def unpack(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images `(N, C, *S)` in input space and label scores `(N, K)` or None."""
        count = torch.Size(self.pixel_shape).numel()
        scores = None
        if self.joint_labels:
            labels = z[count : count + torch.Size(self.label_shape).numel()]
            scores = labels.reshape(self.label_shape)
        images = z[:count].reshape(self.pixel_shape)
        if self.likely is not None:
            images = self.likely.image(images.flatten(1)).reshape(self.pixel_shape)
        if self.boxed:
            images = images.sigmoid()
        if self.in_pixels:
            images = self.spec.normalise(images.expand(self.image_shape))
        return images, scores

    def network(self, z: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Return the weights at which the gradient is taken, between those before and after.

        Args:
            z: `(..., D)`; there must be a surrogate.
            before: `(..., P)`, as the server sent them.
            after: `(..., P)`, as the client's training left them.

        Returns:
            `(..., P)`.
        """
        if self.surrogate is None:
            raise ValueError("without a surrogate the gradient is taken at the weights sent")
        return before + self.surrogate.share(z[..., -1:]) * (after - before)

    def slope(self, z: Tensor) -> Tensor:
        """Return by how much each pixel's unknown rises where the pixel, in [0, 1], rises by one.

        Args:
            z: `(D,)`.

        Returns:
            `(D',)`, one entry a pixel; what comes after the pixels has none.
        """
        own = z[: torch.Size(self.pixel_shape).numel()]
        if self.boxed:
            pixels = own.sigmoid()
            return 1 / (pixels * (1 - pixels))
        if self.tied:
            return torch.ones_like(own)
        one, zero = (torch.full(self.pixel_shape, v).to(own) for v in (1.0, 0.0))
        return (self.spec.normalise(one) - self.spec.normalise(zero)).flatten()
