"""Anyone's folder of images: order, split, damaged files, and folders that are not laid out so."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from medpfl.data import ImageFolder, Preprocess
from medpfl.errors import ConfigurationError, DataError

PREPROCESS = Preprocess(size=8)


def make(root, counts):
    """Write `counts[class]` flat images; class k, image i has the grey level 40 k + i."""
    for label, (name, count) in enumerate(sorted(counts.items())):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (10, 12), 40 * label + i).save(root / name / f"img{i}.png")
    return root


def load(root, *, n_images=None, seed=0, preprocess=PREPROCESS, **settings):
    source = ImageFolder(root=str(root), **settings)
    return source.load(preprocess=preprocess, n_images=n_images, seed=seed)


def test_order_labels_and_pixels_are_those_of_torchvisions_image_folder(tmp_path):
    make(tmp_path, {"tumour": 12, "Healthy": 11, "a b": 3})
    (tmp_path / "tumour" / "deeper").mkdir()
    Image.new("L", (5, 5), 200).save(tmp_path / "tumour" / "deeper" / "img0.png")
    data = load(tmp_path, split="all")
    reference = TorchvisionFolder(str(tmp_path))
    assert list(data.classes) == reference.classes
    assert data.images.labels.tolist() == reference.targets
    for index, (image, _) in enumerate(reference):
        torch.testing.assert_close(data.images.load(index), PREPROCESS(image), rtol=0, atol=0)
    assert data.images.ids[:3] == ("Healthy/img0", "Healthy/img1", "Healthy/img10")
    assert data.images.ids[-1] == "tumour/deeper/img0"


def test_the_split_is_stratified_disjoint_complete_and_seeded(tmp_path):
    make(tmp_path, {"a": 40, "b": 8, "c": 1})
    everything, train, test = (load(tmp_path, split=s) for s in ("all", "train", "test"))
    assert sorted(train.images.ids + test.images.ids) == sorted(everything.images.ids)
    assert Counter(train.images.labels.tolist()) == {0: 30, 1: 6, 2: 1}
    assert Counter(test.images.labels.tolist()) == {0: 10, 1: 2}
    assert test.train.ids == everything.train.ids == train.images.ids
    assert train.images.ids == load(tmp_path).images.ids
    assert train.images.ids != load(tmp_path, seed=1).images.ids


def test_ids_keep_their_suffix_where_two_files_share_a_name(tmp_path):
    make(tmp_path, {"a": 2, "b": 2})
    Image.new("L", (5, 5)).save(tmp_path / "a" / "img0.bmp")
    ids = load(tmp_path, split="all").images.ids
    assert ids == ("a/img0.bmp", "a/img0.png", "a/img1", "b/img0", "b/img1")


def test_other_files_are_ignored_and_counted_but_hidden_ones_are_nothing(tmp_path):
    make(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "b" / "img0.csv").write_text("x")
    (tmp_path / "a" / "._img0.png").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "README.md").write_text("x")
    data = load(tmp_path, split="all")
    assert data.classes == ("a", "b")
    assert len(data.images) == 6
    assert "ignored: 2 files that are not images" in data.notes


def test_what_the_data_says_of_itself(tmp_path):
    make(tmp_path, {"a": 4, "b": 4})
    data = load(tmp_path, split="all", select=["b/img1", "a/img0.png"], name="mine")
    assert (data.name, data.synthetic, data.source) == ("mine", False, str(tmp_path))
    assert (data.spec.shape, data.spec.num_classes) == ((3, 8, 8), 2)
    assert (data.spec.mean, data.spec.std) == ((0.0,) * 3, (1.0,) * 3)
    assert data.selected == (5, 0)
    assert "attacked images a class: a 1, b 1" in data.notes


def test_statistics_are_those_of_the_training_pixels(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    preprocess = Preprocess(size=8, mean="train", std="train")
    data = load(tmp_path, preprocess=preprocess, split="test")
    pixels = torch.stack([data.train.load(i) for i in range(len(data.train))]).double()
    assert len(data.train) == 8
    torch.testing.assert_close(
        torch.tensor(data.spec.mean).double(), pixels.mean((0, 2, 3)), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        torch.tensor(data.spec.std).double(),
        pixels.std((0, 2, 3), correction=0),
        atol=1e-6,
        rtol=0,
    )
    torch.testing.assert_close(data.mean_image().double(), pixels.mean(0), atol=1e-6, rtol=0)


def test_flat_images_have_no_usable_deviation(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (5, 5), 7).save(tmp_path / name / "x.png")
    with pytest.raises(DataError, match="constant"):
        load(tmp_path, preprocess=Preprocess(size=8, std="train"))


def damaged(tmp_path):
    """Forty images, of which two selected ones do not begin like pictures and one is cut short."""
    make(tmp_path, {"a": 20, "b": 20})
    (tmp_path / "a" / "img0.png").write_bytes(b"")
    (tmp_path / "a" / "img1.png").write_text("no picture")
    cut = tmp_path / "b" / "img3.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    return tmp_path


def test_damaged_files_stop_the_run_with_all_their_names(tmp_path):
    with pytest.raises(DataError, match="3 of the selected images cannot be read") as raised:
        load(damaged(tmp_path), split="all")
    for name in ("img0.png", "img1.png", "img3.png", "dataset.on_error=skip"):
        assert name in str(raised.value)


def test_damaged_files_are_left_out_and_replaced(tmp_path):
    data = load(damaged(tmp_path), split="all", on_error="skip")
    assert data.skipped == ("a/img0.png", "a/img1.png", "b/img3.png")
    assert len(data.images) == len(data.selected) == 37
    assert not {"a/img0", "a/img1", "b/img3"} & set(data.images.ids)
    for index in data.selected:
        data.images.load(index)
    assert any("3 files: a/img0.png, a/img1.png, b/img3.png" in note for note in data.notes)
    assert len(load(tmp_path, split="all", on_error="skip", n_images=37).selected) == 37
    with pytest.raises(DataError, match="37"):
        load(tmp_path, split="all", on_error="skip", n_images=38)


def test_damaged_files_that_are_not_attacked_do_not_stop_the_run(tmp_path):
    damaged(tmp_path)
    raising = load(tmp_path, split="all", select=["a/img5"])
    assert len(raising.images) == 40
    remedy = r"cannot read the image [ab]/img\d\.png: .*leave it out with dataset\.on_error=skip"
    with pytest.raises(DataError, match=remedy):
        raising.images.load(0)
    with pytest.raises(DataError, match=remedy):
        raising.mean_image()
    statistics = Preprocess(size=8, mean="train")
    with pytest.raises(DataError, match=remedy):
        load(tmp_path, split="all", select=["a/img5"], preprocess=statistics)
    skipping = load(tmp_path, split="all", select=["a/img5"], on_error="skip")
    assert skipping.mean_image().shape == (3, 8, 8)
    cut = skipping.images.ids.index("b/img3")
    with pytest.raises(DataError, match="on_error=skip kept it: replace or remove the file"):
        skipping.images.load(cut)


def test_sizes_that_are_no_picture_are_left_out(tmp_path):
    make(tmp_path, {"a": 3, "b": 3})
    Image.new("1", (1, 50_000)).save(tmp_path / "a" / "line.png")
    with pytest.raises(DataError, match=r"a/line\.png: it has 1 x 50000 pixels"):
        load(tmp_path, split="all")
    assert load(tmp_path, split="all", on_error="skip").skipped == ("a/line.png",)


def test_a_change_of_one_image_does_not_reach_the_next_reader(tmp_path):
    data = load(make(tmp_path, {"a": 2, "b": 2}), split="all")
    data.images.load(1).zero_()
    assert float(data.images.load(1).max()) > 0


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, "0 class folders"),
        ({"a": 3}, "1 class folders"),
        ({"a": 3, "b": 0}, "class 'b' has no images"),
        ({"train": 3, "test": 3}, "folders of splits"),
    ],
)
def test_folders_that_are_not_laid_out_so(tmp_path, counts, words):
    with pytest.raises(DataError, match=words):
        load(make(tmp_path, counts))


def test_no_root_and_a_missing_root(tmp_path):
    with pytest.raises(ConfigurationError, match=r"dataset\.root is not set"):
        ImageFolder()
    with pytest.raises(DataError, match="nowhere is not a folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("~nobody_here/x", "home folder of this user is not known"),
        ("a\0b", "NUL"),
        ("n" * 300, "dataset.root=n*: the path is longer"),
        ("", "dataset.root is not set"),
    ],
    ids=["no user", "NUL", "long", "empty"],
)
def test_roots_that_are_no_path(root, words):
    with pytest.raises((DataError, ConfigurationError), match=words):
        ImageFolder(root=root).load(preprocess=PREPROCESS, n_images=None, seed=0)


def test_an_empty_test_split_says_what_to_change(tmp_path):
    with pytest.raises(DataError, match="test_fraction"):
        load(make(tmp_path, {"a": 4, "b": 4}), split="test", test_fraction=0)


@pytest.mark.parametrize(
    "settings", [{"split": "val"}, {"test_fraction": 1.0}, {"on_error": "ignore"}]
)
def test_settings_that_cannot_work(tmp_path, settings):
    with pytest.raises(ConfigurationError):
        ImageFolder(root=str(tmp_path), **settings)
