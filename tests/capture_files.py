"""Captures as several test files write them, and change them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medpfl.captures import CapturedUpdate, CaptureWriter, load_captures, read_captures
from medpfl.errors import MedpflError
from medpfl.training import LocalTraining
from medpfl.types import DataSpec, Truth

DLG = {
    "_target_": "medpfl.models.DLGCNN",
    "init": {"_target_": "medpfl.models.init.UniformInit", "bound": 0.5},
    "weights": None,
}
RESNET = {
    "_target_": "medpfl.models.ResNet18",
    "init": {"_target_": "medpfl.models.init.DefaultInit"},
    "weights": None,
}
SPEC = DataSpec(shape=(3, 16, 16), num_classes=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def writer(folder: Path, model: dict[str, Any] = DLG, **settings: Any) -> CaptureWriter:
    return CaptureWriter(folder=folder, model=model, spec=SPEC, **settings)


def sent_by(federation: CaptureWriter, seed: int = 0) -> dict[str, Tensor]:
    """Return a state dict as a server sends it: drawn numbers, counters left at zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(t.shape, generator=generator) + 0.5 if t.is_floating_point() else t.clone()
        for name, t in federation.network.model.state_dict().items()
    }


def came_back(sent: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """Return a state dict after some training: other numbers, counters that went on."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: t + 0.01 * torch.randn(t.shape, generator=generator)
        if t.is_floating_point()
        else t + 4
        for name, t in sent.items()
    }


def images(count: int = 2, seed: int = 2) -> Truth:
    inputs = torch.rand((count, *SPEC.shape), generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % SPEC.num_classes
    return Truth(inputs, labels, tuple(f"image/{n}" for n in range(count)))


def written(folder: Path, **changes: Any) -> Path:
    """Write one capture of two images, and return its folder."""
    federation = writer(folder)
    sent = sent_by(federation)
    given = {
        "round": 5,
        "client": 2,
        "kind": "weights",
        "update": came_back(sent),
        "sent": sent,
        "num_examples": 2,
        "truth": images(),
    }
    return federation.write(**{**given, **changes})


def the_one(folder: Path) -> CapturedUpdate:
    """Read the only capture there is."""
    (capture,) = load_captures(read_captures(folder))
    return capture


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a capture's manifest."""
    path = folder / "capture.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace_file(folder: Path, role: str, content: bytes) -> None:
    """Put another file in place of a capture's own, and its checksum into the manifest."""

    def change(manifest: dict[str, Any]) -> None:
        entry = manifest["files"][role]
        (folder / entry["path"]).write_bytes(content)
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit(folder, change)


def change_tensors(
    folder: Path, role: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Change the tensors of a capture's file, and what the manifest says of the file."""
    entry = json.loads((folder / "capture.json").read_text())["files"][role]
    path = folder / entry["path"]
    save_file(change(load_file(path)), path)
    replace_file(folder, role, path.read_bytes())


def full(folder: Path) -> Path:
    """Write one capture that says all that can be said, and return its folder."""
    training = LocalTraining(algorithm="fedavg", epochs=2, batch_size=1, lr=0.1)
    return written(folder, labels=[0, 1], local_training=training.in_turn(2))


def refusal(folder: Path) -> str:
    """Return the one message with which a folder is refused."""
    with pytest.raises(MedpflError) as refused:
        the_one(folder)
    told = str(refused.value)
    assert "\n" not in told
    assert told.isprintable()
    return told


def given(capture: Path) -> Path:
    return capture.parents[1]


def put(*keys: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    """Return the change that puts a value at a place of a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        node: Any = manifest
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        node = manifest
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]

    return change
