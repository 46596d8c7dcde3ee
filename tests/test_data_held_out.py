"""Images that no client trains on, and the folders that images lie in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers import sample_images
from PIL import Image

from medpfl.data import ImageFolder, KaggleDataset, LoadedData, Phantom, Preprocess, kaggle
from medpfl.data.catalogue import CATALOGUE
from medpfl.errors import DataError

SIZE = 8


@pytest.fixture(autouse=True)
def _no_other_places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))


def draw(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 6), shade).save(path)


@pytest.fixture
def dataset(tmp_path) -> Path:
    """A Kaggle dataset of two images a class and split."""
    entry = CATALOGUE["covid"]
    folder = tmp_path / "covid" / entry.inner
    for split in ("train", "test"):
        for name in entry.classes:
            for number in range(2):
                draw(folder / split / name / f"{split}{number}.png", 10 * number)
    return folder


def load(source) -> LoadedData:
    return source.load(preprocess=Preprocess(size=SIZE), n_images=None, seed=0)


def covid(dataset: Path, **settings) -> LoadedData:
    return load(KaggleDataset(name="covid", root=str(dataset), download=False, **settings))


def folder(root: Path, **settings) -> LoadedData:
    return load(ImageFolder(root=str(root), **settings))


@pytest.mark.parametrize(("attacked", "other"), [("train", "test"), ("test", "train")])
def test_of_a_published_dataset_the_other_split_is_held_out(dataset, attacked, other):
    data = covid(dataset, split=attacked)
    assert data.held_out is not None
    assert data.held_out.ids == covid(dataset, split=other).images.ids
    assert data.held_out.labels.bincount().tolist() == [2, 2, 2]
    assert data.held_out.load(1).shape == data.spec.shape
    assert (data.held_out is data.train) == (other == "train")


@pytest.mark.parametrize("attacked", ["train", "test"])
def test_no_split_is_listed_twice(dataset, attacked, monkeypatch):
    listed = []

    def note(place, *args, **kwargs):
        listed.append(place.name)
        return kaggle_list(place, *args, **kwargs)

    kaggle_list = kaggle.list_images
    monkeypatch.setattr(kaggle, "list_images", note)
    covid(dataset, split=attacked)
    assert sorted(listed) == ["test", "train"]


def test_without_the_other_split_nothing_is_held_out(dataset):
    shutil.rmtree(dataset / "test")
    assert covid(dataset).held_out is None


def test_a_test_split_with_faults_stops_no_attack(dataset):
    whole = covid(dataset)
    for file in (dataset / "test" / "Covid").iterdir():
        file.unlink()
    data = covid(dataset)
    assert data.held_out is None
    assert (data.selected, data.notes, data.skipped) == (whole.selected, whole.notes, ())


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_held_out_file_is_opened_when_it_is_read(dataset, on_error):
    (dataset / "test" / "Covid" / "test0.png").write_bytes(b"no picture")
    data = covid(dataset, on_error=on_error)
    assert data.skipped == ()
    assert data.held_out is not None
    with pytest.raises(DataError, match=r"test/Covid/test0\.png"):
        data.held_out.load(0)
    if on_error == "skip":
        assert len(list(data.held_out.sample())) == 5


def test_of_a_folder_the_other_part_is_held_out(tmp_path):
    for name in ("a/0.png", "a/1.png", "a/2.png", "a/3.png", "b/0.png", "b/1.png"):
        draw(tmp_path / "pictures" / name)
    train, test, everything = (
        folder(tmp_path / "pictures", split=split, test_fraction=0.5)
        for split in ("train", "test", "all")
    )
    assert train.held_out is not None
    assert train.held_out.ids == test.images.ids
    assert test.held_out is test.train
    assert test.train.ids == train.images.ids
    assert everything.held_out is None
    assert folder(tmp_path / "pictures", test_fraction=0.0).held_out is None


@pytest.mark.parametrize(("per_class", "more"), [(1, 1), (4, 1), (5, 2), (32, 8)])
def test_of_the_phantom_the_next_numbers_are_held_out(per_class, more):
    data = load(Phantom(kinds=["skin", "head"], per_class=per_class))
    assert data.held_out is not None
    numbers = range(per_class, per_class + more)
    assert data.held_out.ids == tuple(f"{c}/{n:04d}" for c in data.classes for n in numbers)
    assert data.held_out.labels.tolist() == [k for k in range(4) for _ in numbers]
    larger = load(Phantom(kinds=["skin", "head"], per_class=per_class + more))
    for index, name in enumerate(data.held_out.ids):
        twin = larger.images.load(larger.images.ids.index(name))
        assert torch.equal(data.held_out.load(index), twin)
    attacked = torch.stack([data.images.load(i) for i in range(len(data.images))])
    held_out = torch.stack([data.held_out.load(i) for i in range(len(data.held_out))])
    assert not (attacked[:, None] == held_out[None]).flatten(2).all(-1).any()


HOSPITALS = ("a/east/1.png", "a/east/2.png", "a/west/in/1.png", "a/1.png", "b/west/1.png")


@pytest.fixture
def hospitals(tmp_path) -> Path:
    for name in HOSPITALS:
        draw(tmp_path / "pictures" / name)
    return tmp_path / "pictures"


def test_images_know_the_folder_below_their_class(hospitals):
    images = folder(hospitals, split="all").images
    assert dict(zip(images.ids, images.folders, strict=True)) == {
        "a/1": "",
        "a/east/1": "east",
        "a/east/2": "east",
        "a/west/in/1": "west",
        "b/west/1": "west",
    }
    assert load(Phantom(per_class=1)).images.folders == ()


def test_folders_follow_their_images_through_splits_and_faults(hospitals):
    (hospitals / "a" / "1.png").write_bytes(b"no picture")
    data = folder(hospitals, split="all", on_error="skip")
    assert data.images.ids[0] == "a/east/1"
    assert data.images.folders == ("east", "east", "west", "west")
    for part in (data.train, folder(hospitals, on_error="skip").images):
        for name, where in zip(part.ids, part.folders, strict=True):
            assert name.split("/")[1] == where


def test_hashed_ids_hide_the_folders_and_keep_them_apart(hospitals):
    named = folder(hospitals, split="all").images.folders
    hashed = folder(hospitals, split="all", ids="hashed").images.folders
    assert [name == "" for name in hashed] == [name == "" for name in named]
    assert not {"east", "west"} & set(hashed)
    assert len(set(zip(named, hashed, strict=True))) == len(set(named)) == len(set(hashed)) == 3


@pytest.mark.real_data
@pytest.mark.parametrize("name", list(CATALOGUE))
def test_the_real_datasets_hold_images_out(name):
    root = sample_images(name)
    data = load(KaggleDataset(name=name, root=str(root), download=False))
    assert data.held_out is not None
    assert not set(data.held_out.ids) & set(data.images.ids)
    assert data.held_out.load(len(data.held_out) - 1).shape == data.spec.shape
