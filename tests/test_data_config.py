"""Every file of ``conf/dataset`` and ``conf/preprocess`` makes what it names."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from medpfl.data import Preprocess

CONF = Path(__file__).parents[1] / "conf"
DATASETS = sorted((CONF / "dataset").glob("*.yaml"))
PREPROCESSES = sorted((CONF / "preprocess").glob("*.yaml"))


@pytest.mark.parametrize("path", DATASETS + PREPROCESSES, ids=lambda p: p.stem)
def test_a_file_lists_every_setting_of_its_class(path):
    config = OmegaConf.load(path)
    parameters = inspect.signature(get_class(config._target_)).parameters
    assert set(config) - {"_target_"} == set(parameters)
    assert config.get("name", path.stem) == path.stem


@pytest.mark.parametrize("path", DATASETS, ids=lambda p: p.stem)
def test_datasets_are_made_and_accept_lists(path, tmp_path):
    config = OmegaConf.load(path)
    if "root" in config:
        config.root = str(tmp_path)
    hashed = config.get("ids") == "hashed"
    config.select = ["h" + "0" * 16, "h" + "1" * 16] if hashed else ["a/1", "a/2"]
    source = instantiate(config)
    assert callable(source.load)


@pytest.mark.parametrize(
    ("name", "shape", "resize"),
    [
        ("squash32", (3, 32, 32), "squash"),
        ("crop32", (3, 32, 32), "crop"),
        ("imagenet224", (3, 224, 224), "crop"),
    ],
)
def test_preprocesses(name, shape, resize):
    preprocess = instantiate(OmegaConf.load(CONF / "preprocess" / f"{name}.yaml"))
    assert isinstance(preprocess, Preprocess)
    assert (preprocess.shape, preprocess.resize) == (shape, resize)
    assert (preprocess.mean is None) == (name != "imagenet224")
