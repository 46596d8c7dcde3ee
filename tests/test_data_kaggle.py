"""Finding the papers' datasets on this machine, and failing fast where they are not."""

from __future__ import annotations

from pathlib import Path

import kagglehub
import pytest
from kagglehub.cache import _get_completion_marker_filepath, get_cached_path
from kagglehub.handle import parse_dataset_handle
from PIL import Image

from medpfl.data import KaggleDataset, Preprocess, download
from medpfl.data.catalogue import CATALOGUE
from medpfl.errors import ConfigurationError, DataError

NAMES = tuple(CATALOGUE)


@pytest.fixture(autouse=True)
def _no_other_places(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDPFL_DATA_ROOT", raising=False)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setattr(download, "unreachable", lambda url: "no network in tests")


def place(entry, folder: Path, *, splits=("train", "test"), per_class=2) -> Path:
    """Write the dataset below a folder as Kaggle lays it out; return the folder of the splits."""
    dataset = folder / entry.inner
    for split in splits:
        for name in entry.classes:
            target = dataset / entry.splits[split][0] / name
            target.mkdir(parents=True)
            for i in range(per_class):
                Image.new("L", (6, 6), 10 * i).save(target / f"{split}{i}.png")
    return dataset


def load(name, *, n_images=None, **settings):
    source = KaggleDataset(name=name, **settings)
    return source.load(preprocess=Preprocess(size=8), n_images=n_images, seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_root_may_be_the_dataset_its_parent_or_a_level_between(name, tmp_path):
    dataset = place(CATALOGUE[name], tmp_path / name)
    for root in {dataset, tmp_path / name, tmp_path}:
        data = load(name, root=str(root))
        assert data.source == str(dataset)
        assert data.classes == CATALOGUE[name].classes
        assert len(data.images) == len(data.selected) == 2 * len(data.classes)
        assert data.images.ids[0].startswith(f"{data.classes[0]}/{CATALOGUE[name].published.split}")


@pytest.mark.parametrize("name", NAMES)
def test_the_paper_attacks_this_split_and_the_other_can_be_chosen(name, tmp_path):
    place(CATALOGUE[name], tmp_path)
    attacked = {"melanoma": "test", "covid": "train", "brain_mri": "train"}[name]
    assert attacked in load(name, root=str(tmp_path)).images.ids[0]
    for split in ("train", "test"):
        data = load(name, root=str(tmp_path), split=split)
        assert split in data.images.ids[0]
        assert "train" in data.train.ids[0]


def test_without_a_training_folder_the_attacked_split_is_the_training_split(tmp_path):
    place(CATALOGUE["melanoma"], tmp_path, splits=("test",))
    data = load("melanoma", root=str(tmp_path))
    assert data.train.ids == data.images.ids


def test_covid_may_spell_its_test_folder_val(tmp_path):
    dataset = place(CATALOGUE["covid"], tmp_path)
    (dataset / "test").rename(dataset / "val")
    assert len(load("covid", root=str(tmp_path), split="test").images) == 6


def test_the_published_size_takes_the_published_stride(tmp_path, monkeypatch):
    entry = CATALOGUE["covid"]
    place(entry, tmp_path)
    for i in range(251 - 6):
        Image.new("L", (6, 6)).save(tmp_path / entry.inner / "train" / "Covid" / f"more{i}.png")
    data = load("covid", root=str(tmp_path))
    assert data.selected == tuple(range(0, 251, 3))
    assert "the published stride" in data.notes[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_data_root_variable(name, tmp_path, monkeypatch):
    dataset = place(CATALOGUE[name], tmp_path / "data" / name)
    monkeypatch.setenv("MEDPFL_DATA_ROOT", str(tmp_path / "data"))
    assert load(name).source == str(dataset)


def cached(entry, version: int, *, complete=True) -> Path:
    """Place a version where kagglehub itself keeps it, with its own marker."""
    handle = parse_dataset_handle(f"{entry.handle}/versions/{version}")
    dataset = place(entry, Path(get_cached_path(handle)))
    if complete:
        marker = Path(_get_completion_marker_filepath(handle))
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    return dataset


@pytest.mark.parametrize("name", NAMES)
def test_the_newest_complete_download_is_found_without_network(name):
    entry = CATALOGUE[name]
    cached(entry, 2)
    newest = cached(entry, 10)
    cached(entry, 11, complete=False)
    assert load(name, download=False).source == str(newest)


def test_a_download_is_made_where_nothing_is_found(tmp_path, monkeypatch):
    entry = CATALOGUE["covid"]
    asked = []

    def fetch(handle):
        asked.append(handle)
        place(entry, tmp_path / "fetched")
        return str(tmp_path / "fetched")

    monkeypatch.setattr(download, "unreachable", lambda url: None)
    monkeypatch.setattr(kagglehub, "dataset_download", fetch)
    assert load("covid").source == str(tmp_path / "fetched" / entry.inner)
    assert asked == ["pranavraikokte/covid19-image-dataset"]


@pytest.mark.parametrize("fault", [OSError("disk full"), ConnectionError("reset")])
def test_a_download_that_fails_says_why(monkeypatch, fault):
    def fetch(handle):
        raise fault

    monkeypatch.setattr(download, "unreachable", lambda url: None)
    monkeypatch.setattr(kagglehub, "dataset_download", fetch)
    with pytest.raises(DataError, match=str(fault)):
        load("covid")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_dataset_names_every_place_and_the_remedy(name, tmp_path, monkeypatch):
    entry = CATALOGUE[name]
    monkeypatch.setenv("MEDPFL_DATA_ROOT", str(tmp_path / "data"))
    with pytest.raises(DataError) as raised:
        load(name)
    message = str(raised.value)
    for words in (
        str(tmp_path / "data" / name),
        str(tmp_path / "kagglehub" / "datasets" / entry.handle),
        "no network in tests",
        entry.handle,
        f"https://www.kaggle.com/datasets/{entry.handle}",
        f"{entry.splits['train'][0]}/{entry.classes[0]}",
        "dataset.root",
    ):
        assert words in message


def test_download_false_does_not_ask(monkeypatch):
    monkeypatch.setattr(download, "unreachable", lambda url: pytest.fail("asked"))
    with pytest.raises(DataError, match=r"dataset\.download=false"):
        load("covid", download=False)


def test_a_wrong_root_fails_at_once_and_says_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "unreachable", lambda url: pytest.fail("asked"))
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match=r"(?s)holds the folders cats.*Covid19-dataset/train/Covid"):
        load("covid", root=str(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        load("covid", root=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("~nobody_here/x", "MEDPFL_DATA_ROOT=~nobody_here/x: the home folder of this user is not"),
        ("n" * 300, "MEDPFL_DATA_ROOT: .*longer than the file system takes"),
        ("n/" * 3000, "MEDPFL_DATA_ROOT: .*longer than the file system takes"),
        ("", r"\$MEDPFL_DATA_ROOT: not set"),
    ],
    ids=["no user", "a long name", "a long path", "empty"],
)
def test_a_data_root_that_is_no_path(monkeypatch, value, words):
    monkeypatch.setenv("MEDPFL_DATA_ROOT", value)
    with pytest.raises(DataError, match=words):
        load("covid", download=False)
    if value:
        monkeypatch.delenv("MEDPFL_DATA_ROOT")
        with pytest.raises(DataError, match=words.replace("MEDPFL_DATA_ROOT", r"dataset\.root")):
            load("covid", root=value, download=False)


@pytest.mark.parametrize("value", ["~nobody_here/x", "n" * 300, "n/" * 3000, ""])
def test_a_cache_that_is_no_path(tmp_path, monkeypatch, value):
    monkeypatch.setenv("KAGGLEHUB_CACHE", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    long = "KAGGLEHUB_CACHE: .*longer than the file system takes"
    with pytest.raises(DataError, match=long if len(value) > 99 else "no complete download"):
        load("covid", download=False)


def test_a_cache_without_a_home(monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("KAGGLEHUB_CACHE")
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(DataError, match=r"KAGGLEHUB_CACHE=~/\.cache/kagglehub: the home folder"):
        load("covid", download=False)


@pytest.mark.parametrize("root", ["a\0b", ""])
def test_roots_of_no_or_odd_text(root):
    with pytest.raises(DataError, match="NUL" if root else "was not found"):
        load("covid", root=root, download=False)


def test_names_of_folders_in_a_wrong_root_are_private_where_ids_are_hashed(tmp_path):
    (tmp_path / "Surname").mkdir()
    with pytest.raises(DataError, match="it holds 1 folders") as refused:
        load("covid", root=str(tmp_path), ids="hashed", salt_file=_salt(tmp_path))
    assert "Surname" not in str(refused.value)


def _salt(folder: Path) -> str:
    (folder / "salt").write_text("s" * 32)
    return str(folder / "salt")


def test_an_empty_class_is_named(tmp_path):
    dataset = place(CATALOGUE["covid"], tmp_path)
    for file in (dataset / "train" / "Normal").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="class 'Normal' has no images"):
        load("covid", root=str(tmp_path))


@pytest.mark.parametrize(
    "settings", [{"name": "mnist"}, {"name": "covid", "split": "val"}, {"on_error": "drop"}]
)
def test_settings_that_cannot_work(settings):
    with pytest.raises(ConfigurationError):
        KaggleDataset(**{"name": "covid", **settings})
