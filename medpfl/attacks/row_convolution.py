"""Convolutions of many rows whose kernel is one for all rows, or each row's own.

Pictures `(R, C, H, W)` are those of B rows, R / B each. A kernel of side k is `(O, C, k, k)`, or
`(B, O, C, k, k)` where every row has its own.

Both directions are sums of matrix products, one a line of the kernel. What a line sees while the
kernel moves down is a view: pictures are copied k times, as strips, and not k * k times.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class RowConvolution:
    """A convolution in two dimensions.

    Args:
        side: k, of the kernel.
        stride: s, the distance between neighbouring windows, at least 1.
        padding: pixels added left, right, above, below; negative ones are cut off.
    """

    side: int
    stride: int
    padding: tuple[int, int, int, int]

    def __call__(self, *terms: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sum over terms (`strips`, `lines` of a kernel), `(R, O, H', W')`."""
        result = _sum_of_products(
            (lines[..., line, :, :], self._seen(strips, line))
            for strips, lines in terms
            for line in range(self.side)
        )
        return result.view(*result.shape[:2], -1, terms[0][0].shape[-1])

    def strips(self, pictures: Tensor) -> Tensor:
        """Return what a line of the kernel sees wherever it may stand, `(R, C * k, s, I, W')`.

        That at line i * s + t of the padded pictures is at (t, i).
        """
        left, right, above, _ = self.padding
        size = pictures.shape[2:]
        count = self.output((size[0], size[1]))[0] - 1 + self._reach
        below = count * self.stride - above - size[0]
        padded = functional.pad(pictures, (left, right, above, below))
        seen = padded.reshape(*padded.shape[:2], count, self.stride, -1)
        seen = seen.unfold(4, self.side, self.stride)
        return seen.permute(0, 1, 5, 3, 2, 4).flatten(1, 2).contiguous()

    def lines(self, kernel: Tensor) -> Tensor:
        """Return a kernel line by line, `(..., k, O, C * k)`."""
        return kernel.movedim(-2, -4).flatten(-2)

    def kernel_gradient(self, strips: Tensor, gradient: Tensor, rows: int) -> Tensor:
        """Return the gradient of each row's kernel, `(B, O, C, k, k)`.

        Args:
            strips: of the pictures.
            gradient: `(R, O, H', W')` of what the kernels gave.
            rows: B.
        """
        # With pixels along the lines of both factors, MKL takes three times as long.
        given = gradient.flatten(2).mT.contiguous()
        lines = [torch.bmm(self._seen(strips, line), given) for line in range(self.side)]
        result = torch.stack(lines, 1)
        result = result.view(len(result), self.side, -1, self.side, gradient.shape[1])
        result = result.permute(0, 4, 2, 1, 3)
        return result if len(result) == rows else _in_rows(result, rows).sum(1)

    def output(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return `(H', W')` for pictures of a size `(H, W)`."""
        left, right, above, below = self.padding
        height = (size[0] + above + below - self.side) // self.stride + 1
        width = (size[1] + left + right - self.side) // self.stride + 1
        return height, width

    @property
    def _reach(self) -> int:
        """How many of every s-th lines the kernel covers at most."""
        return -(-self.side // self.stride)

    def _seen(self, strips: Tensor, line: int) -> Tensor:
        """View what a line of the kernel sees at all of its places, `(R, C * k, H' * W')`."""
        height = strips.shape[3] - self._reach + 1
        first, phase = divmod(line, self.stride)
        return strips[:, :, phase, first : first + height].flatten(2)


class TransposedConvolution:
    """The transpose of a convolution of stride s, made of one of stride 1.

    That one gives s * s pictures a channel, one a phase, which interleave to one (Shi et al. 2016,
    arXiv 1609.05158). Its columns are shifted once they are products: there, unlike in
    `RowConvolution`, the pictures serve nothing else, and need no copy.

    Args:
        convolution: to be transposed.
        channels: `(O, C)` of its kernels.
        size: `(H, W)` of its pictures.
        device: of its kernels.
    """

    def __init__(
        self,
        convolution: RowConvolution,
        *,
        channels: tuple[int, int],
        size: tuple[int, int],
        device: torch.device,
    ) -> None:
        side, stride = convolution.side, convolution.stride
        reach = -(-side // stride)
        places = convolution.output(size)
        padding, cuts, self._size = [], [], []
        for axis, before in ((1, convolution.padding[0]), (0, convolution.padding[2])):
            first, cut = divmod(before, stride)
            last = (before + size[axis] - 1) // stride
            padding += [reach - 1 - first, last + 1 - places[axis]]
            self._size.append(last + 1 - first)
            cuts.append(slice(cut, cut + size[axis]))
        self._padding = [max(0, p) for p in padding]
        self._skipped = max(0, -padding[0]), max(0, -padding[2])
        self._columns, self._rows = cuts
        self._reach = reach
        self._stride = stride
        self._entries = _entries_by_phase((*channels, side, side), stride).to(device)

    def __call__(self, *terms: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sum over terms (pictures, `lines` of a kernel) of transposed convolutions."""
        products = _sum_of_products(
            (lines[..., line, :, :], seen)
            for pictures, lines in terms
            for line, seen in enumerate(self._seen(pictures))
        )
        width, height = self._size
        shifted = products.view(len(products), self._reach, -1, height, products.shape[2] // height)
        first, *others = (
            part[..., column : column + width]
            for column, part in enumerate(shifted.unbind(1), self._skipped[0])
        )
        for other in others:
            first += other
        if self._stride > 1:
            first = functional.pixel_shuffle(first, self._stride)
        return first[:, :, self._rows, self._columns]

    def lines(self, kernel: Tensor) -> Tensor:
        """Return the phases of a kernel by line, `(..., k / s, k / s * C * s * s, O)`."""
        entries = functional.pad(kernel.flatten(-4), (0, 1))
        phases = entries.index_select(-1, self._entries.flatten())
        return phases.reshape(*kernel.shape[:-4], *self._entries.shape)

    def _seen(self, pictures: Tensor) -> list[Tensor]:
        """View what each line of the kernel sees, `(R, O, H' * W')` with padded columns."""
        if any(self._padding):
            pictures = functional.pad(pictures, self._padding)
        flat, pitch = pictures.flatten(2), pictures.shape[3]
        count = self._size[1] * pitch
        starts = (pitch * (self._skipped[1] + line) for line in range(self._reach))
        return [flat[:, :, start : start + count] for start in starts]


def _entries_by_phase(shape: tuple[int, int, int, int], stride: int) -> Tensor:
    """Return `(k / s, k / s * C * s * s, O)`: where the phases' entries stand in a flat kernel.

    A side that s does not divide is filled up with the entry behind the last, a zero.
    """
    outputs, inputs, side, _ = shape
    reach = -(-side // stride)
    missing = reach * stride - side
    places = torch.arange(torch.Size(shape).numel()).reshape(shape)
    places = functional.pad(places, (0, missing, 0, missing), value=places.numel())
    parts = places.reshape(outputs, inputs, reach, stride, reach, stride).flip(2, 4)
    # From (O, C, i, r, j, t) to (i, j, C, r, t, O).
    return parts.permute(2, 4, 1, 3, 5, 0).flatten(1, 4)


def _sum_of_products(factors: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the sum of products `(R, O, P)`: `(O, K)`, or `(B, O, K)`, times `(R, K, P)`."""
    (kernel, seen), *others = factors
    result = torch.bmm(_for_each(kernel, len(seen)), seen)
    for kernel, seen in others:
        result.baddbmm_(_for_each(kernel, len(seen)), seen)
    return result


def _for_each(kernel: Tensor, pictures: int) -> Tensor:
    """Return `(R, O, K)`, a matrix for each picture, of one for all or of one a row."""
    if kernel.ndim == 2:
        return kernel.expand(pictures, -1, -1)
    images = pictures // len(kernel)
    return kernel if images == 1 else kernel.repeat_interleave(images, 0)


def plus_bias(pictures: Tensor, bias: Tensor) -> Tensor:
    """Add a bias `(O,)`, or `(B, O)`, to pictures `(R, O, H, W)` in place; return them."""
    if bias.ndim == 1:
        return pictures.add_(bias[:, None, None])
    _in_rows(pictures, len(bias)).add_(bias[:, None, :, None, None])
    return pictures


def bias_gradient(gradient: Tensor, rows: int) -> Tensor:
    """Return the gradient of each row's bias, `(B, O)`, for that of the pictures."""
    return _in_rows(gradient, rows).sum((1, 3, 4))


def _in_rows(pictures: Tensor, rows: int) -> Tensor:
    """View `(R, ...)` as `(B, R / B, ...)`."""
    return pictures.view(rows, -1, *pictures.shape[1:])
