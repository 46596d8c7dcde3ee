"""From a configuration to the parts of one experiment, every one checked before any compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from medpfl._hydra import instantiate
from medpfl.attacks import Attack
from medpfl.data import LoadedData
from medpfl.defenses import Defense
from medpfl.errors import ConfigurationError
from medpfl.federated import Federation
from medpfl.metrics import Scorer
from medpfl.metrics.image_quality import check_window
from medpfl.models import ModelFactory
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


def build(config: DictConfig) -> Experiment:
    """Instantiate and check everything that a configuration names.

    Raises:
        MedpflError: anything that would make the run fail later.
    """
    seed = config.seed
    if not isinstance(seed, int):
        raise ConfigurationError(f"seed={seed}: must be an integer")
    device = pick_device(config.device)
    threat, attack = instantiate(config.threat), instantiate(config.attack)
    threat.require(attack.requires, who=f"attack={attack.name}")
    defense, scorer = instantiate(config.defense), instantiate(config.metrics)
    federation, factory = instantiate(config.federation), instantiate(config.model)
    data = instantiate(config.dataset).load(
        preprocess=instantiate(config.preprocess), n_images=config.n_images, seed=seed
    )
    check_window(torch.zeros(data.spec.shape))
    # A throw-away network on no data: shows whether the network takes the images at all.
    trial = factory.build(data.spec, torch.Generator().manual_seed(0))
    attack.check(trial, federation.batch_size)
    if len(data.selected) < federation.batch_size:
        raise ConfigurationError(
            f"federation.batch_size={federation.batch_size}, but only {len(data.selected)} images "
            "are attacked: raise n_images or lower the batch size"
        )
    return Experiment(data, factory, federation, threat, defense, attack, scorer, seed, device)


def pick_device(name: str) -> torch.device:
    """Return the device that ``device=`` names; ``auto`` is CUDA where there is one.

    Raises:
        ConfigurationError: the name is unknown, or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not name.startswith("cuda"):
        raise ConfigurationError(f"device={name}: choose auto, cpu or cuda")
    if name != "cpu" and not torch.cuda.is_available():
        raise ConfigurationError(
            f"device={name}: this machine has no CUDA device that torch can use. "
            "Use device=cpu, or install a driver and a CUDA build of torch."
        )
    return torch.device(name)
