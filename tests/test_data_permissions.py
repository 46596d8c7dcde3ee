"""What an ordinary user may not read: one message that names the setting and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from ordinary import Ordinary, give_away, own_folder
from PIL import Image

from medpfl.data import ImageFolder, KaggleDataset, LoadedData, Preprocess
from medpfl.data.catalogue import CATALOGUE
from medpfl.models.weights import read_state

pytestmark = pytest.mark.skipif(os.name == "nt", reason="permissions of another kind")

COVID = CATALOGUE["covid"]
CLOSED, NOT_LISTED, NOT_ENTERED = 0o000, 0o300, 0o600


@pytest.fixture(scope="module")
def ordinary() -> Iterator[Ordinary]:
    """A process that may not read everything."""
    process = Ordinary(load_mine, load_covid, read_state)
    yield process
    process.end()


@pytest.fixture
def outcome(ordinary: Ordinary) -> Callable[..., str]:
    """Do a task as an ordinary user."""
    return ordinary.outcome


@pytest.fixture
def home() -> Iterator[Path]:
    """An ordinary user's folder, with a dataset of their own, the COVID one and weights."""
    with own_folder() as folder:
        pictures(folder / "mine", ["healthy", "tumour", "tumour/deeper"])
        for split in ("train", "test"):
            pictures(folder / "data/covid" / COVID.inner / split, COVID.classes)
        torch.save({}, folder / "w.pt")
        give_away(folder)
        yield folder


def pictures(folder: Path, classes: list[str] | tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def load_mine(root: str, settings: Mapping[str, object]) -> str:
    return told(ImageFolder(root=root, split="all", **settings).load(**RUN))


def load_covid(root: str | None, settings: Mapping[str, object]) -> str:
    return told(KaggleDataset(name="covid", root=root, download=False, **settings).load(**RUN))


RUN = {"preprocess": Preprocess(size=8), "n_images": None, "seed": 0}


def told(data: LoadedData) -> str:
    return f"{len(data.images)} images; {'; '.join(data.notes)}"


def refused(message: str, *words: str) -> None:
    assert message.startswith("DataError: "), message
    assert "no permission" in message or "Give yourself access" in message
    assert "chmod" in message
    for word in words:
        assert word in message


def test_what_is_open_can_be_read(outcome, home):
    assert outcome(load_mine, str(home / "mine"), {}).startswith("9 images")
    assert outcome(load_covid, str(home / "data"), {}).startswith("9 images")


@pytest.mark.parametrize("mode", [CLOSED, NOT_LISTED, NOT_ENTERED])
@pytest.mark.parametrize("closed", [".", "mine", "mine/tumour"])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_folder_of_ones_own_that_is_closed(outcome, home, mode, closed, on_error):
    (home / closed).chmod(mode)
    message = outcome(load_mine, str(home / "mine"), {"on_error": on_error})
    if closed == "." and mode == NOT_LISTED:  # it can be passed through
        assert message.startswith("9 images")
    elif closed == "mine/tumour" and mode == NOT_ENTERED:  # its files have names and no content
        # The folder below it cannot be listed either, which is said first.
        if on_error == "raise":
            refused(message, "1 folder inside", "mine/tumour", "dataset.on_error=skip")
        else:
            assert message.startswith("3 images; ")
            assert "folders that cannot be listed: 1 in tumour" in message
            assert "left out, cannot be read: 3 files: tumour/0.png" in message
    else:
        refused(message, "dataset.root", str(home / "mine"))


@pytest.mark.parametrize("mode", [CLOSED, NOT_LISTED])
@pytest.mark.parametrize("ids", ["name", "hashed"])
def test_a_closed_folder_inside_a_class_is_never_passed_over_in_silence(outcome, home, mode, ids):
    (home / "mine/tumour/deeper").chmod(mode)
    settings = {"ids": ids}
    state = {"XDG_STATE_HOME": str(home / "state")}
    message = outcome(load_mine, str(home / "mine"), settings, **state)
    refused(message, "dataset.root", "1 folder inside", "tumour", "dataset.on_error=skip")
    assert "deeper" not in message
    settings["on_error"] = "skip"
    message = outcome(load_mine, str(home / "mine"), settings, **state)
    assert message.startswith("6 images; ")
    assert "left out, folders that cannot be listed: 1 in tumour" in message


def test_a_closed_image(outcome, home):
    (home / "mine/tumour/1.png").chmod(CLOSED)
    message = outcome(load_mine, str(home / "mine"), {})
    refused(message, "cannot read the image tumour/1.png", "dataset.on_error=skip", str(home))
    message = outcome(load_mine, str(home / "mine"), {"on_error": "skip"})
    assert message.startswith("8 images; ")
    assert "left out, cannot be read: 1 files: tumour/1.png" in message


@pytest.mark.parametrize("mode", [CLOSED, NOT_ENTERED])
@pytest.mark.parametrize("closed", ["data", "data/covid", "data/covid/{}", "data/covid/{}/train"])
@pytest.mark.parametrize("found_by", ["dataset.root", "MEDPFL_DATA_ROOT"])
def test_a_published_dataset_that_is_closed(outcome, home, mode, closed, found_by):
    (home / closed.format(COVID.inner)).chmod(mode)
    root = str(home / "data") if found_by == "dataset.root" else None
    environment = {} if root else {"MEDPFL_DATA_ROOT": str(home / "data")}
    refused(outcome(load_covid, root, {}, **environment), found_by, str(home / "data"))


def test_a_class_of_a_published_dataset_that_cannot_be_listed(outcome, home):
    (home / "data/covid" / COVID.inner / "train/Normal").chmod(NOT_LISTED)
    refused(outcome(load_covid, str(home / "data"), {}), "train/Normal")


def test_a_cache_that_is_closed(outcome, home):
    (home / "cache").mkdir(mode=CLOSED)
    give_away(home / "cache")
    environment = {"KAGGLEHUB_CACHE": str(home / "cache"), "MEDPFL_DATA_ROOT": ""}
    refused(outcome(load_covid, None, {}, **environment), "KAGGLEHUB_CACHE")


@pytest.mark.parametrize(("closed", "mode"), [("w.pt", CLOSED), (".", NOT_ENTERED)])
def test_weights_that_are_closed(outcome, home, closed, mode):
    (home / closed).chmod(mode)
    refused(outcome(read_state, str(home / "w.pt")), f"model.weights={home / 'w.pt'}")


def test_salts_that_cannot_be_read_or_made(outcome, home):
    state = home / "state"
    environment = {"XDG_STATE_HOME": str(state)}
    state.mkdir(mode=0o500)
    give_away(state)
    arguments = (load_mine, str(home / "mine"))
    message = outcome(*arguments, {"ids": "hashed"}, **environment)
    refused(message, "XDG_STATE_HOME", str(state / "medpfl"))
    state.chmod(0o700)
    done = outcome(*arguments, {"ids": "hashed"}, **environment)
    assert done.startswith("9 images")
    salt = state / "medpfl/ids.salt"
    salt.chmod(CLOSED)
    refused(outcome(*arguments, {"ids": "hashed"}, **environment), str(salt))
    settings = {"ids": "hashed", "salt_file": str(salt)}
    refused(outcome(*arguments, settings), f"dataset.salt_file={salt}")


def test_a_map_that_cannot_be_written(outcome, home):
    (home / "mine").chmod(0o500)
    environment = {"XDG_STATE_HOME": str(home / "state")}
    settings = {"ids": "hashed", "id_map": True}
    message = outcome(load_mine, str(home / "mine"), settings, **environment)
    assert message.startswith("DataError: dataset.id_map=true: cannot write medpfl-ids.csv to ")
    assert "chmod u+w" in message
