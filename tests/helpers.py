"""What several test files build: configurations, payloads, observations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn

from medpfl.attacks import AttackContext
from medpfl.batch_norm import BatchNormPolicy
from medpfl.experiment import Experiment, build
from medpfl.federated import Client
from medpfl.models import CPLCNN, DLGCNN, IDLGCNN, LeNet, ResNet18
from medpfl.models.base import NetworkFactory
from medpfl.models.init import DefaultInit, UniformInit
from medpfl.threat import ThreatModel
from medpfl.types import (
    Capture,
    DataSpec,
    Observation,
    ServerPayload,
    Truth,
    UpdateFacts,
)

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
# Attacks that search, and those that read a malicious server's rows: see test_readout.
READOUTS = ("imprint", "trap_weights", "mic")
SEARCHES = sorted(
    path.stem for path in (CONF / "attack").glob("[!_]*.yaml") if path.stem not in READOUTS
)
CPU = torch.device("cpu")

FACTORIES: dict[str, NetworkFactory] = {
    "cpl_cnn": CPLCNN(init=UniformInit()),
    "dlg_cnn": DLGCNN(init=UniformInit()),
    "idlg_cnn": IDLGCNN(init=UniformInit()),
    "lenet": LeNet(init=DefaultInit()),
    "resnet18": ResNet18(init=DefaultInit()),
}


def sample_images(folder: str = "") -> Path:
    """Return a folder of the sample images, or skip the test where it is not there.

    A variable that is empty is one that is not set, as for the program.
    """
    root = os.environ.get("MEDPFL_DATA_ROOT")
    if not root:
        pytest.skip("MEDPFL_DATA_ROOT is not set: it names the folder of the sample images")
    path = Path(root) / folder
    if not path.is_dir():
        pytest.skip(f"MEDPFL_DATA_ROOT has no folder {folder}")
    return path


def config(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """Compose what ``medpfl <overrides>`` would run, with or without Hydra's own settings."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose(
            "config", overrides=["device=cpu", *overrides], return_hydra_config=with_hydra
        )


def experiment(*overrides: str) -> Experiment:
    """Build what ``medpfl <overrides>`` would run."""
    return build(config(*overrides))


def seeded(seed: int = 0) -> torch.Generator:
    """Return a CPU generator."""
    return torch.Generator().manual_seed(seed)


def spec_of(*shape: int, num_classes: int = 3) -> DataSpec:
    """Describe unnormalised data of a shape."""
    return DataSpec(
        shape=shape, num_classes=num_classes, mean=(0.0,) * shape[0], std=(1.0,) * shape[0]
    )


def payload_of(
    network: str, spec: DataSpec, *, seed: int = 0, batch_norm: BatchNormPolicy = "eval_public"
) -> ServerPayload:
    """Build a network and send it out."""
    return sent(FACTORIES[network].build(spec, seeded(seed)), batch_norm=batch_norm)


def sent(model: nn.Module, *, batch_norm: BatchNormPolicy = "eval_public") -> ServerPayload:
    """Send a network out as it is."""
    return ServerPayload(
        model=model,
        parameters={n: p.detach() for n, p in model.named_parameters()},
        buffers={n: b.detach() for n, b in model.named_buffers()},
        batch_norm=batch_norm,
    )


def victim_of(
    spec: DataSpec, labels: Sequence[int], *, seed: int = 0, capture_id: str = "v"
) -> Truth:
    """Draw N images with the given labels."""
    inputs = torch.rand((len(labels), *spec.shape), generator=seeded(seed))
    ids = tuple(f"{capture_id}/{n}" for n in range(len(labels)))
    return Truth(inputs=inputs, labels=torch.tensor(labels), ids=ids)


def observe(
    payload: ServerPayload,
    spec: DataSpec,
    victim: Truth,
    *,
    capture_id: str = "v",
    knows: Sequence[str] = ("num_examples", "labels"),
    tensors: dict[str, Tensor] | None = None,
) -> Observation:
    """Return what the attacker sees of a victim's own update, or of the one given."""
    update, _ = Client(spec=spec, device=CPU).update(victim, payload)
    seen = ThreatModel(knows=list(knows)).observe(
        capture_id=capture_id,
        payload=payload,
        update=update,
        spec=spec,
    )
    if tensors is None:
        return seen
    return Observation(**{**vars(seen), "tensors": tensors})


def capture_of(
    truth: Truth, facts: UpdateFacts, spec: DataSpec, *, capture_id: str = "round-000/client-0"
) -> Capture:
    """Return a capture for a scorer, which never looks at the update."""
    payload = ServerPayload(nn.Identity(), {}, {}, batch_norm="eval_public")
    seen = Observation(capture_id, payload, {}, "gradient", spec, len(truth.ids), None, None)
    return Capture(seen, truth, facts, round=0, client=0)


def context(seed: int = 0) -> AttackContext:
    """Return a quiet context on the CPU."""
    return AttackContext(seed=seed, device=CPU)
