"""The configuration's contract: every option composes, and makes what it names."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import CONF, SEARCHES, config
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from medpfl.defenses.configured import defenses_at
from medpfl.errors import ConfigurationError
from medpfl.settings.build import instantiate

GROUPS = ("dataset", "preprocess", "model", "federation", "threat", "defense", "noise", "metrics")
# conf/paper holds primary configurations, which stand in no other's defaults.
OPTIONS = sorted(
    (path.parent.relative_to(CONF).as_posix(), path.stem)
    for path in CONF.glob("*/**/[!_]*.yaml")
    if path.relative_to(CONF).parts[0] != "paper"
)
# What an option needs beside it to make sense.
BESIDE = {
    ("dataset", "dicom"): ["dataset.root=x"],
    ("dataset", "volume"): ["dataset.root=x"],
    ("dataset", "folder"): ["dataset.root=pictures"],
    ("defense", "perturbation"): ["noise=laplace"],
    ("noise", "laplace"): ["defense=perturbation"],
    ("noise", "gaussian"): ["defense=perturbation"],
    ("noise", "medpfl_level"): ["defense=perturbation"],
}
ATTACKS = ("cpl", "dlg", "idlg")
DATASETS = ("melanoma", "covid", "brain_mri", "folder", "phantom")
MODELS = ("cpl_cnn", "dlg_cnn", "idlg_cnn", "lenet", "resnet18")


@pytest.fixture(autouse=True)
def no_hydra_left_behind() -> Iterator[None]:
    yield
    assert not GlobalHydra.instance().is_initialized()


def chosen(*overrides: str) -> dict[str, str]:
    """Return which option of each group a command line ends up with."""
    return dict(config(*overrides, with_hydra=True).hydra.runtime.choices)


def targets(node: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every ``_target_`` of a configuration, with where it stands."""
    if isinstance(node, DictConfig):
        for name, value in node.items_ex(resolve=False):
            if name == "_target_":
                yield key, value
            else:
                yield from targets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, ListConfig):
        for place, value in enumerate(node._iter_ex(resolve=False)):
            yield from targets(value, f"{key}[{place}]")


def all_targets() -> list[str]:
    return sorted({t for p in CONF.rglob("*.yaml") for _, t in targets(OmegaConf.load(p))})


def test_the_groups_that_others_script_against_are_there():
    options = set(OPTIONS)
    for group, names in {"attack": ATTACKS, "dataset": DATASETS, "model": MODELS}.items():
        assert {(group, name) for name in names} <= options
    for name in ("none", "laplace", "gaussian", "medpfl_level"):
        assert ("noise", name) in options
    for name in ("none", "perturbation", "clipping", "topk", "randomk", "quantise", "sign"):
        assert ("defense", name) in options
    assert {("defense", "soteria"), ("defense", "pruning")} <= options


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_instantiates(group, option):
    composed = config(f"{group}={option}", *BESIDE.get((group, option), []))
    for name in (*GROUPS, "attack"):
        assert instantiate(composed[name]) is not None
    assert not OmegaConf.missing_keys(composed)


@pytest.mark.parametrize("path", all_targets())
def test_every_target_is_a_documented_object_of_the_project(path):
    assert path.startswith("medpfl.")
    found = get_object(path)
    documentation = inspect.getdoc(found)
    assert documentation is not None
    assert documentation[0].isupper()
    # a dataclass without a docstring shows its signature in place of one
    assert not documentation.startswith(f"{found.__name__}(")


@pytest.mark.parametrize("name", SEARCHES)
def test_an_attack_says_only_where_its_engine_differs(name):
    engine = OmegaConf.load(CONF / "attack/_engine.yaml").attack
    own = OmegaConf.load(CONF / f"attack/{name}.yaml").attack
    assert len(engine) > 10
    assert {key for key in own if key in engine and own[key] == engine[key]} == set()
    assert engine.keys() <= config(f"attack={name}").attack.keys()


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_file_says_what_it_is_for(path: Path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# ")
    assert len(lines[0]) > 10


@pytest.mark.parametrize(
    "overrides", list(itertools.product(ATTACKS, DATASETS, MODELS)), ids="-".join
)
def test_attack_by_dataset_by_model(overrides):
    attack, dataset, model = overrides
    composed = config(f"attack={attack}", f"dataset={dataset}", f"model={model}")
    assert (composed.attack.name, composed.dataset.name) == (attack, dataset)
    assert get_object(composed.model._target_).__name__.lower() == model.replace("_", "")
    assert not OmegaConf.missing_keys(composed)


@pytest.mark.parametrize("model", MODELS)
def test_gradinv_is_not_bound_to_its_papers_network(model):
    network = instantiate(config("attack=gradinv", f"model={model}").model)
    assert type(network).__name__.lower() == model.replace("_", "")


@pytest.mark.parametrize("noise", ["laplace", "gaussian", "medpfl_level"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_by_noise(attack, noise):
    composed = config(f"attack={attack}", "defense=perturbation", f"noise={noise}")
    assert composed.defense.perturbation.noise == composed.noise
    (part,) = defenses_at(composed).parts.values()
    assert part.noise == instantiate(composed.noise)


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_attack_brings_its_papers_surroundings(attack):
    choices = chosen(f"attack={attack}")
    assert choices["model"] == f"{attack}_cnn"
    assert choices["preprocess"] == ("squash32" if attack == "cpl" else "crop32")
    assert choices["metrics"] == f"paper_{attack}"
    assert choices["federation"] == ("fedsgd_new_model" if attack == "idlg" else "fedsgd")
    assert choices["federation/pretrain"] == ("adam_step" if attack == "cpl" else "none")
    assert choices["model/init"] == "uniform"


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("group", "option"),
    [
        ("model", "lenet"),
        ("preprocess", "imagenet224"),
        ("metrics", "ssim"),
        ("federation", "fedsgd"),
        ("federation/pretrain", "none"),
    ],
)
def test_the_command_line_beats_the_attacks_default(attack, group, option):
    command = [f"attack={attack}", f"{group}={option}"]
    for overrides in (command, command[::-1]):
        choices = chosen(*overrides)
        assert choices[group] == option
        assert choices["attack"] == attack


def test_a_bare_command_is_cpl_on_phantoms():
    choices = chosen()
    assert (choices["attack"], choices["dataset"]) == ("cpl", "phantom")
    assert choices == chosen("attack=cpl")


def test_the_published_settings():
    for attack in ATTACKS:
        composed = config(f"attack={attack}")
        assert composed.attack.optimizer.max_steps == 300
        assert composed.attack.optimizer.max_iter == 20
        assert composed.attack.optimizer.history == 100
        assert composed.attack.optimizer.lr == 1.0
        assert composed.attack.optimizer.line_search is None
        assert composed.federation.model_seed == 50
        assert composed.model.init.bound == 0.5
    assert config("attack=idlg").attack.optimizer.objective_below == 1e-6
    assert config("attack=idlg").attack.optimizer.check_every == 10
    assert config("attack=idlg").federation.new_model_per_victim is True
    pretrain = config("attack=cpl").federation.pretrain
    assert (pretrain.steps, pretrain.lr, pretrain.batch_size, pretrain.first_batch) == (
        1,
        0.01,
        32,
        1,
    )


def test_noise_that_no_defense_adds_is_refused():
    with pytest.raises(ConfigurationError, match="defense=none adds no noise"):
        instantiate(config("noise=laplace").defense)
    with pytest.raises(ConfigurationError, match="no noise to add"):
        instantiate(config("defense=perturbation").defense)


def test_two_runs_never_share_a_folder_by_default():
    folders = {config(with_hydra=True).hydra.run.dir for _ in range(5)}
    assert len(folders) == 5
    assert all(folder.startswith("outputs/") for folder in folders)
