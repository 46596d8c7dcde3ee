"""The Gaussian that an attacker learns from public images, against dense algebra and scipy."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded
from scipy import fft
from torch import Tensor
from torch.distributions import MultivariateNormal

from medpfl.attacks.image_prior import _SHARES, ImageGaussian, _log_likelihoods, natural
from medpfl.errors import ConfigurationError

SHAPES = [(3, 5, 4), (1, 6, 3), (2, 3, 4, 2)]  # (C, *S)


def pictures(count: int, *shape: int) -> Tensor:
    """Draw soft pictures with correlated colours."""
    noise = torch.randn((count, *shape), generator=seeded(1), dtype=torch.float64)
    common = noise[:, :1].cumsum(-1).cumsum(-2)
    return (0.5 + 0.05 * common + 0.02 * noise).clamp(0, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unknowns_and_pixels_are_each_others_inverse(shape: tuple[int, ...]) -> None:
    images = pictures(12, *shape)
    gaussian = ImageGaussian.learnt(images, tied=False)
    pixels = images[:3].flatten(1)
    torch.testing.assert_close(gaussian.image(gaussian.standard(pixels)), pixels)
    single = gaussian.image(gaussian.standard(pixels.float()))
    assert single.dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_covariance_is_the_mixture_that_it_says(shape: tuple[int, ...]) -> None:
    images = pictures(12, *shape)
    gaussian = ImageGaussian.learnt(images, tied=False)
    count = torch.Size(shape).numel()
    root = gaussian.image(torch.eye(count, dtype=torch.float64)) - gaussian.mean
    found = root.T @ root
    # By itself: colours, then scipy's cosine transform, axis by axis.
    centred = (images - images.mean(0)).numpy()
    turned = torch.tensordot(gaussian.colours, torch.tensor(centred), dims=([1], [1])).movedim(0, 1)
    axes = tuple(range(2, len(shape) + 1))
    coefficients = torch.tensor(fft.dctn(turned.numpy(), axes=axes, norm="ortho")).flatten(1)
    sample = coefficients.T @ coefficients / len(images)
    rounding = 1 / 255**2 / 12
    diagonal = coefficients.square().mean(0) + rounding
    share = gaussian.share
    wanted = (1 - share) * sample + share * diagonal.diag()
    basis = torch.eye(count, dtype=torch.float64).reshape(count, *shape)
    rotated = torch.tensordot(gaussian.colours, basis, dims=([1], [1])).movedim(0, 1)
    basis = torch.tensor(fft.dctn(rotated.numpy(), axes=axes, norm="ortho")).flatten(1)
    torch.testing.assert_close(found, basis @ wanted @ basis.T, rtol=1e-6, atol=1e-10)


def test_images_left_out_are_weighed_by_their_density() -> None:
    known = torch.randn((5, 7), generator=seeded(2), dtype=torch.float64)
    rest = torch.randn((3, 7), generator=seeded(3), dtype=torch.float64)
    shares = torch.tensor(_SHARES, dtype=torch.float64)
    found = _log_likelihoods(known, rest, shares)
    zero, identity = torch.zeros(7, dtype=torch.float64), torch.eye(7, dtype=torch.float64)
    covariances = [s * identity + (1 - s) * known.T @ known / 5 for s in shares]
    wanted = [MultivariateNormal(zero, c).log_prob(rest).sum() for c in covariances]
    apart = found - torch.stack(wanted)
    torch.testing.assert_close(apart, apart[:1].expand_as(apart))


def test_tied_channels_are_one() -> None:
    images = pictures(9, 1, 4, 4)
    grey = ImageGaussian.learnt(images.expand(9, 3, 4, 4), tied=True)
    assert grey.shape == (1, 4, 4)
    torch.testing.assert_close(grey.mean, images.mean(0).flatten())


def test_pixels_that_never_differ_are_known_to_their_rounding() -> None:
    gaussian = ImageGaussian.learnt(torch.full((8, 1, 4, 4), 0.5), tied=False)
    assert bool((gaussian.spread > 1e-4).all())
    assert gaussian.standard(gaussian.mean).isfinite().all()


def test_a_few_images_are_too_few() -> None:
    with pytest.raises(ConfigurationError, match=r"7 public images .* are too few"):
        ImageGaussian.learnt(pictures(7, 1, 4, 4), tied=False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_law_of_any_picture_falls_with_frequency(shape: tuple[int, ...]) -> None:
    law = natural(shape)
    spread = law.spread.reshape(shape)
    assert float(spread.square().mean()) == pytest.approx(1 / 12)
    for axis in range(1, len(shape)):
        assert bool((spread.diff(dim=axis) < 0).all())
    # In the plane four times the distance is a quarter of the amplitude.
    if len(shape) == 3:
        assert float(spread[0, 3, 0] / spread[0, 0, 0]) == pytest.approx(10**-0.5)
    grey = torch.full((1, len(law.mean)), 0.25, dtype=torch.float64)
    (rarity,) = law.standard(grey).square().sum(1)
    # A flat grey picture is told by one number: its distance from the mean.
    assert float(rarity) == pytest.approx(
        float((0.25**2 * len(law.mean)) / spread.flatten()[0] ** 2)
    )
