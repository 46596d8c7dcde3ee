"""Preprocessing against torchvision's own pipeline, and its settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import ToTensor, v2

from medpfl.data import Preprocess
from medpfl.errors import ConfigurationError


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


SIZES = [(40, 40), (97, 64), (64, 97), (33, 200), (500, 41), (20, 31)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_squash_is_torchvisions_resize(width, height):
    image = noise(width, height)
    expected = v2.Compose([v2.Resize((32, 32)), ToTensor()])(image)
    torch.testing.assert_close(Preprocess(size=32)(image), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_crop_is_torchvisions_resize_and_centre_crop(width, height):
    image = noise(width, height)
    expected = v2.Compose([v2.Resize(32), v2.CenterCrop(32), ToTensor()])(image)
    torch.testing.assert_close(Preprocess(size=32, resize="crop")(image), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_channels(width, height, resize, channels):
    example = Preprocess(size=[16, 40], resize=resize, channels=channels)(noise(width, height))
    assert example.shape == (channels, 16, 40)
    assert example.dtype == torch.float32
    assert example.is_contiguous()
    assert 0 <= float(example.min()) <= float(example.max()) <= 1


def test_crop_keeps_the_aspect_ratio():
    image = Image.new("L", (300, 100))
    image.paste(255, (100, 0, 200, 100))  # a white square in the middle
    assert float(Preprocess(size=20, resize="crop", channels=1)(image).mean()) > 0.98
    assert float(Preprocess(size=20, channels=1)(image).mean()) == pytest.approx(1 / 3, abs=0.02)


def test_grey_is_the_same_in_every_channel():
    example = Preprocess(size=16)(noise(30, 30).convert("L"))
    assert torch.equal(example[0], example[1])
    assert torch.equal(example[0], example[2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 0}, "preprocess.size"),
        ({"size": [32]}, "preprocess.size"),
        ({"size": [32, 32, 32, 32]}, "preprocess.size"),
        ({"resize": "pad"}, "squash, crop or keep"),
        ({"channels": 2}, "preprocess.channels"),
        ({"mean": [0.5]}, "preprocess.mean.*3 numbers"),
        ({"mean": "test"}, "preprocess.mean"),
        ({"std": [1.0, 0.0, 1.0]}, "numbers, each at least 0.0001"),
    ],
)
def test_settings_that_cannot_work(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        Preprocess(**settings)
