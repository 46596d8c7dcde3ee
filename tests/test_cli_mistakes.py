"""Mistakes on the command line: one message that names fault and fix, before any compute."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import Command, Finished
from PIL import Image

MISTAKE = 2


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path) -> None:
    """Place a file, an empty folder, a sound dataset and one with an empty class."""
    (tmp_path / "file").write_text("not a folder")
    for folder in ("empty", "half/full", "half/bare", "sound/a", "sound/b"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("half/full", "sound/a", "sound/b"):
        for i in range(3):
            Image.new("L", (40, 40), 80 * i).save(tmp_path / folder / f"{i}.png")


def refused(done: Finished) -> str:
    """Check that a command ended with a message alone, and return the message in one line."""
    assert done.code == MISTAKE, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("medpfl: error:")
    assert done.stderr.count("medpfl: error:") == 1
    return re.sub(r"\s+", " ", done.stderr)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("atack=cpl", "atack: no such setting; did you mean attack? Choose from dataset, prep"),
        ("attack=cpll", "attack=cpll: no such option; did you mean cpl? Choose one of cpl, dim"),
        ("attack=xyz", "attack=xyz: no such option. Choose one of cpl, dimitrov, "),
        ("n_image=3", "n_image: no such setting; did you mean n_images? Choose from"),
        ("attack.restart=3", "attack.restart: no such setting; did you mean attack.restarts?"),
        ("attack.optimizer.rate=3", "attack.optimizer.rate: no such setting. Choose from lr, max"),
        ("seed.x=3", "seed.x: seed is a single value, there is no setting below it"),
        ("+dataset=covid", "+dataset=covid: dataset is chosen without a + in front"),
        ("n_images=1,2", "To sweep over it, add --multirun"),
    ],
)
def test_names_that_hydra_does_not_know(command: Command, argument: str, words: str) -> None:
    told = refused(command(argument))
    assert words in told
    assert "use +" not in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("dataset=covid dataset.root=nowhere", "nowhere: no such folder expected below it"),
        ("dataset=covid dataset.root=file", "file: not a folder expected below it"),
        ("dataset=folder", "dataset.root is not set: give the folder"),
        ("dataset=folder dataset.root=''", "dataset.root is not set: give the folder"),
        ("dataset=folder dataset.root=nowhere", "dataset.root: nowhere is not a folder"),
        ("dataset=folder dataset.root=file", "dataset.root: file is not a folder"),
        ("dataset=folder dataset.root=empty", "empty holds 0 class folders, and at least 2"),
        ("dataset=folder dataset.root=half", "class 'bare' has no images: half/bare holds 0 files"),
        ("dataset=folder dataset.root=sound n_images=50", "set n_images=4"),
    ],
)
def test_data_that_are_not_there(command: Command, arguments: str, words: str) -> None:
    assert words in refused(command(*arguments.split()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("n_images=0", "n_images is 0: give at least 1"),
        ("preprocess.size=10", "at least 11 pixels a side, got 10x10: set preprocess.size=11"),
        ("model=lenet preprocess.size=12", "lenet cannot take pictures of 12x12: the smallest"),
        ("model=resnet18 federation.batch_norm=train_shared", "an update of shape 1 x 3 x 32 x 32"),
        ("threat.knows=[]", "which the threat model withholds. Grant it with 'threat.knows=[num"),
        ("device=bogus", "device=bogus: choose auto, cpu, cuda"),
        ("noise=laplace", "defense=none adds no noise, but noise is chosen: choose defense="),
        ("defense=perturbation", "has no noise to add: choose noise=laplace"),
        ("federation.batch_size=2", "one label off an update, and 2 images are behind each"),
        ("attack=dlg federation.batch_size=3 n_images=2", "only 2 images are attacked: raise n_im"),
        ("attack.optimizer.line_search=bogus", "line_search=bogus: choose null or strong_wolfe"),
        ("attack.restarts=0", "attack.restarts=0: must be at least 1"),
        ("noise=null", "noise=null: choose one of gaussian, laplace, medpfl_level, none"),
        ("model.weights=nowhere.pt", "model.weights=nowhere.pt: no such file"),
        ("seed=${nothing}", "seed: Interpolation key 'nothing' not found"),
        ("dataset=folder dataset.root=???", "Missing mandatory value: dataset.root"),
    ],
)
def test_settings_that_cannot_work(command: Command, arguments: str, words: str) -> None:
    assert words in refused(command(*arguments.split()))


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("n_images=abc", "n_images=abc: must be an integer"),
        ("n_images=2.5", "n_images=2.5: must be an integer"),
        ("n_images=true", "n_images=true: must be an integer"),
        ("seed=x", "seed=x: must be an integer"),
        ("seed=null", "seed=null: must be an integer"),
        ("device=1", "device=1: choose auto, cpu, cuda"),
        ("attack.rows=many", "attack.rows=many: must be an integer"),
        ("attack.optimizer.lr=fast", "attack.optimizer.lr=fast: must be a number"),
        ("attack.optimizer=null", "attack.optimizer=null: must be a group with a _target_"),
        ("threat.knows=labels", "threat.knows=labels: must be a list of text in square brackets"),
        ("+attack.foo=1", "attack.foo: no such setting; choose from name, start, labels"),
        ("~attack.start", "attack.start: must be set"),
        ("attack._target_=medpfl.nothing", "attack._target_=medpfl.nothing: cannot be found"),
    ],
)
def test_values_of_the_wrong_type(command: Command, argument: str, words: str) -> None:
    assert words in refused(command(argument))


def test_the_key_of_a_shared_group_is_the_one_to_type(command: Command) -> None:
    done = command("defense=perturbation", "noise=gaussian", "noise.std=wide")
    assert "error: noise.std=wide: must be a number" in refused(done)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(command: Command) -> None:
    assert "has no CUDA device that torch can use. Use device=cpu" in refused(
        command("device=cuda")
    )


def test_a_number_of_a_device_that_is_not_there(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "2 CUDA devices, counted from 0. Use cuda:1" in refused(command("device=cuda:2"))


@pytest.mark.parametrize("mode", ["run", "sweep"])
def test_an_output_folder_that_cannot_be(command: Command, mode: str) -> None:
    arguments = ["-m", "seed=0,1"] if mode == "sweep" else []
    told = refused(command(*arguments, f"hydra.{mode}.dir=file/below"))
    assert "cannot write to the output folder file/below: Not a directory" in told
    assert f"hydra.{mode}.dir=..." in told


def test_the_folder_of_another_run_is_left_alone(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    assert "taken already holds a run" in refused(command("hydra.run.dir=taken"))
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_a_mistake_is_on_record(command: Command, tmp_path: Path) -> None:
    refused(command("n_images=0", "hydra.run.dir=out"))
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["error"]["message"].startswith("n_images is 0")
