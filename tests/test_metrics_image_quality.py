import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from medpfl.errors import ConfigurationError
from medpfl.metrics import (
    mse,
    mse_per_image,
    psnr_db,
    psnr_db_per_image,
    ssim,
    ssim_per_image,
)
from medpfl.seeding import generator

SHAPES = [(1, 11, 11), (3, 32, 32), (3, 17, 40), (1, 12, 13, 14)]


def images(*shape, seed=0):
    return torch.rand(shape, generator=generator(seed, "images", *shape))


def ssim_by_definition(x, y):
    """Wang et al. 2004, Eq. 13, window by window: slow, and independent of any filter."""
    axis = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(axis**2) / (2 * 1.5**2))
    line = line / line.sum()
    weights = line[:, None] * line[None, :]
    values = []
    for a, b in zip(x.double(), y.double(), strict=True):
        for i in range(a.shape[0] - 10):
            for j in range(a.shape[1] - 10):
                p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
                mp, mq = (weights * p).sum(), (weights * q).sum()
                vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
                cov = (weights * (p - mp) * (q - mq)).sum()
                luminance = (2 * mp * mq + 1e-4) / (mp**2 + mq**2 + 1e-4)
                values.append(luminance * (2 * cov + 9e-4) / (vp + vq + 9e-4))
    return float(torch.stack(values).mean())


def test_ssim_equals_the_definition():
    x, y = images(2, 14, 13), images(2, 14, 13, seed=1)
    assert ssim(x, y) == pytest.approx(ssim_by_definition(x, y), abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_scikit_image(shape):
    x = images(*shape)
    y = (x + 0.1 * images(*shape, seed=1)).clamp(0, 1)
    a, b = x.double().numpy(), y.double().numpy()
    channels = [
        structural_similarity(
            p,
            q,
            data_range=1.0,
            win_size=11,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for p, q in zip(a, b, strict=True)
    ]
    assert ssim(x, y) == pytest.approx(np.mean(channels), abs=1e-12)
    assert mse(x, y) == pytest.approx(mean_squared_error(a, b), rel=1e-12)
    assert psnr_db(x, y) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0))


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_images_are_perfect(shape):
    x = images(*shape)
    assert ssim(x, x) == pytest.approx(1.0, abs=1e-12)
    assert mse(x, x) == 0.0
    assert psnr_db(x, x) == math.inf


def test_unrelated_images_score_low():
    assert -0.1 < ssim(images(3, 32, 32), images(3, 32, 32, seed=1)) < 0.4


@pytest.mark.parametrize(("offset", "decibels"), [(1.0, 0.0), (0.1, 20.0), (0.01, 40.0)])
def test_psnr_of_a_known_error(offset, decibels):
    black = torch.zeros(1, 12, 12, dtype=torch.float64)
    assert psnr_db(black, black + offset) == pytest.approx(decibels)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), strength=st.floats(0.0, 1.0))
def test_symmetric_and_bounded(seed, strength):
    x = images(1, 12, 12, seed=seed)
    y = torch.lerp(x, images(1, 12, 12, seed=seed + 1), strength)
    assert -1.0 <= ssim(x, y) <= 1.0 + 1e-12
    assert ssim(x, y) == pytest.approx(ssim(y, x), abs=1e-12)


@pytest.mark.parametrize(
    ("batch", "single"),
    [(ssim_per_image, ssim), (mse_per_image, mse), (psnr_db_per_image, psnr_db)],
)
def test_per_image_keeps_the_first_axis(batch, single):
    x, y = images(3, 1, 16, 16), images(3, 1, 16, 16, seed=1)
    values = batch(x, y)
    assert values.dtype == torch.float64
    assert values.tolist() == [single(a, b) for a, b in zip(x, y, strict=True)]


@pytest.mark.parametrize(("shape", "size"), [((3, 8, 32), "8x32"), ((1, 16, 16, 10), "16x16x10")])
def test_an_image_smaller_than_the_window_is_named(shape, size):
    with pytest.raises(ConfigurationError, match=rf"at least 11 pixels a side, got {size}"):
        ssim(images(*shape), images(*shape))


@pytest.mark.parametrize("measure", [ssim, mse, psnr_db])
def test_wrong_pixels_are_refused(measure):
    x = images(3, 16, 16)
    with pytest.raises(ValueError, match=r"reconstruction spans .* undo the normalisation"):
        measure(x, x * 4)
    with pytest.raises(ValueError, match="original has NaN or infinite pixels"):
        measure(x * math.nan, x)
    with pytest.raises(ValueError, match="same shape"):
        measure(x, x[:1])
