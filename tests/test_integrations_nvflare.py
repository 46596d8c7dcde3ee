"""Captures of an NVFlare federation, simulated on this machine with real images."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capture_files import RESNET, came_back, sent_by, writer
from federated_images import IMAGES, LOCAL, MODEL, SPEC, Clients, Net, brain_images, mapped
from helpers import ROOT

pytest.importorskip("nvflare")

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
from nvflare.job_config.api import FedJob
from nvflare.job_config.defs import FilterType
from nvflare_client import Trainer

from medpfl.captures import load_captures, read_captures
from medpfl.errors import MedpflError
from medpfl.integrations.nvflare import CaptureFilter

DATA = {
    "shape": list(SPEC.shape),
    "num_classes": SPEC.num_classes,
    "mean": list(SPEC.mean),
    "std": list(SPEC.std),
    "greyscale": SPEC.greyscale,
}
TRAINING = {"algorithm": "fedavg", "epochs": 2, "batch_size": 3, "lr": 0.05, "momentum": 0.5}
SITES = ("site-1", "site-2")


@pytest.fixture(scope="module")
def clients() -> Clients:
    return brain_images()


@pytest.mark.real_data
# Each starts a server and two clients as processes, which takes twenty seconds of computing.
@pytest.mark.parametrize(
    "kind", [pytest.param(DataKind.WEIGHTS, marks=pytest.mark.trial), DataKind.WEIGHT_DIFF]
)
def test_the_server_captures_to_the_bit_what_clients_trained(
    tmp_path: Path, clients: Clients, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {}
    for site, (inputs, labels) in zip(SITES, clients, strict=True):
        arrays |= {f"{site}-inputs": inputs.numpy(), f"{site}-labels": labels.numpy()}
    np.savez(tmp_path / "images.npz", **arrays)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.chdir(tmp_path)
    capture = CaptureFilter(
        folder=str(tmp_path / "captures"),
        model=MODEL,
        data=DATA,
        local_training=TRAINING,
        num_examples=dict.fromkeys(SITES, IMAGES),
        defense="none that we know of",
    )
    job = FedJob(name="captured", min_clients=2)
    job.to_server(PTFileModelPersistor(model=Net()), id="persistor")
    job.to_server(FedAvg(num_clients=2, num_rounds=1, persistor_id="persistor"))
    job.to_server(capture, filter_type=FilterType.TASK_RESULT, tasks=["train"])
    job.to_clients(Trainer(str(tmp_path / "images.npz"), kind), tasks=["train"])
    job.simulator_run(str(tmp_path / "workspace"), n_clients=2, threads=2)

    found = read_captures(tmp_path / "captures")
    told = [folder.manifest.framework for folder in found]
    assert [(f.name, f.round, f.client) for f in told if f] == [
        ("nvflare", "0", site) for site in SITES
    ]
    captures = list(load_captures(found))
    assert [c.capture_id for c in captures] == ["round-000/client-0", "round-000/client-1"]
    for read in captures:
        expected = mapped(read, *clients[read.client])
        assert read.update.num_examples == IMAGES
        assert read.update.local_training == LOCAL
        assert read.defense is not None
        assert read.update.tensors.keys() == expected.keys()
        assert all(torch.equal(read.update.tensors[n], t) for n, t in expected.items())


class Site:
    """One exchange with one client, as NVFlare's server runs it."""

    def __init__(self, name: str = "site-2") -> None:
        class Engine:
            def get_clients(self) -> list[Any]:
                return [type("Client", (), {"name": site}) for site in ("site-2", "site-1")]

        class Context(FLContext):
            def get_engine(self, *_: Any, **__: Any) -> Engine:  # type: ignore[override]
                return Engine()

        peer = FLContext()
        peer.set_prop("__identity_name__", name, private=False, sticky=False)
        self.context = Context()
        self.context.set_peer_context(peer)

    def send(
        self, capture: CaptureFilter, weights: dict[str, Any], task: str, number: int | None = 0
    ) -> None:
        data = DXO(DataKind.WEIGHTS, data=weights).to_shareable()
        data.set_header(ReservedHeaderKey.TASK_ID, task)
        if number is not None:
            data.set_header(AppConstants.CURRENT_ROUND, number)
        self.context.set_prop(FLContextKey.TASK_DATA, data, private=True, sticky=False)
        capture.handle_event(EventType.AFTER_TASK_DATA_FILTER, self.context)

    def reply(self, capture: CaptureFilter, result: DXO, task: str) -> Shareable:
        shareable = result.to_shareable()
        shareable.set_header(ReservedHeaderKey.TASK_ID, task)
        filtered = capture.process(shareable, self.context)
        assert isinstance(filtered, Shareable)
        return filtered


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """What medpfl's captures say went wrong, filled as it is logged."""
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    listener, logger = Listener(logging.ERROR), logging.getLogger("medpfl.captures")
    logger.addHandler(listener)
    yield told
    logger.removeHandler(listener)


SMALL = {**DATA, "shape": [3, 16, 16], "num_classes": 3}


def test_a_difference_of_statistics_becomes_their_values(tmp_path, errors):
    federation = writer(tmp_path, RESNET)
    sent = sent_by(federation)
    after = came_back(sent)
    difference = {name: (tensor - sent[name]).numpy() for name, tensor in after.items()}
    capture = CaptureFilter(str(tmp_path), RESNET, SMALL, num_examples=8)
    site = Site()
    site.send(capture, {name: tensor.numpy() for name, tensor in sent.items()}, "task")
    result = DXO(DataKind.WEIGHT_DIFF, data=difference)
    returned = site.reply(capture, result, "task")
    assert errors == []
    assert returned["DXO"]["data"] is difference
    (read,) = load_captures(read_captures(tmp_path))
    assert read.capture_id == "round-000/client-1"
    assert read.update.buffers is not None
    for name, buffer in read.update.buffers.items():
        torch.testing.assert_close(buffer, after[name])
    for name, tensor in read.update.tensors.items():
        assert torch.equal(tensor, torch.from_numpy(difference[name]))


def test_only_the_rounds_that_are_wanted_are_captured(tmp_path, errors):
    sent = {name: t.numpy() for name, t in sent_by(writer(tmp_path)).items()}
    capture = CaptureFilter(str(tmp_path), MODEL, SMALL, rounds=[1], num_examples=1)
    for number in range(3):
        site = Site()
        site.send(capture, sent, f"task-{number}", number)
        site.reply(capture, DXO(DataKind.WEIGHTS, data=sent), f"task-{number}")
    assert errors == []
    assert [found.capture_id for found in read_captures(tmp_path)] == ["round-001/client-1"]


@pytest.mark.parametrize(
    ("task", "number", "change", "words"),
    [
        ("another", 0, {}, "was sent no weights"),
        ("task", None, {}, "tells no round"),
        ("task", 0, {"fc.bias": np.full(3, np.nan, np.float32)}, "NaN or infinite"),
        ("task", 0, {"fc.bias": object()}, "no array of numbers"),
        ("task", 0, {"fc.bias": np.zeros(4, np.float32)}, "of another shape: fc.bias"),
    ],
)
def test_a_capture_that_fails_is_told_and_the_result_goes_on(
    tmp_path, errors, task, number, change, words
):
    sent = {name: t.numpy() for name, t in sent_by(writer(tmp_path)).items()}
    capture = CaptureFilter(str(tmp_path / "captures"), MODEL, SMALL, num_examples=1)
    site = Site()
    site.send(capture, sent, "task", number)
    result = {**sent, **change}
    assert site.reply(capture, DXO(DataKind.WEIGHTS, data=result), task)["DXO"]["data"] is result
    assert len(errors) == 1
    assert words in errors[0]
    assert "training goes on" in errors[0]
    assert not (tmp_path / "captures").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"model": {"_target_": "nobody.has.This"}}, "cannot be found"),
        ({"data": {**SMALL, "std": [0.1]}}, r"data.std must be a list of 3 numbers"),
        ({"data": {"shape": [3, 16, 16]}}, "is missing"),
        ({"local_training": {"algorithm": "fedavg", "steps": 3}}, "steps.* is not a name"),
        ({"local_training": {"algorithm": "fedavg", "lr": -1.0}}, r"local_training.lr=-1"),
    ],
)
def test_settings_that_cannot_be_are_told_before_training(tmp_path, setting, words):
    given = {"folder": str(tmp_path), "model": MODEL, "data": SMALL}
    with pytest.raises(MedpflError, match=words):
        CaptureFilter(**{**given, **setting})
