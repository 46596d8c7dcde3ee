"""What images of a modality are like, learnt on the spot from public ones: a Gaussian of full rank.

A few hundred images show a few hundred directions of the thousands that there are. The others are
filled in by what nearly all images share: their covariance is close to diagonal in a cosine basis
with decorrelated colours, and its variances fall with frequency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.errors import ConfigurationError

FEWEST_IMAGES = 8
"""Below this a covariance is not learnt but guessed."""

_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
_FOLDS = 4
_UNIFORM = 1 / 12  # the variance of pixels that are uniform on [0, 1]
_OF_COLOUR = 0.1  # of a picture's variance, in what two channels differ by
# The variance of rounding to 8 bits: no pixel of a stored image is known better than that.
_ROUNDING = 1 / 255**2 / 12


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageGaussian:
    """N(m, S) of one image's pixels in [0, 1], S = B diag(r) (I + V diag(e) V') diag(r) B'.

    B is the cosine basis. Products with a root of S and with its inverse take no d x d numbers.

    Args:
        shape: `(C, *S)` of the unknowns; C is 1 where channels are tied.
        mean: `(d,)` m, float64.
        colours: `(C, C)` orthonormal: from channels to what is uncorrelated in them.
        spread: `(d,)` r, positive: standard deviations in the cosine basis.
        directions: `(d, n)` V, orthonormal.
        excess: `(n,)` e, above -1.
        share: of the diagonal in S, as it was chosen.
    """

    shape: tuple[int, ...]
    mean: Tensor
    colours: Tensor
    spread: Tensor
    directions: Tensor
    excess: Tensor
    share: float

    @classmethod
    def learnt(cls, images: Tensor, *, tied: bool) -> ImageGaussian:
        """Learn from public images: S = (1 - a) S_n + a B diag(v) B'.

        S_n is their covariance, v their variances in the cosine basis, and a is chosen among a few
        so that images left out are likeliest (4-fold cross-validation).

        Args:
            images: `(A, C, *S)` in [0, 1].
            tied: whether the channels of a pixel are one unknown.

        Raises:
            ConfigurationError: fewer than 8 images.
        """
        if len(images) < FEWEST_IMAGES:
            raise ConfigurationError(
                f"{len(images)} public images (threat.knows=[auxiliary]) are too few to learn what "
                f"images are like: give {FEWEST_IMAGES} at least, and better a hundred "
                "(threat.auxiliary_images, or a dataset with more images beside the attacked ones)"
            )
        pixels = images.detach().double()
        pixels = pixels.mean(1, keepdim=True) if tied else pixels
        share = _likeliest(pixels)
        centred, mean, colours, spread = _standardised(pixels)
        _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
        variances = singular.square() / len(pixels)
        return cls(
            shape=tuple(pixels.shape[1:]),
            mean=mean,
            colours=colours,
            spread=spread * math.sqrt(share),
            directions=directions.T.contiguous(),
            excess=variances * (1 - share) / share,
            share=share,
        )

    def image(self, standard: Tensor) -> Tensor:
        """Return the pixels `(..., d)` of unknowns that are N(0, I): m + R w, R R' = S."""
        own = self.to(standard)
        along = (standard @ own.directions) * ((1 + own.excess).sqrt() - 1)
        coefficients = (standard + along @ own.directions.mT) * own.spread
        return own.mean + _pixels_of(coefficients, self.shape, own.colours)

    def standard(self, pixels: Tensor) -> Tensor:
        """Undo `image`: return the `(..., d)` behind pixels; rare images have large ones."""
        own = self.to(pixels)
        coefficients = _coefficients(pixels - own.mean, self.shape, own.colours) / own.spread
        along = (coefficients @ own.directions) * (1 / (1 + own.excess).sqrt() - 1)
        return coefficients + along @ own.directions.mT

    def to(self, like: Tensor) -> ImageGaussian:
        """Return the same in a tensor's precision, where that tensor is."""
        if like.dtype == self.mean.dtype and like.device == self.mean.device:
            return self
        fields = ("mean", "colours", "spread", "directions", "excess")
        moved = {name: getattr(self, name).to(like) for name in fields}
        return ImageGaussian(shape=self.shape, share=self.share, **moved)


def natural(shape: Sequence[int]) -> ImageGaussian:
    """Return the law that pictures of whatever kind nearly follow: energy falls with frequency.

    Of photographs the amplitude is about one over the frequency (Field 1987, Relations between the
    statistics of natural images and the response properties of cortical cells), so that every
    octave has as much energy. The mean is grey, and pixels vary as much as uniform ones.

    Args:
        shape: `(C, *S)` of the unknowns.
    """
    axes = [torch.arange(size, dtype=torch.float64) for size in shape[1:]]
    squares = sum(k.square() for k in torch.meshgrid(*axes, indexing="ij")) + torch.ones(())
    share = torch.full((shape[0], *[1] * len(axes)), _OF_COLOUR, dtype=torch.float64)
    share[0] = 1
    variances = share / squares ** (len(axes) / 2)
    variances *= _UNIFORM / variances.mean()
    flat = variances.flatten()
    return ImageGaussian(
        shape=tuple(shape),
        mean=torch.full_like(flat, 0.5),
        colours=_cosines(shape[0], flat),
        spread=flat.sqrt(),
        directions=flat.new_zeros((len(flat), 0)),
        excess=flat.new_zeros(0),
        share=1.0,
    )


def _standardised(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return coefficients `(A, d)` of unit variance, the mean, the colours and the spread."""
    channels = pixels.shape[1]
    mean = pixels.mean(0)
    by_channel = (pixels - mean).transpose(0, 1).reshape(channels, -1)
    colours = torch.linalg.eigh(by_channel @ by_channel.T)[1].T.contiguous()
    shape = tuple(pixels.shape[1:])
    coefficients = _coefficients((pixels - mean).flatten(1), shape, colours)
    spread = (coefficients.square().mean(0) + _ROUNDING).sqrt()
    return coefficients / spread, mean.flatten(), colours, spread


def _likeliest(pixels: Tensor) -> float:
    """Return the share of the diagonal under which images that were left out are likeliest."""
    scores = torch.zeros(len(_SHARES), dtype=torch.float64)
    shares = torch.tensor(_SHARES, dtype=torch.float64)
    for fold in range(_FOLDS):
        left_out = torch.arange(len(pixels)) % _FOLDS == fold
        known, mean, colours, spread = _standardised(pixels[~left_out])
        shown = (pixels[left_out].flatten(1) - mean.to(pixels)).to(pixels)
        rest = _coefficients(shown, tuple(pixels.shape[1:]), colours) / spread
        scores += _log_likelihoods(known, rest, shares)
    return float(shares[scores.argmax()])


def _log_likelihoods(known: Tensor, rest: Tensor, shares: Tensor) -> Tensor:
    """Return the log-density of `rest` `(M, d)`, up to a constant, for each share `(a,)`."""
    _, singular, directions = torch.linalg.svd(known, full_matrices=False)
    variances = singular.square() / len(known)
    along = (rest @ directions.T).square().sum(0)
    total = rest.square().sum()
    own = shares.unsqueeze(1) + (1 - shares).unsqueeze(1) * variances
    squares = total / shares + (along * (1 / own - 1 / shares.unsqueeze(1))).sum(1)
    volume = (known.shape[1] - len(variances)) * shares.log() + own.log().sum(1)
    likelihoods: Tensor = -(squares + len(rest) * volume) / 2
    return likelihoods


def _coefficients(pixels: Tensor, shape: Sequence[int], colours: Tensor) -> Tensor:
    """Return `(..., d)` pixels in the cosine basis."""
    return _along_axes(pixels, shape, [colours, *(_cosines(n, pixels) for n in shape[1:])])


def _pixels_of(coefficients: Tensor, shape: Sequence[int], colours: Tensor) -> Tensor:
    cosines = [_cosines(n, coefficients).T for n in shape[1:]]
    return _along_axes(coefficients, shape, [colours.T, *cosines])


def _along_axes(rows: Tensor, shape: Sequence[int], matrices: Sequence[Tensor]) -> Tensor:
    result = rows.reshape(*rows.shape[:-1], *shape)
    for axis, matrix in enumerate(matrices, start=rows.ndim - 1):
        result = (result.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return result.reshape(rows.shape)


def _cosines(size: int, like: Tensor) -> Tensor:
    """Return the orthonormal cosine transform (DCT-II), `(size, size)`."""
    place = torch.arange(size, dtype=torch.float64)
    matrix = (math.pi / size * (place + 0.5) * place.unsqueeze(1)).cos() * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    cosines: Tensor = matrix.to(like)
    return cosines
