"""Parts of one's own: plain networks, defenses, and what is said where something is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import config, seeded
from omegaconf import DictConfig, OmegaConf, open_dict

from medpfl import feasible, runner
from medpfl.errors import ConfigurationError
from medpfl.experiment import build, check_keys
from medpfl.models.own import factory_of
from medpfl.optim import capacity

MODULE = """
import torch
from torch import nn


class TinyNet(nn.Module):
    def __init__(self, num_classes, in_channels=3, width=4, act=None, dtype=None):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 5, stride=2, dtype=dtype)
        self.act = act or nn.Sigmoid()
        self.fc = nn.Linear(width * 14 * 14, num_classes, dtype=dtype)

    def forward(self, x):
        return self.fc(self.act(self.conv(x)).flatten(1))


class Reused(TinyNet):
    def forward(self, x):
        return (lambda features: self.fc(features.flatten(1)))(self.act(self.act(self.conv(x))))


class Wide(TinyNet):
    def forward(self, x):
        return self.conv(x)


class Text(TinyNet):
    def forward(self, x):
        return "logits"


class Few(TinyNet):
    def __init__(self, **settings):
        super().__init__(num_classes=2)


class Frozen(TinyNet):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.requires_grad_(False)


class Double(TinyNet):
    def __init__(self, num_classes):
        super().__init__(num_classes, dtype=torch.float64)


class Idle(TinyNet):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.spare = nn.Linear(3, 3)


class Branching(TinyNet):
    def forward(self, x):
        return super().forward(x) if self.conv(x).sum().item() > 0 else super().forward(x / 2)


class Broken(TinyNet):
    def forward(self, x):
        return self.missing(x)


class Cut(TinyNet):
    def forward(self, x):
        return super().forward(x).detach()


class Failing(TinyNet):
    def __init__(self, num_classes):
        raise KeyError("no such file")


class Lazy(TinyNet):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.fc = nn.LazyLinear(num_classes)


class Nameless:
    def describe(self):
        return None

    def on_update(self, update, generator):
        return update, None


class Halved:
    name = "halved"

    def describe(self):
        return "half of every gradient"

    def on_update(self, update, generator):
        from dataclasses import replace

        from medpfl.defenses.base import DefenseReport

        tensors = {name: tensor / 2 for name, tensor in update.tensors.items()}
        return replace(update, tensors=tensors), DefenseReport(noise_scale=None, snr_db=None)


def distance(a, b):
    return sum((x - y).square().sum() for x, y in zip(a, b))


def seven():
    return 7
"""
SHORT = ("attack=dlg", "n_images=1", "attack.optimizer.max_steps=1", "dataset.per_class=1")


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine", None)


def with_part(slot: str, **settings: object) -> DictConfig:
    composed = config(*SHORT)
    with open_dict(composed):
        OmegaConf.update(composed, slot, settings, merge=False)
    return composed


def own(name: str, **settings: object) -> DictConfig:
    return with_part("model", _target_=f"mine.{name}", **settings)


def message(composed: DictConfig) -> str:
    with pytest.raises(ConfigurationError) as raised:
        build(composed)
    return str(raised.value)


@pytest.mark.parametrize(
    "settings", [{}, {"width": 6}, {"in_channels": 3}, {"act": {"_target_": "torch.nn.Tanh"}}]
)
def test_a_plain_module_is_a_network(settings: dict[str, object]) -> None:
    experiment = build(own("TinyNet", **settings))
    assert type(experiment.source.factory).__name__ == "TinyNet"
    model = experiment.source.factory.build(experiment.data.spec, seeded())
    assert model.fc.out_features == experiment.data.spec.num_classes
    assert model.conv.out_channels == settings.get("width", 4)


def test_its_numbers_come_from_the_generator_alone() -> None:
    experiment = build(own("TinyNet"))
    before = torch.get_rng_state()
    first, again, other = (
        experiment.source.factory.build(experiment.data.spec, seeded(s)).fc.weight
        for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_init_and_weights_are_medpfls_unless_the_class_takes_them(tmp_path: Path) -> None:
    uniform = {"_target_": "medpfl.models.init.UniformInit", "bound": 0.01}
    experiment = build(own("TinyNet", init=uniform, weights=None))
    model = experiment.source.factory.build(experiment.data.spec, seeded())
    assert float(model.fc.weight.detach().abs().max()) <= 0.01
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    loaded = build(own("TinyNet", weights=str(tmp_path / "tiny.pt")))
    again = loaded.source.factory.build(loaded.data.spec, seeded(5))
    assert torch.equal(again.fc.weight, model.fc.weight)
    assert "model.init=5: must be a group with a _target_" in message(own("TinyNet", init=5))
    assert "model.weights=5: must be text or null" in message(own("TinyNet", weights=5))


@pytest.mark.parametrize("name", ["TinyNet", "Reused"])
def test_a_run_of_a_plain_module(name: str, tmp_path: Path) -> None:
    summary = runner.run(own(name), tmp_path / "run")
    assert summary.n == 1


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("TinyNet", {"widht": 3}, "model.widht: no such setting; choose from num_classes, in_ch"),
        ("TinyNet", {"width": 0}, "the network cannot take an update of shape 1 x 3 x 32 x 32"),
        ("Wide", {}, "must return one float32 logit a class, of shape (1, 6) for this update"),
        ("Text", {}, "but returns str"),
        ("Few", {}, "but returns float32 of shape (1, 2)"),
        ("Frozen", {}, "Frozen has no parameter to train (requires_grad)"),
        ("Double", {}, "clients compute in float32, but not float32 are conv.weight"),
        ("Idle", {}, "the logits do not depend on spare.weight, spare.bias: use it or remove it"),
        ("Branching", {}, "Branching cannot be attacked"),
        ("Broken", {}, "has no attribute 'missing'"),
        ("Cut", {}, "Cut has no gradient for a client to send"),
        ("Failing", {}, "no such file"),
        ("Lazy", {}, "fc.weight, fc.bias has no size yet"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_keeps_a_module_from_being_attacked(
    name: str, settings: dict[str, object], words: str
) -> None:
    assert words in message(own(name, **settings))


def test_a_defense_of_ones_own(tmp_path: Path) -> None:
    halved = with_part("defense", _target_="mine.Halved")
    assert runner.run(halved, tmp_path / "run").n == 1
    told = message(with_part("defense", _target_="mine.Nameless"))
    assert told == (
        "defense=Nameless: must be a Defense (Changes what leaves the client); "
        "a Nameless has no name"
    )


def test_a_function_of_ones_own_is_a_part() -> None:
    composed = with_part("attack.distance", _target_="mine.distance", _partial_=True)
    assert build(composed).attack.name == "dlg"


@pytest.mark.parametrize(
    ("slot", "part", "words"),
    [
        ("attack.labels", {"_target_": "medpfl.attacks.distances.Cosine"}, "no check"),
        ("attack.start", {"_target_": "medpfl.attacks.distances.Cosine"}, "must be a Start (Makes"),
        ("attack.distance", {"_target_": "medpfl.attacks.starts.Normal"}, "call(dummy, observed)"),
        ("attack.optimizer", {"_target_": "medpfl.attacks.starts.Normal"}, "init, max_steps, tell"),
        ("attack.start", {"_target_": "mine.seven"}, "an int has no call"),
        ("attack.start", {"_target_": "mine"}, "must be a class or function, but is a module"),
        ("attack", {"_target_": "medpfl.attacks.starts.Normal"}, "no check, name, reconstruct"),
        ("attack", {"_target_": "mine.seven"}, "must be an Attack (Turns observations into"),
        ("model", {"_target_": "medpfl.data.Preprocess"}, "must be a ModelFactory"),
        ("dataset", {"_target_": "medpfl.models.init.DefaultInit"}, "must be a DatasetSource"),
        ("metrics", {"_target_": "medpfl.metrics.PaperCPL"}, "must be a Scorer"),
        ("metrics.paper", {"_target_": "medpfl.attacks.starts.Normal"}, "must be a PaperProtocol"),
        ("federation.pretrain", {"_target_": "mine.seven"}, "must be a Pretraining"),
        ("attack.priors", {"one": {"_target_": "mine.seven"}}, "attack.priors.one=7: must be a P"),
    ],
)
def test_a_part_of_another_kind(slot: str, part: dict[str, object], words: str) -> None:
    told = message(with_part(slot, **part))
    assert words in told
    assert told.startswith(slot)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("datset", "datset: nothing reads a setting of this name; did you mean dataset?"),
        ("n_image", "did you mean n_images?"),
        ("xyz", "name. Choose from dataset, preprocess, model, federation, capture"),
    ],
)
def test_keys_that_nothing_reads(key: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        runner.run(config(f"+{key}=covid"), tmp_path / "run")
    assert words in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_keys_that_something_reads() -> None:
    check_keys(config("+mine=3", "attack.restarts=${mine}"))
    check_keys(config("+paper.row=cpl", "+budget=quick"))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("median_filter.kernel=13", "median_filter.kernel=13: must be at most 11 for images with"),
        ("median_filter.kernel=4", "median_filter.kernel=4: must be odd"),
        ("box.statistics=cifar10", "cifar10 is for 3 channels, but the images have 1"),
    ],
)
def test_projections_that_do_not_go_with_the_images(setting: str, words: str) -> None:
    images = ("preprocess.size=11", "preprocess.channels=1", "preprocess.mean=null")
    images = (*images, "preprocess.std=null", "model=resnet18", "n_images=1")
    assert words in message(config("attack=gradinv", f"attack.projections.{setting}", *images))


@pytest.fixture
def _small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (feasible, capacity):
        monkeypatch.setattr(module, "machine_memory", lambda: 24 * 10**9)


@pytest.mark.usefixtures("_small_machine")
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("preprocess.size=100000",), "one image takes 1,440 GB to score, this machine has 24 GB"),
        (
            ("preprocess.size=10000", "model=cpl_cnn"),
            "federation.batch_size=1, preprocess.size=[10000, 10000]: the update of CPLCNN takes",
        ),
        (
            ("preprocess.size=1000", "attack.optimizer.history=5000", "model=resnet18"),
            "LBFGS takes 120 GB for a row of 3,000,000 unknowns, cpu has 24 GB: choose",
        ),
    ],
)
def test_what_no_memory_holds_is_said_before(overrides: tuple[str, ...], words: str) -> None:
    assert words in message(config(*SHORT, *overrides))


def test_factories_are_left_as_they_are() -> None:
    assert type(factory_of(config().model)).__name__ == "CPLCNN"
