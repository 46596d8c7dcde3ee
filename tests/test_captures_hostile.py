"""Captures that are damaged, foreign or hostile: one message before anything is computed."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capture_files import change_tensors, edit, replace_file, the_one, written
from hostile import damaged
from safetensors.torch import save as packed

from medpfl.captures import load_captures, read_captures
from medpfl.errors import DataError, MedpflError
from medpfl.training import LocalTraining

LOCAL = LocalTraining(algorithm="fedavg", epochs=2, batch_size=1, lr=0.1)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    written(folder, labels=[0, 1], local_training=LOCAL.in_turn(2))
    return folder


@pytest.fixture
def capture(original: Path, tmp_path: Path) -> Path:
    """A capture of its own: a folder in which each test may do what it likes."""
    return shutil.copytree(original, tmp_path / "given") / "round-005" / "client-2"


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("format", value="npz"), "not a capture"),
        (drop("format"), "not a capture"),
        (put("version", value=2), "install a newer medpfl"),
        (put("version", value="1"), "version must be 1"),
        (put("version", value=0), "version must be 1"),
        (drop("kind"), '"kind" is missing'),
        (drop("data", "std"), 'data: "std" is missing'),
        (drop("files", "model"), 'files: "model" is missing'),
        (drop("files", "update", "sha256"), 'files.update: "sha256" is missing'),
        (put("num_exampels", value=2), '"num_exampels" is not a name'),
        (put("data", "size", value=2), 'data: "size" is not a name'),
        (put("kind", value="weight"), "kind must be gradient or delta or weights"),
        (put("kind", value="gradient"), "fedsgd sends a gradient"),
        (put("mode", value="training"), "mode must be train or eval"),
        (put("round", value=-1), "round must be a whole number"),
        (put("round", value=True), "round must be a whole number"),
        (put("client", value=1.0), "client must be a whole number"),
        (put("num_examples", value=3), "tells of 2 images, and num_examples of 3"),
        (put("num_examples", value=0), "num_examples must be a whole number from 1"),
        (put("labels", value=[0, 3]), "labels must be a list of whole numbers from 0 to 2"),
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
        (put("buffers", value="shared"), None),
        (put("buffers", value=False), "buffers must be private or shared"),
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
        (put("medpfl", value="\ud800"), "medpfl must be text"),
        (put("medpfl", value="a\nb"), "medpfl must be text"),
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
        ({"_target_": "medpfl.models.LeNet\u200b"}, "not medpfl's"),
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
        (b'{"format": "medpfl-capture", "version": 1e999}', "version must be 1"),
        (b'{"format": "medpfl-capture", "version": ' + b"9" * 5000 + b"}", "not readable as JSON"),
        (b'{"format": "medpfl-capture", "version": ' + b"9" * 400 + b"}", "version must be 1"),
        (b'{"format": "medpfl-capture", "version": 1, "\\ud800": 1}', "is "),
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


def test_any_value_in_any_place_is_read_or_refused(original, tmp_path):
    folder = shutil.copytree(original, tmp_path / "given")
    path = folder / "round-005" / "client-2" / "capture.json"
    manifest = json.loads(path.read_text())
    refused = accepted = 0
    for place in places(manifest):
        for value in NONSENSE:
            changed = copy.deepcopy(manifest)
            put(*place, value=value)(changed)
            path.write_text(json.dumps(changed))
            try:
                the_one(folder)
                accepted += 1
            except MedpflError as error:
                assert "\n" not in str(error), place
                assert str(error).isprintable(), place
                refused += 1
    assert refused > 1500
    assert 0 < accepted < 150  # free text, names of images, the number of the round


def test_a_damaged_manifest_is_read_or_refused(original, tmp_path):
    folder = shutil.copytree(original, tmp_path / "given")
    path = folder / "round-005" / "client-2" / "capture.json"
    for content in damaged(path.read_bytes(), 150, np.random.default_rng(1)):
        path.write_bytes(content)
        try:
            the_one(folder)
        except MedpflError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize("role", ["update", "model", "truth"])
def test_a_damaged_file_is_refused(capture, role):
    entry = json.loads((capture / "capture.json").read_text())["files"][role]
    path = capture / entry["path"]
    whole = path.read_bytes()
    for content in damaged(whole, 25, np.random.default_rng(2)):
        path.write_bytes(content)
        if content != whole:
            told = refusal(given(capture))
            assert path.name in told
            assert "truncated" in told or "sha256" in told
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refusal(given(capture))


@pytest.mark.parametrize("role", ["update", "model", "truth"])
def test_a_file_made_to_do_harm_is_read_as_numbers_or_refused(capture, role):
    """The checksum is right: whoever made the file has made the manifest, too."""
    entry = json.loads((capture / "capture.json").read_text())["files"][role]
    whole = (capture / entry["path"]).read_bytes()
    refused = 0
    for content in damaged(whole, 120, np.random.default_rng(3)):
        replace_file(capture, role, content)
        try:
            read = the_one(given(capture))
        except MedpflError as error:
            assert str(error).isprintable()
            refused += 1
        else:
            assert all(bool(t.isfinite().all()) for t in read.update.tensors.values())
            assert all(bool(t.isfinite().all()) for t in read.payload.parameters.values())
            assert read.truth is not None
            assert 0 <= float(read.truth.inputs.min()) <= float(read.truth.inputs.max()) <= 1
    assert refused > 40


@pytest.mark.parametrize(
    ("role", "name", "change", "words"),
    [
        ("update", "fc.bias", lambda t: t * torch.nan, "3 numbers that are NaN or infinite"),
        ("update", "fc.bias", lambda t: t / 0, "NaN or infinite"),
        ("model", "fc.bias", lambda t: t / 0, "NaN or infinite"),
        ("update", "fc.bias", lambda t: t.double(), "mixes float32, float64"),
        ("model", "fc.bias", lambda t: t.half(), "mixes float16, float32"),
        ("update", "fc.bias", lambda t: t.int(), "holds float32, int32"),
        ("update", "fc.bias", lambda t: t.to(torch.float8_e4m3fn), "holds float32, float8_e4m3fn"),
        ("update", "fc.bias", lambda t: t.to(torch.complex64), "holds complex64"),
        ("update", "fc.bias", lambda t: t > 0, "holds bool"),
        ("update", "fc.bias", lambda t: t.long(), "these files are not of one capture"),
        ("model", "fc.bias", lambda t: t.long(), "whole numbers"),
        ("update", "fc.bias", lambda t: t[:2], "these files are not of one capture"),
        ("model", "fc.bias", lambda t: t[:2], "of another shape: fc.bias (2,) for (3,)"),
        ("truth", "inputs", lambda t: t + 1, "must be pixels in [0, 1]"),
        ("truth", "inputs", lambda t: t * 255, "must be pixels in [0, 1]"),
        ("truth", "inputs", lambda t: t * torch.nan, "NaN"),
        ("truth", "inputs", lambda t: t[:1], "must be float32 (2, 3, 16, 16)"),
        ("truth", "inputs", lambda t: t.double(), "must be float32"),
        ("truth", "labels", lambda t: t + 2, "label 3: there are 3 classes"),
        ("truth", "labels", lambda t: t - 1, "label -1"),
        ("truth", "labels", lambda t: t[:1], "must be int64 (2,)"),
        ("truth", "labels", lambda t: t.float(), "must be int64 (2,)"),
    ],
)
def test_tensors_that_cannot_be_are_named(capture, role, name, change, words):
    change_tensors(capture, role, lambda t: t | {name: change(t[name]).contiguous()})
    assert words in refusal(given(capture))


@pytest.mark.parametrize(
    ("role", "change", "words"),
    [
        ("model", lambda t: {n: v for n, v in t.items() if n != "fc.bias"}, "lacks fc.bias"),
        ("model", lambda t: t | {"fc.more": torch.ones(2)}, "unknown to it: fc.more"),
        ("update", lambda t: t | {"fc.more": torch.ones(2)}, "fc.more is float32 (2,)"),
        ("update", lambda _: {}, "is nothing"),
        ("update", lambda t: t | {"a\x1b[2J": torch.ones(2)}, "name cannot be printed"),
        ("truth", lambda t: {"inputs": t["inputs"]}, "must hold two tensors"),
    ],
)
def test_files_with_too_little_or_too_much_in_them_are_refused(capture, role, change, words):
    change_tensors(capture, role, change)
    assert words in refusal(given(capture))


def test_numbers_too_large_for_float32_are_refused(capture):
    def huge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        wide = {name: tensor.double() for name, tensor in tensors.items()}
        return wide | {"fc.bias": torch.full((3,), 1e300, dtype=torch.float64)}

    change_tensors(capture, "model", huge)
    assert "infinite as float32" in refusal(given(capture))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin", ".PT"])
def test_pickles_are_refused_by_name_and_not_opened(capture, tmp_path, suffix):
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"x": Bomb()}, capture / f"update{suffix}")
    edit(capture, put("files", "update", "path", value=f"update{suffix}"))
    assert "can run code" in refusal(given(capture))
    assert "can run code" in refusal(capture / f"update{suffix}")
    replace_file(capture, "truth", (capture / f"update{suffix}").read_bytes())
    edit(capture, put("files", "update", "path", value="truth.safetensors"))
    refusal(given(capture))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("../../../outside.safetensors", "lies outside of"),
        ("../../../given/../outside.safetensors", "lies outside of"),
        ("{absolute}", "relative to the capture's folder"),
        ("link.safetensors", "lies outside of"),
        ("..\\x.safetensors", "relative to the capture's folder"),
        ("nothing.safetensors", "no such file"),
        ("folder.safetensors", "no such file"),
        ("pipe.safetensors", "no such file"),
        ("x" * 300 + ".safetensors", "longer than the file system takes"),
        ("update", "must be a .safetensors file"),
        ("", "must be a .safetensors file"),
        ("a\0.safetensors", "path must be text"),
        (".safetensors", "must be a .safetensors file"),
    ],
)
def test_files_lie_in_the_folder_that_was_given(capture, path, words):
    outside = given(capture).parent / "outside.safetensors"
    outside.write_bytes(packed({"fc.bias": torch.ones(3)}))
    (capture / "link.safetensors").symlink_to(outside)
    (capture / "folder.safetensors").mkdir()
    os.mkfifo(capture / "pipe.safetensors")
    edit(capture, put("files", "update", "path", value=path.format(absolute=outside)))
    assert words in refusal(given(capture))


def test_a_shared_model_needs_the_folder_that_holds_it(capture):
    told = refusal(capture)
    assert "lies outside of" in told
    assert "give the folder that holds it" in told
    assert the_one(capture.parent).capture_id == "round-005/client-2"


def test_two_captures_of_one_client_and_round_are_refused(capture):
    shutil.copytree(capture, capture.parent / "copy")
    assert "round-005/client-2 a second time" in refusal(given(capture))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "no capture"),
        ("nothing", "no such folder"),
        ("update.pt", "can run code"),
        ("file.txt", "give the folder"),
        ("x\0", "NUL"),
        ("x" * 300, "longer than the file system takes"),
    ],
)
def test_what_is_no_folder_of_captures_is_refused(tmp_path, name, words):
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(DataError, match=words) as refused:
        read_captures(f"{tmp_path}/{name}")
    assert str(refused.value).startswith("source.path")


def test_the_setting_is_named_as_it_was_given(tmp_path):
    with pytest.raises(DataError, match="--captures=.*no such folder"):
        read_captures(tmp_path / "nothing", setting="--captures")


def test_a_manifest_that_is_a_folder_or_a_pipe_is_no_capture(tmp_path):
    (tmp_path / "capture.json").mkdir()
    with pytest.raises(DataError, match="no capture"):
        read_captures(tmp_path)
    (tmp_path / "capture.json").rmdir()
    os.mkfifo(tmp_path / "capture.json")
    with pytest.raises(DataError, match="not a file"):
        read_captures(tmp_path)


def test_what_changes_between_reading_and_attacking_is_noticed(capture):
    found = read_captures(given(capture))
    path = capture / "update.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(DataError, match="sha256"):
        list(load_captures(found))


def test_all_captures_are_checked_before_the_first_is_attacked(capture):
    later = shutil.copytree(capture, capture.parent / "client-3")
    edit(later, put("client", value=3))
    (later / "update.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="client-3.*truncated"):
        read_captures(given(capture))
