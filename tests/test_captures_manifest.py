"""Manifests that cannot be: one message each, before anything is computed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capture_files import drop, edit, full, given, put, refusal, the_one
from hostile import damaged

from medpfl.errors import MedpflError


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A capture of its own: a folder in which each test may do what it likes."""
    return full(tmp_path / "given")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("format", value="npz"), "not a capture"),
        (drop("format"), "not a capture"),
        (put("version", value=5), "install a newer medpfl"),
        (put("version", value="1"), "version must be a whole number from 1 to 4"),
        (put("version", value=0), "version must be a whole number from 1 to 4"),
        (drop("kind"), '"kind" is missing'),
        (drop("data", "std"), 'data: "std" is missing'),
        (drop("files", "model"), 'files: "model" is missing'),
        (drop("files", "update", "sha256"), 'files.update: "sha256" is missing'),
        (put("num_exampels", value=2), '"num_exampels" is not a name'),
        (put("data", "size", value=2), 'data: "size" is not a name'),
        (put("kind", value="weight"), "kind must be gradient or delta or weights"),
        (put("kind", value="gradient"), "fedsgd sends a gradient"),
        (put("batch_norm", value="train"), "batch_norm must be eval_public or train_private or"),
        (put("mode", value="train"), '"mode" is not a name'),
        (put("version", value=1), '"buffers" is missing'),
        (put("round", value=-1), "round must be a whole number"),
        (put("round", value=True), "round must be a whole number"),
        (put("client", value=1.0), "client must be a whole number"),
        (put("num_examples", value=3), "tells of 2 images, and num_examples of 3"),
        (put("num_examples", value=0), "num_examples must be a whole number from 1"),
        (put("labels", value=[0, 3]), "from 0 to 2, and has 3 among them"),
        (put("labels", value=[0]), "labels tells of 1 images"),
        (put("labels", value=[1, 0]), "labels are not those that the manifest states"),
        (put("truth_ids", value=["a", "a"]), "holds a name twice"),
        (put("truth_ids", value=["a"]), "truth_ids tells of 1 images"),
        (put("truth_ids", value=None), "go together"),
        (put("files", "truth", value=None), "go together"),
        (put("data", "shape", value=[3]), "data.shape must be channels"),
        (put("data", "shape", value=[3, 16, -16]), "data.shape must be a list of whole"),
        (put("data", "shape", value=[3, 2**14, 2**14]), "data.shape must be channels"),
        (put("data", "shape", value=[3, 16, 32]), "tensors.fc.weight"),
        (put("data", "num_classes", value=4), "tensors.fc.weight"),
        (put("data", "num_classes", value=1), "data.num_classes must be"),
        (put("data", "mean", value=[0.5]), "data.mean must be a list of 3 numbers"),
        (put("data", "std", value=[0.5, 0, 0.5]), "data.std must be a list of positive"),
        (put("data", "classes", value=["a"]), "a list of 3 names"),
        (put("data", "greyscale", value=0), "data.greyscale must be true or false"),
        (put("batch_norm", value="train_shared"), None),
        (put("batch_norm", value=False), "batch_norm must be eval_public or"),
        (put("local_training", "lr", value=-1), "local_training.lr=-1"),
        (put("local_training", "algorithm", value="fedsgd"), "local_training.epochs"),
        (put("local_training", "epochs", value=3), "order must take each of the 2 images"),
        (put("local_training", "order", value=[[0], [1]]), "order must take each"),
        (put("local_training", "order", value=[[0], [0], [0], [1]]), "order must take each"),
        (put("local_training", "order", value=[[0], [2], [0], [2]]), "order must take each"),
        (put("local_training", "order", value=[[0, 1], [], [0], [1]]), "order must take each"),
        (put("local_training", "order", value=[0, 1]), "lists of image numbers"),
        (put("defense", value={"description": "x"}), "noise_scale"),
        (
            put("defense", value={"description": "x", "noise_scale": -1}),
            "noise_scale must be a finite number of at least 0",
        ),
        (put("defense", value="noise"), "defense must be names with values"),
        (put("tensors", "fc.bias", value=[[4], "float32"]), "tensors.fc.bias"),
        (put("tensors", "fc.bias", value=[[3], "float64"]), "these files are not of one capture"),
        (drop("tensors", "fc.bias"), "these files are not of one capture"),
        (put("tensors", "fc.more", value=[[3], "float32"]), "tensors.fc.more"),
        (put("tensors", value=[]), "tensors must be names"),
        (put("files", "update", "sha256", value="0" * 63), "64 hexadecimal digits"),
        (put("files", "update", "sha256", value="0" * 64), "sha256 is not the one"),
        (put("files", "update", "bytes", value=10**6), "truncated"),
        (put("files", "update", "bytes", value=10), "sha256 is not the one"),
        (put("medpfl", value="\ud800"), "cannot be printed"),
        (put("medpfl", value="a\nb"), "cannot be printed"),
        (put("medpfl", value="x" * 20_000), "medpfl must be text"),
        (put("model", value=None), "model must be a group"),
        (put("model", value={"init": None}), "model must be a group"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_by_name(capture, change, words):
    edit(capture, change)
    if words is None:  # a network without buffers: they all came back
        assert the_one(given(capture)).update.buffers == {}
    else:
        assert words in refusal(given(capture))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"_target_": "os.system"}, "not medpfl's"),
        ({"_target_": "medpfl.report.record.Record"}, "not medpfl's"),
        ({"_target_": "medpfl.models.own.factory_of"}, "not medpfl's"),
        ({"_target_": "medpfl.models.base.nn.Linear"}, "not medpfl's"),
        ({"_target_": "medpfl.models.weights.read_state"}, "not medpfl's"),
        ({"_target_": "medpfl.models."}, "not medpfl's"),
        ({"_target_": "medpfl.models.nothing.X"}, "not medpfl's"),
        ({"_target_": "medpfl.models.LeNet\u200b"}, "cannot be printed"),
        ({"_target_": "medpfl.models.LeNet", "init": {"_target_": "eval"}}, "not medpfl's"),
        ({"_target_": "medpfl.models.LeNet", "init": [{"_target_": "eval"}]}, "not medpfl's"),
        ({"_target_": "medpfl.models.LeNet", "_args_": [1]}, "_args_"),
        ({"_target_": "medpfl.models.LeNet", "_partial_": True}, "_partial_"),
        ({"_target_": "medpfl.models.init.UniformInit", "bound": 1.0}, "must be"),
        ({"_target_": "medpfl.models.DLGCNN"}, "model.init: must be set"),
        ({"_target_": "medpfl.models.DLGCNN", "init": None}, "model.init"),
        ({"_target_": "medpfl.models.DLGCNN", "init": "${oc.env:HOME}"}, "write the value"),
        ({"_target_": "medpfl.models.DLGCNN", "init": "???"}, "write the value"),
        ({"_target_": "medpfl.models.DLGCNN", "depth": 3}, "no such setting"),
    ],
)
def test_a_network_that_is_none_or_foreign_is_refused(capture, model, words):
    edit(capture, put("model", value=model))
    told = refusal(given(capture))
    assert words in told
    assert "capture.json" in told


def test_weights_of_another_file_are_not_read(capture, tmp_path):
    (tmp_path / "secret.pt").write_text("secret")
    edit(capture, put("model", "weights", value=str(tmp_path / "secret.pt")))
    assert "weights must be null" in refusal(given(capture))


def test_a_network_larger_than_its_own_tensors_takes_no_memory(capture):
    edit(capture, put("data", "shape", value=[3, 2**13, 2**13]))  # 2.4 TB in its last layer
    assert "tensors.fc.weight" in refusal(given(capture))
    edit(capture, put("tensors", value={}))
    assert "more than the file" in refusal(given(capture))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b'{"a":' * 30 + b"1" + b"}" * 30, "nested deeper"),
        (b"[1, 2]", "must hold names with values"),
        (b"null", "must hold names with values"),
        (b'{"format": "medpfl-capture", "format": "x"}', "twice"),
        (b'{"format": "medpfl-capture", "version": NaN}', "no number of JSON"),
        (b'{"format": "medpfl-capture", "version": 1e999}', "version must be"),
        (b'{"format": "medpfl-capture", "version": ' + b"9" * 5000 + b"}", "not readable as JSON"),
        (b'{"format": "medpfl-capture", "version": ' + b"9" * 400 + b"}", "version must be"),
        (b'{"format": "medpfl-capture", "version": 1, "\\ud800": 1}', "cannot be printed"),
    ],
)
def test_what_is_no_manifest_is_refused(capture, content, words):
    (capture / "capture.json").write_bytes(content)
    assert words in refusal(given(capture))


NONSENSE = (
    *(None, True, -1, 0, 1, 2**63, 10**400, 1e308, 0.5, "", "x", "\ud800", "null"),
    *([], {}, [None], [[]], [[0]], {"a": 1}, [1e308], ["x"], {"_target_": "os.system"}),
)


def places(node: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield every place of a manifest, those that hold others included."""
    if above:
        yield above
    items = node.items() if isinstance(node, dict) else enumerate(node)
    if isinstance(node, dict | list):
        for key, value in items:
            if isinstance(value, dict | list):
                yield from places(value, (*above, key))
            else:
                yield (*above, key)


def test_any_value_in_any_place_is_read_or_refused(capture):
    path = capture / "capture.json"
    manifest = json.loads(path.read_text())
    refusals: list[tuple[str, object, object]] = []
    accepted = 0
    for place in places(manifest):
        for value in NONSENSE:
            changed = copy.deepcopy(manifest)
            put(*place, value=value)(changed)
            path.write_text(json.dumps(changed))
            try:
                the_one(given(capture))
                accepted += 1
            except MedpflError as error:
                refusals.append((str(error), place, value))
    assert [told for told in refusals if not told[0].isprintable()] == []
    assert len(refusals) > 1500
    assert 0 < accepted < 150  # free text, names of images, the number of the round


def test_a_damaged_manifest_is_read_or_refused(capture):
    path = capture / "capture.json"
    refusals: list[str] = []
    for content in damaged(path.read_bytes(), 150, np.random.default_rng(1)):
        path.write_bytes(content)
        try:
            the_one(given(capture))
        except MedpflError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert all(refusal.isprintable() for refusal in refusals)
