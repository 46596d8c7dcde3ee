"""What images are called: names as ever, hashes that tell nothing, and names that are not UTF-8."""

from __future__ import annotations

import csv
import hashlib
import hmac
import os
import stat
import threading
from pathlib import Path

import pytest
from PIL import Image

from medpfl.data import ImageFolder, KaggleDataset, Preprocess
from medpfl.data.catalogue import CATALOGUE
from medpfl.data.ids import ID_MAP, Naming
from medpfl.data.salt import read_salt
from medpfl.errors import ConfigurationError, DataError

FILES = ("a/x.png", "a/x.jpg", "a/y.png", "a/deep/y.png", "b/x.png", "b/z.png")


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "medpfl" / "ids.salt"


@pytest.fixture
def root(tmp_path) -> Path:
    return make(tmp_path / "pictures", FILES)


def make(root: Path, files) -> Path:
    for number, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        kind = "JPEG" if name.endswith("jpg") else "PNG"
        Image.new("L", (9, 9), 10 + number).save(os.fspath(root / name), kind)
    return root


def load(root: Path, **settings):
    source = ImageFolder(root=str(root), split="all", **settings)
    return source.load(preprocess=Preprocess(size=8), n_images=None, seed=0)


def refusal(root: Path, **settings) -> str:
    with pytest.raises((DataError, ConfigurationError)) as refused:
        load(root, **settings)
    return str(refused.value)


def test_names_are_as_ever_and_need_no_salt(root, state):
    assert load(root).images.ids == ("a/x.jpg", "a/x.png", "a/y", "a/deep/y", "b/x", "b/z")
    assert not state.exists()


def test_a_hashed_id_is_the_keyed_hash_of_the_path_and_says_nothing_else(root, state):
    data = load(root, ids="hashed")
    key = state.read_bytes().strip()
    for number, name in enumerate(("a/x.jpg", "a/x.png", "a/y.png", "a/deep/y.png")):
        digest = hmac.new(key, name.encode(), hashlib.sha256).hexdigest()
        assert data.images.ids[number] == f"h{digest[:16]}"
    assert len(set(data.images.ids)) == len(FILES)
    assert load(root, ids="hashed").images.ids == data.images.ids
    state.unlink()
    assert not set(load(root, ids="hashed").images.ids) & set(data.images.ids)


def test_the_images_and_their_order_are_those_of_names(root):
    named, hashed = load(root), load(root, ids="hashed")
    assert named.selected == hashed.selected
    assert named.images.labels.tolist() == hashed.images.labels.tolist()
    for index in range(len(named.images)):
        assert named.images.load(index).equal(hashed.images.load(index))


def test_the_salt_is_the_owners_alone_and_made_once(state):
    umask = os.umask(0)
    try:
        salts: list[bytes] = []
        threads = [threading.Thread(target=lambda: salts.append(read_salt(None))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.umask(umask)
    assert len(salts) == 8
    assert len(set(salts)) == 1
    assert len(bytes.fromhex(salts[0].decode())) == 32
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.parent.stat().st_mode) == 0o700
    assert list(state.parent.iterdir()) == [state]


def test_a_disk_without_hard_links_holds_a_salt_too(monkeypatch):
    def refuse(*paths):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert read_salt(None) == read_salt(None)


def test_another_salt_is_anothers_choice(root, tmp_path, state):
    (tmp_path / "team").write_text("s" * 40 + "\n")
    shared = load(root, ids="hashed", salt_file=str(tmp_path / "team"))
    assert not state.exists()
    (tmp_path / "same").write_text("s" * 40)
    again = load(root, ids="hashed", salt_file=str(tmp_path / "same"))
    assert again.images.ids == shared.images.ids != load(root, ids="hashed").images.ids


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "32 to 4096"), (b"short", "32 to 4096"), (b" " * 99, "32 to 4096"), (b"x" * 5000, "32")],
)
def test_salts_that_are_none(root, tmp_path, content, words):
    path = tmp_path / "salt"
    path.write_bytes(content)
    message = refusal(root, ids="hashed", salt_file=str(path))
    assert f"dataset.salt_file={path}" in message
    assert words in message


def test_a_salt_that_is_not_there_is_not_made_by_mistake(root, tmp_path, monkeypatch):
    for path in (tmp_path / "nowhere", tmp_path):
        assert "no such file; make one with" in refusal(root, ids="hashed", salt_file=str(path))
    assert "longer than" in refusal(root, ids="hashed", salt_file="n" * 300)
    assert "home folder" in refusal(root, ids="hashed", salt_file="~nobody_here/x")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert "XDG_STATE_HOME" in refusal(root, ids="hashed")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert "must be a full path" in refusal(root, ids="hashed")


def test_an_empty_state_variable_is_one_that_is_not_set(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    salt = read_salt(None)
    assert (tmp_path / "home/.local/state/medpfl/ids.salt").read_bytes().strip() == salt


def test_the_map_is_beside_the_data_on_request_alone(root):
    load(root, ids="hashed")
    assert not (root / ID_MAP).exists()
    data = load(root, ids="hashed", id_map=True)
    with (root / ID_MAP).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image_id", "file"]
    assert [row[0] for row in rows[1:]] == list(data.images.ids)
    assert sorted(row[1] for row in rows[1:]) == sorted(FILES)
    assert stat.S_IMODE((root / ID_MAP).stat().st_mode) == 0o600
    again = load(root, ids="hashed", id_map=True)
    assert again.images.ids == data.images.ids
    assert "ignored" not in " ".join(again.notes)


def test_a_published_dataset_has_one_id_an_image_and_a_map_of_all_splits(tmp_path):
    entry = CATALOGUE["covid"]
    places = [
        f"{entry.inner}/{split}/{name}/0.png" for split in entry.splits for name in entry.classes
    ]
    make(tmp_path / "data", places)

    def of(split: str, root: Path, **settings):
        source = KaggleDataset(name="covid", root=str(root), split=split, ids="hashed", **settings)
        return source.load(preprocess=Preprocess(size=8), n_images=None, seed=0)

    train = of("train", tmp_path / "data", id_map=True)
    test = of("test", tmp_path / "data" / entry.inner)
    assert test.train.ids == train.images.ids
    assert len(set(train.images.ids + test.images.ids)) == len(places)
    with (tmp_path / "data" / entry.inner / ID_MAP).open(encoding="utf-8") as file:
        assert {row["image_id"] for row in csv.DictReader(file)} == {
            *train.images.ids,
            *test.images.ids,
        }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ids": "hash"}, "use name or hashed"),
        ({"id_map": True}, "dataset.id_map is for dataset.ids=hashed"),
        ({"salt_file": "x"}, "dataset.salt_file is for dataset.ids=hashed"),
    ],
)
def test_settings_that_do_not_go_together(root, settings, words):
    assert words in refusal(root, **settings)


def test_images_are_listed_by_hashed_ids_and_names_are_not_repeated(root):
    ids = load(root, ids="hashed").images.ids
    data = load(root, ids="hashed", select=[ids[3], ids[0]])
    assert data.selected == (3, 0)
    assert "no image is called 'h" in refusal(root, ids="hashed", select=["h" + "0" * 16])
    for select in (["a/x.png"], [ids[0], "Surname"], "Surname", ["h123"], [7]):
        message = refusal(root, ids="hashed", select=select)
        assert message.startswith("dataset.select")
        assert "Surname" not in message
        assert "a/x" not in message


def test_two_equal_hashes_are_refused(root, monkeypatch):
    monkeypatch.setattr("medpfl.data.ids._hash", lambda salt, inside: "h" + "0" * 16)
    assert "two images have the same hashed id" in refusal(root, ids="hashed")


def test_suffixes_stay_where_they_are_needed():
    folder = Path("d")
    names = ["a/x.png", "a/x.jpg", "a/x.png.jpg", "a/y.png"]
    ids = Naming().ids([folder / name for name in names], folder=folder, dataset=folder)
    assert ids == ("a/x.png", "a/x.jpg", "a/x.png.jpg", "a/y")


# Names that are not UTF-8

ODD = os.fsdecode(b"b\xe9b\xe9")


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
@pytest.mark.parametrize("ids", ["name", "hashed"])
def test_names_that_are_not_utf_8_become_text(tmp_path, ids):
    root = make(tmp_path / "odd", (f"{ODD}/{ODD}.png", f"{ODD}/x.png", "b/x.png"))
    data = load(root, ids=ids)
    assert data.classes == ("b", "b%E9b%E9")
    told = [*data.images.ids, *data.notes, data.source, *data.classes]
    for text in told:
        text.encode("utf-8")
    if ids == "name":
        assert data.images.ids == ("b/x", "b%E9b%E9/b%E9b%E9", "b%E9b%E9/x")
        assert load(root, select=["b%E9b%E9/x"]).selected == (2,)
    train = ImageFolder(root=str(root), test_fraction=0.5).load(
        preprocess=Preprocess(size=8), n_images=None, seed=0
    )
    assert len(train.images) == 2
    (root / ODD / f"{ODD}.png").write_bytes(b"")
    refusal(root, ids=ids).encode("utf-8")
    make(root, ("b/b%E9b%E9.png", f"b/{ODD}.png"))
    if ids == "name":
        assert "rename one" in refusal(root)
    else:
        assert len(load(root, ids=ids, on_error="skip").images) == 4


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_a_run_on_names_that_are_not_utf_8(command, tmp_path):
    make(tmp_path / "odd", (f"{ODD}/{ODD}.png", f"{ODD}/x.png", "b/x.png"))
    settings = ("device=cpu", "dataset=folder", "dataset.root=odd", "dataset.split=all")
    small = ("preprocess.size=16", "attack=dlg", "attack.optimizer.max_steps=1")
    done = command(*settings, *small, "hydra.run.dir=out")
    assert done.code == 0, done.stderr
    with (tmp_path / "out/metrics.csv").open(encoding="utf-8", newline="") as file:
        assert [row["image_id"] for row in csv.DictReader(file)] == [
            "b/x",
            "b%E9b%E9/b%E9b%E9",
            "b%E9b%E9/x",
        ]
    (tmp_path / "odd" / ODD / f"{ODD}.png").write_bytes(b"")
    done = command(*settings, *small, "hydra.run.dir=failing")
    assert done.code == 2
    assert "b%E9b%E9/b%E9b%E9.png" in done.stderr
    assert "b%E9b%E9" in (tmp_path / "failing/run.json").read_text(encoding="utf-8")
