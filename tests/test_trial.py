"""The systematic trial: every setting against nonsense ends in a run or in one message.

A sample is tried in every test run; ``make test ARGS="-m trial"`` tries the whole.
"""

from __future__ import annotations

import copy
import math
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import SEARCHES, config
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from medpfl import runner
from medpfl.errors import MedpflError

REMOVED = object()
HUGE = 10**30
# Of the sample: prime, so that it meets every kind of nonsense.
STRIDE = 127
NONSENSE: tuple[Any, ...] = (
    None,
    [],
    {},
    {"a": 1},
    math.nan,
    float("1e400"),
    1e300,
    1e-300,
    1e20,
    HUGE,
    -1,
    0,
    True,
    "text",
    "",
    "${nothing}",
    "???",
    [math.nan] * 3,
    [1e-300] * 3,
    [100_000] * 2,
    REMOVED,
)
TARGETS = (
    None,
    5,
    "",
    "text",
    "medpfl",
    "medpfl.attacks",
    "medpfl..",
    "math.pi",
    "math.sqrt",
    "builtins.int",
    "builtins.dict",
    "builtins.object",
    "collections.OrderedDict",
    "torch.nn.Identity",
    "torch.nn.Linear",
    f"{__name__}.nonsense",
    f"{__name__}.anything",
    f"{__name__}.Empty",
    "medpfl.attacks.starts.Normal",
    "medpfl.attacks.labels.Known",
    "medpfl.attacks.distances.Cosine",
    "medpfl.attacks.projection.Box",
    "medpfl.optim.LBFGS",
    "medpfl.optim.LevenbergMarquardt",
    "medpfl.models.init.DefaultInit",
    "medpfl.models.LeNet",
    "medpfl.federated.NoPretraining",
    "medpfl.defenses.NoDefense",
    "medpfl.defenses.NoNoise",
    "medpfl.metrics.PaperCPL",
    "medpfl.metrics.Scorer",
    "medpfl.threat.ThreatModel",
    "medpfl.data.Phantom",
    "medpfl.data.Preprocess",
)
COMPILING = ("attack.compile", True)
BESIDE = (
    {"_partial_": True},
    {"_partial_": 1},
    {"_recursive_": False},
    {"_convert_": "none"},
    {"_args_": [1]},
    {"_args_": 1},
    {"nonsense": 1},
)
SHORT = (
    "n_images=1",
    "dataset.per_class=1",
    "attack.optimizer.max_steps=1",
    "attack.trace_points=2",
)
SMALL = {
    "gradinv": ("preprocess.size=32", "attack.restarts=1", "model=lenet"),
    "gradinv_trained": ("preprocess.size=32", "attack.restarts=1", "model.weights=null"),
    "scale_free": ("preprocess.size=16",),
    "second_order": ("preprocess.size=16", "attack.polish.max_steps=1"),
    "surrogate": ("preprocess.size=16", "federation=fedavg"),
}
FOLDER = ("dataset=folder", "dataset.root=pictures", "n_images=1")
# A malicious server learns from public images.
SEVERAL = ("preprocess.size=16", "dataset.per_class=8")
# The options of the other groups, each with what it needs to make sense.
OPTIONS = {
    "dataset": {
        "folder": FOLDER,
        "covid": ("dataset=covid", "dataset.root=nowhere", "dataset.download=false"),
    },
    "preprocess": {"imagenet224": ("preprocess=imagenet224", "preprocess.size=32")},
    "model": {
        "lenet": ("model=lenet", "model/init=uniform"),
        "resnet18": ("model=resnet18",),
        "torchvision": ("model=torchvision", "model.name=mobilenet_v3_small"),
    },
    "federation": {
        "finetune": ("federation/pretrain=finetune", "federation.pretrain.epochs=1"),
        "several": ("federation.batch_size=2", "n_images=2"),
    },
    "threat": {"labels": ("threat=honest_but_curious_labels",)},
    "server": {
        name: ("threat=malicious", f"server={name}", *SEVERAL)
        for name in ("imprint", "loki", "trap_weights", "mic")
    },
    "noise": {
        name: ("defense=perturbation", f"noise={name}")
        for name in ("laplace", "gaussian", "medpfl_level")
    },
    "defense": {
        "perturbation": ("defense=perturbation", "noise=laplace"),
        "clipped noise": ("defense=[clipping,perturbation]", "noise=gaussian"),
        "masked first": ("defense=[soteria,pruning,masking]",),
        "added up": ("defense=[clipping,secure_aggregation]", "federation.clients=2", "n_images=2"),
        **{name: (f"defense={name}",) for name in ("topk", "randomk", "quantise", "sign")},
    },
    "metrics": {
        "ssim": ("metrics=ssim",),
        "measures": (
            "+metrics.measures.gmsd={_target_:medpfl.metrics.measures.GMSD,block:2}",
            "+metrics.measures.nrmse={_target_:medpfl.metrics.measures.NRMSE,normalization:mean}",
        ),
    },
}


class Case(NamedTuple):
    """A setting and what it is given."""

    key: str
    value: Any

    def __str__(self) -> str:
        return f"~{self.key}" if self.value is REMOVED else f"{self.key}={self.value!r}"


class TooLongError(BaseException):
    """A run that was to be tiny is not."""


class Empty:
    """A part that offers nothing."""


def nonsense() -> int:
    """Return what is no part."""
    return 7


def anything(*args: object, **kwargs: object) -> object:
    """Return what was given."""
    return kwargs


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty folder with a few pictures, without drawing figures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDPFL_DATA_ROOT", raising=False)
    monkeypatch.setattr(runner, "draw", lambda record, experiment: None)
    for name in "ab":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for shade in (60, 120, 180):
            picture = Image.linear_gradient("L").resize((40, 40)).point(lambda v, s=shade: v * s)
            picture.save(tmp_path / "pictures" / name / f"{shade}.png")
    with warnings.catch_warnings():  # a command shows them and goes on
        warnings.simplefilter("ignore")
        yield


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Stop what takes longer: nothing that is tried here should."""

    def stop(signum: int, frame: object) -> None:
        raise TooLongError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def places(node: Any, key: str = "") -> Iterator[str]:
    """Yield every setting and group of a configuration, groups before what they hold."""
    if key:
        yield key
    if isinstance(node, DictConfig):
        for name in node:
            if not OmegaConf.is_missing(node, name):
                yield from places(node._get_node(name), f"{key}.{name}" if key else str(name))
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            yield f"{key}.{index}"


def cases(composed: DictConfig, keys: list[str]) -> list[Case]:
    """Return what is tried at some places of a configuration."""
    found = []
    for key in keys:
        # Compiling is no nonsense, and takes a minute.
        found += [Case(key, value) for value in NONSENSE if (key, value) != COMPILING]
        if key.endswith("._target_"):
            found += [Case(key, value) for value in TARGETS]
            group = key.removesuffix("._target_")
            found += [Case(group, {"_target_": target}) for target in TARGETS]
            whole = OmegaConf.to_container(OmegaConf.select(composed, group))
            assert isinstance(whole, dict)
            found += [Case(group, {**whole, **more}) for more in BESIDE]
    return found


def changed(composed: DictConfig, case: Case) -> DictConfig:
    """Return the configuration with one setting changed."""
    other = copy.deepcopy(composed)
    parent_key, _, name = case.key.rpartition(".")
    with open_dict(other):
        parent = OmegaConf.select(other, parent_key) if parent_key else other
        at = int(name) if isinstance(parent, ListConfig) else name
        if case.value is REMOVED:
            del parent[at]
        else:
            parent[at] = case.value
    return other


def fault(composed: DictConfig, case: Case, folder: Path) -> str | None:
    """Return what is wrong with how a case ended, or None: with a run, or a message."""
    try:
        with at_most(300):
            runner.run(changed(composed, case), folder)
    except (MedpflError, OmegaConfBaseException) as mistake:
        words = [word for word in case.key.split(".") if not word.isdecimal()]
        if any(word.strip("_") in str(mistake) for word in words[-2:]):
            return None
        return f"{case}: the message does not name the setting: {mistake}"
    except (Exception, TooLongError) as error:
        return f"{case}: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None


def short(*overrides: str) -> tuple[str, ...]:
    """Return a job's settings with those that keep it short, where they apply."""
    folder = any(o.startswith("dataset=") for o in overrides)
    own = {override.partition("=")[0] for override in overrides}
    kept = [
        o for o in SHORT if not (folder and "per_class" in o) and o.partition("=")[0] not in own
    ]
    return (*overrides, *kept)


def faults(composed: DictConfig, wanted: list[Case], folder: Path) -> str:
    found = [fault(composed, case, folder) for case in wanted]
    return "\n".join(text for text in found if text is not None)


@pytest.mark.trial
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("attack", SEARCHES)
def test_every_setting_of_an_attack(attack: str, tmp_path: Path) -> None:
    composed = config(*short(f"attack={attack}", *SMALL.get(attack, ())))
    keys = list(places(composed)) if attack == "cpl" else list(places(composed.attack, "attack"))
    assert not faults(composed, cases(composed, keys), tmp_path / "run")


@pytest.mark.trial
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group in OPTIONS for option in OPTIONS[group]]
)
def test_every_setting_of_an_option(group: str, option: str, tmp_path: Path) -> None:
    composed = config(*short("attack=dlg", *OPTIONS[group][option]))
    keys = list(places(composed[group], group))
    assert not faults(composed, cases(composed, keys), tmp_path / "run")


@pytest.mark.parametrize(("attack", "first"), [("cpl", 0), ("second_order", 5), ("gradinv", 9)])
def test_a_sample_of_settings(attack: str, first: int, tmp_path: Path) -> None:
    composed = config(*short(f"attack={attack}", *SMALL.get(attack, ())))
    every = cases(composed, list(places(composed)))
    assert len(every) > 2000
    assert not faults(composed, every[first::STRIDE], tmp_path / "run")
