"""The drawn images: reproducible, in range, and different where the finding is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpfl.data import Phantom, Preprocess
from medpfl.data.phantom import chest, head, skin
from medpfl.data.phantom.canvas import SIZE, Random
from medpfl.errors import ConfigurationError
from medpfl.seeding import generator


def load(*, seed=0, size=32, n_images=None, channels=3, **settings):
    preprocess = Preprocess(size=size, channels=channels)
    return Phantom(**settings).load(preprocess=preprocess, n_images=n_images, seed=seed)


def test_the_default_has_six_classes_in_order():
    data = load()
    assert data.synthetic
    assert data.classes == (
        "head_healthy",
        "head_lesion",
        "chest_clear",
        "chest_opacity",
        "skin_regular",
        "skin_irregular",
    )
    assert data.images.labels.bincount().tolist() == [32] * 6
    assert data.images.labels.tolist() == sorted(data.images.labels.tolist())
    assert len(set(data.images.ids)) == 192
    assert data.images.ids[33] == "head_lesion/0001"
    assert data.selected == tuple(range(0, 192, 2))
    assert data.source == "generated from seed 0"


@pytest.mark.parametrize("size", [32, 48, 224])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_range(size, channels):
    data = load(size=size, channels=channels, per_class=1)
    for index in range(6):
        image = data.images.load(index)
        assert image.shape == data.spec.shape == (channels, size, size)
        assert image.dtype == torch.float32
        assert 0 <= float(image.min()) < 0.4 < float(image.max()) <= 1


def test_an_image_depends_on_seed_class_and_number_alone():
    everything, some = load(), load(kinds=["skin", "head"], per_class=3)
    for index, name in enumerate(some.images.ids):
        twin = everything.images.ids.index(name)
        assert torch.equal(some.images.load(index), everything.images.load(twin))
    other = load(seed=1)
    for index in (0, 40, 80, 120, 160):
        assert not torch.equal(everything.images.load(index), other.images.load(index))
    images = torch.stack([some.images.load(i) for i in range(len(some.images))])
    assert len(images.unique(dim=0)) == len(images)


def test_head_and_chest_are_grey_and_skin_is_not():
    data = load(per_class=2)
    for index, label in enumerate(data.images.labels.tolist()):
        image = data.images.load(index)
        colourful = float((image[0] - image[2]).abs().mean())
        assert (colourful > 0.1) == (label >= 4)


@pytest.mark.parametrize("kind", [head, chest, skin])
def test_a_finding_changes_the_picture_visibly_at_32_pixels(kind):
    data = load(kinds=[kind.__name__.rsplit(".", 1)[1]], per_class=24)
    images = torch.stack([data.images.load(i) for i in range(48)]).flatten(1)
    healthy, finding = images[:24], images[24:]
    # A nearest-centroid rule fitted on one half must beat chance on the other.
    centres = torch.stack([healthy[::2].mean(0), finding[::2].mean(0)])
    guesses = torch.cdist(torch.cat([healthy[1::2], finding[1::2]]), centres).argmin(1)
    truth = torch.arange(2).repeat_interleave(12)
    assert float((guesses == truth).float().mean()) >= 0.65


@pytest.mark.parametrize("kind", [head, chest, skin])
@pytest.mark.parametrize("finding", [False, True])
def test_drawings_fill_the_canvas_with_finite_numbers(kind, finding):
    for number in range(5):
        drawing = kind.draw(Random(generator(3, "test", number)), finding)
        assert drawing.shape[:2] == (SIZE, SIZE)
        assert np.isfinite(drawing).all()
        assert 0 <= drawing.min() < drawing.max() <= 1


@pytest.mark.parametrize(
    "settings",
    [
        {"kinds": []},
        {"kinds": "head"},
        {"kinds": ["knee"]},
        {"kinds": ["head", "head"]},
        {"per_class": 0},
    ],
)
def test_settings_that_cannot_work(settings):
    with pytest.raises(ConfigurationError):
        Phantom(**settings)
