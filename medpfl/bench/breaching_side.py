"""breaching (Geiping et al., PyPI) on medpfl's updates: what it reads, and its own configurations.

breaching is no part of medpfl: the ``bench`` extra brings it, and nothing else needs it.
"""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from medpfl.errors import ConfigurationError
from medpfl.outcomes import Status
from medpfl.seeding import generator
from medpfl.types import Observation, Reconstruction

HOW_TO_GET = (
    "breaching is not installed and left out; to compare with it, in a checkout: "
    "python -m pip install --constraint constraints.txt --editable '.[bench]'"
)

# With the labels given, as the library asks for: its joint attacks refuse to be told them.
_LABELS_GIVEN = ("attack_type=optimization",)

CONFIGURATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "deepleakage": ("deepleakage", ()),
    "deepleakage, labels given": ("deepleakage", _LABELS_GIVEN),
    "invertinggradients": ("invertinggradients", ()),
    "modern": ("modern", ()),
    "legacy": ("legacy", ()),
    "seethroughgradients": ("seethroughgradients", ()),
    "wei": ("wei", ()),
    "beyondinfering": ("beyondinfering", ()),
    "tag, labels given": ("tag", _LABELS_GIVEN),
}
"""Every configuration of breaching for a plain image gradient: its file, and what is changed."""


@dataclass(frozen=True)
class Settings:
    """One of breaching's configurations, with its iterations scaled.

    Args:
        name: a key of `CONFIGURATIONS`.
        config: what breaching reads.
    """

    name: str
    config: DictConfig

    @property
    def iterations(self) -> int:
        """Optimiser steps at most; a step of L-BFGS is up to 20 iterations."""
        return int(self.config.optim.max_iterations)

    @property
    def labels_hidden(self) -> bool:
        """Whether the labels are unknowns of the attack."""
        return bool(self.config.attack_type == "joint-optimization")


def is_installed() -> bool:
    """Tell whether breaching can be imported."""
    return importlib.util.find_spec("breaching") is not None


def settings(name: str, *, budget: float = 1.0) -> Settings:
    """Return one of breaching's own configurations.

    Args:
        name: a key of `CONFIGURATIONS`.
        budget: what its number of iterations is multiplied by, positive.

    Raises:
        ConfigurationError: breaching is not installed.
    """
    file, overrides = CONFIGURATIONS[name]
    folder = Path(library_of().__file__).parent / "config" / "attack"
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose(file, overrides=list(overrides))
    config.optim.max_iterations = max(1, round(budget * config.optim.max_iterations))
    # Only what it logs depends on this.
    config.optim.callback = config.optim.max_iterations
    return Settings(name, config)


def reconstruct(
    observation: Observation,
    labels: Tensor,
    chosen: Settings,
    *,
    seed: int,
    secrets: Mapping[str, Any] | None = None,
) -> Reconstruction:
    """Let breaching attack one update.

    Args:
        observation: what the attacker sees.
        labels: `(N,)` the true labels: given, unless the configuration optimises them.
        chosen: breaching's configuration.
        seed: the run's seed.
        secrets: what breaching's malicious server keeps, of one.

    Raises:
        ConfigurationError: breaching is not installed.
    """
    library = library_of()
    if observation.kind == "delta" and "features" in (chosen.config.regularization or {}):
        raise ConfigurationError(
            f"breaching's {chosen.name} reads features off the network, which it does not do where "
            "it unrolls local steps: leave it out of --configurations"
        )
    payload, shared = as_dictionaries(observation, None if chosen.labels_hidden else labels)
    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    attacker = library.attacks.prepare_attack(
        observation.payload.model, nn.CrossEntropyLoss(), chosen.config, setup
    )
    stream = generator(seed, "breaching", observation.capture_id)
    # It draws from the one stream that everybody shares, which is put back afterwards.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(stream.initial_seed())
        began = time.perf_counter()
        found, _ = attacker.reconstruct([payload], [shared], server_secrets=dict(secrets or {}))
        seconds = time.perf_counter() - began
    return _reconstruction(observation, found["data"], found["labels"], seconds)


def as_dictionaries(
    observation: Observation, labels: Tensor | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an update as breaching's ``server_payload`` and ``shared_data``.

    Args:
        observation: what the attacker sees: a gradient, or the difference of weights after local
            steps of plain SGD that take the images in turn.
        labels: `(N,)`, or None where breaching is to find them.

    Raises:
        ConfigurationError: the update is of a kind that the comparison does not cover.
    """
    if observation.num_examples is None:
        raise ConfigurationError("breaching must know how many images are behind an update")
    local = None if observation.kind == "gradient" else _local_steps(observation, labels)
    spec, payload = observation.spec, observation.payload
    names = [name for name, _ in payload.model.named_parameters()]
    metadata = OmegaConf.create(
        {
            "modality": "vision",
            "task": "classification",
            "shape": list(spec.shape),
            "classes": spec.num_classes,
            "mean": list(spec.mean),
            "std": list(spec.std),
        }
    )
    server = {
        "parameters": [payload.parameters[name] for name in names],
        "buffers": list(payload.buffers.values()),
        "metadata": metadata,
    }
    user = {
        "gradients": [observation.tensors[name] for name in names],
        "buffers": None,
        "metadata": {
            "num_data_points": observation.num_examples,
            "labels": labels,
            "local_hyperparams": local,
            "data_key": "inputs",
        },
    }
    return server, user


def _local_steps(observation: Observation, labels: Tensor | None) -> dict[str, Any]:
    """Return local training as breaching unrolls it: batches of one size, in turn, plain SGD."""
    training, count = observation.local_training, observation.num_examples or 1
    size = None if training is None else training.batch_size or count
    if (
        labels is None
        or observation.aggregate is not None
        or training is None
        or size is None
        or count % size
        or training.shuffle
        or training.momentum
        or training.optimizer != "sgd"
    ):
        raise ConfigurationError(
            "breaching unrolls one client's local steps of plain SGD on batches of one size, in "
            "turn and with labels given: set federation.local.shuffle=false, momentum=0 and "
            "optimizer=sgd, threat.local_training=full, and take configurations that are told "
            "the labels"
        )
    steps = training.in_turn(count).order or ()
    return {
        "steps": len(steps),
        "data_per_step": size,
        "lr": training.lr,
        "labels": [labels[list(batch)] for batch in steps],
    }


def _reconstruction(
    observation: Observation, inputs_norm: Tensor, labels: Tensor, seconds: float
) -> Reconstruction:
    pixels = observation.spec.denormalise(inputs_norm.detach().float())
    finite = bool(pixels.isfinite().all())
    return Reconstruction(
        capture_id=observation.capture_id,
        inputs=pixels.nan_to_num(0.5).clamp(0, 1),
        labels=labels.detach(),
        objective=float("nan"),
        status=Status.OUT_OF_STEPS if finite else Status.NON_FINITE,
        steps=0,
        evaluations=0,
        seconds=seconds,
    )


def library_of() -> Any:
    """Import breaching, and keep its log and the warnings of its import to itself.

    Raises:
        ConfigurationError: it is not installed.
    """
    if not is_installed():
        raise ConfigurationError(HOW_TO_GET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses torch.jit.script, which torch has given up
        library = importlib.import_module("breaching")
    logging.getLogger("breaching").setLevel(logging.WARNING)
    return library


def known_configurations(names: Sequence[str]) -> list[str]:
    """Return the configurations that names stand for; ``all`` for every one.

    Raises:
        ConfigurationError: a name is unknown.
    """
    if list(names) == ["all"]:
        return list(CONFIGURATIONS)
    unknown = [name for name in names if name not in CONFIGURATIONS]
    if unknown:
        raise ConfigurationError(
            f"{unknown[0]}: choose all, or some of {'; '.join(CONFIGURATIONS)}"
        )
    return list(names)
