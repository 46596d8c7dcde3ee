"""The sample images of ``$MEDPFL_DATA_ROOT``: native layouts, sizes and pixel formats."""

from __future__ import annotations

import pytest
from helpers import sample_images

from medpfl.data import ImageFolder, KaggleDataset, Preprocess

pytestmark = pytest.mark.real_data


def load(source, n_images=None):
    return source.load(preprocess=Preprocess(size=32), n_images=n_images, seed=0)


def folder(name: str) -> str:
    return str(sample_images(name))


@pytest.mark.parametrize(
    ("name", "inside", "split", "size", "selected"),
    [
        ("brain_mri", "brain_mri", "train", 198, 99),
        ("covid", "covid_640px", "train", 226, 76),
        ("covid", "covid_640px", "test", 51, 51),
        ("melanoma", "melanoma", "train", 119, 60),
    ],
)
def test_sizes_and_strides(name, inside, split, size, selected):
    data = load(KaggleDataset(name=name, root=folder(inside), split=split))
    assert len(data.images) == size
    assert len(data.selected) == selected
    assert data.skipped == ()


def test_the_sets_are_found_below_the_data_root():
    folder("brain_mri")
    data = load(KaggleDataset(name="brain_mri", download=False), n_images=8)
    assert len(data.selected) == 8
    assert {int(data.images.labels[i]) for i in data.selected} == {0, 1, 2, 3}
    assert data.images.ids[0].startswith("glioma/Tr-gl_")


def test_native_radiographs_of_every_pixel_format_can_be_read():
    data = load(KaggleDataset(name="covid", root=folder("covid"), split="test"))
    for index in data.selected:
        image = data.images.load(index)
        assert image.shape == (3, 32, 32)
        assert 0 <= float(image.min()) < float(image.max()) <= 1


def test_a_set_read_as_anyones_folder_has_the_same_images():
    root = folder("brain_mri")
    ours = load(KaggleDataset(name="brain_mri", root=root), n_images=4)
    anyone = load(ImageFolder(root=f"{root}/Training", split="all"), n_images=4)
    assert ours.images.ids == anyone.images.ids
    assert ours.classes == anyone.classes
