"""From a configuration to the parts of one experiment, every one checked before any compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import nn

from medpfl._hydra import instantiate
from medpfl._settings import wrong_value
from medpfl.attacks import Attack
from medpfl.data import LoadedData
from medpfl.defenses import Defense
from medpfl.device import pick_device
from medpfl.errors import ConfigurationError
from medpfl.federated import Federation
from medpfl.metrics import Scorer
from medpfl.metrics.image_quality import check_window
from medpfl.models import ModelFactory
from medpfl.profiling import UNPROFILED, Profiler, RunProfiler
from medpfl.threat import ThreatModel


@dataclass(frozen=True)
class Experiment:
    """The parts of one run, before anything heavy has happened."""

    data: LoadedData
    factory: ModelFactory
    federation: Federation
    threat: ThreatModel
    defense: Defense
    attack: Attack
    scorer: Scorer
    seed: int
    device: torch.device
    profiler: Profiler = UNPROFILED


def build(config: DictConfig) -> Experiment:
    """Instantiate and check everything that a configuration names.

    Raises:
        MedpflError: anything that would make the run fail later.
    """
    seed = _integer(config, "seed")
    n_images = None if config.n_images is None else _integer(config, "n_images")
    device = pick_device(config.device)
    profiler = _profiler(config, device)
    threat, attack = instantiate(config.threat), instantiate(config.attack)
    threat.require(attack.requires, who=f"attack={attack.name}")
    defense, scorer = instantiate(config.defense), instantiate(config.metrics)
    federation, factory = instantiate(config.federation), instantiate(config.model)
    data = instantiate(config.dataset).load(
        preprocess=instantiate(config.preprocess), n_images=n_images, seed=seed
    )
    check_window(torch.zeros(data.spec.shape))
    trial = factory.build(data.spec, torch.Generator().manual_seed(0))
    attack.check(trial, federation.batch_size)
    if len(data.selected) < federation.batch_size:
        raise ConfigurationError(
            f"federation.batch_size={federation.batch_size}, but only {len(data.selected)} images "
            "are attacked: raise n_images or lower the batch size"
        )
    _try_forward(trial, data, federation)
    return Experiment(
        data, factory, federation, threat, defense, attack, scorer, seed, device, profiler
    )


def _integer(config: DictConfig, key: str) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_value(key, value, "an integer")
    return value


def _profiler(config: DictConfig, device: torch.device) -> Profiler:
    wanted = config.get("profile", False)
    if not isinstance(wanted, bool):
        raise wrong_value("profile", wanted, "true or false")
    # Compiled code hides its operations from whoever counts them.
    counts_work = not config.attack.get("compile", False)
    return RunProfiler(device=device, counts_work=counts_work) if wanted else UNPROFILED


def _try_forward(model: nn.Module, data: LoadedData, federation: Federation) -> None:
    """Run a throw-away network on blank images: shows whether it takes an update at all."""
    shape = (federation.batch_size, *data.spec.shape)
    try:
        with torch.no_grad():
            model.train(federation.mode == "train")(torch.zeros(shape))
    except (RuntimeError, ValueError) as fault:
        raise ConfigurationError(
            f"the network cannot take an update of shape {' x '.join(map(str, shape))} in "
            f"{federation.mode} mode ({fault}): choose another preprocess.size, "
            "federation.batch_size, federation.mode or model"
        ) from fault
