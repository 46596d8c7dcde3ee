"""Captures: what is written is what is read, whole, private, and one at a time."""

from __future__ import annotations

import gc
import json
import os
import stat
import weakref
from pathlib import Path

import pytest
import torch
from capture_files import (
    DLG,
    RESNET,
    SPEC,
    came_back,
    edit,
    images,
    sent_by,
    the_one,
    writer,
    written,
)
from torch import nn

from medpfl.captures import Defense, Framework, load_captures, read_captures, write_capture
from medpfl.errors import DataError
from medpfl.training import LocalTraining

LOCAL = LocalTraining(algorithm="fedavg", epochs=2, batch_size=1, lr=0.1)


class Own(nn.Module):
    """A network that knows nothing of medpfl, with statistics and two names for one weight."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.first = nn.Linear(in_channels * 256, num_classes)
        self.second = self.first

    def forward(self, inputs_norm: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(inputs_norm).flatten(1))


OWN = {"_target_": f"{__name__}.Own"}


@pytest.mark.parametrize("kind", ["gradient", "delta"])
def test_a_gradient_and_a_delta_are_read_as_they_came(tmp_path, kind):
    federation = writer(tmp_path)
    sent = sent_by(federation)
    update = came_back(sent)
    federation.write(round=0, client=0, kind=kind, update=update, sent=sent, num_examples=4)
    capture = the_one(tmp_path)
    assert capture.update.kind == kind
    assert capture.update.num_examples == 4
    assert capture.update.tensors.keys() == update.keys()
    assert all(torch.equal(capture.update.tensors[n], t) for n, t in update.items())
    assert all(torch.equal(capture.payload.parameters[n], t) for n, t in sent.items())


def test_weights_become_what_they_moved_by(tmp_path):
    written(tmp_path)
    sent = sent_by(writer(tmp_path))
    after, capture = came_back(sent), the_one(tmp_path)
    assert capture.update.kind == "delta"
    assert all(torch.equal(t, after[n] - sent[n]) for n, t in capture.update.tensors.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_read_as_float32(tmp_path, dtype):
    federation = writer(tmp_path)
    sent = sent_by(federation)
    update = {name: tensor.to(dtype) for name, tensor in came_back(sent).items()}
    federation.write(round=0, client=0, kind="weights", update=update, sent=sent, num_examples=1)
    for name, tensor in the_one(tmp_path).update.tensors.items():
        assert tensor.dtype == torch.float32
        exact = (update[name].double() - sent[name].double()).float()
        torch.testing.assert_close(tensor, exact, rtol=1e-5, atol=1e-7)


def test_arrays_of_numpy_are_written_as_tensors_are(tmp_path):
    federation = writer(tmp_path)
    sent = sent_by(federation)
    arrays = {name: tensor.numpy() for name, tensor in came_back(sent).items()}
    plain = {name: tensor.numpy() for name, tensor in sent.items()}
    federation.write(round=0, client=0, kind="delta", update=arrays, sent=plain, num_examples=1)
    tensors = the_one(tmp_path).update.tensors
    assert all(torch.equal(tensors[n], torch.from_numpy(a)) for n, a in arrays.items())


def test_everything_that_is_said_is_read(tmp_path):
    training = LOCAL.in_turn(2)
    write_capture(
        tmp_path,
        round=5,
        client=2,
        kind="delta",
        update=came_back(sent_by(writer(tmp_path))),
        sent=sent_by(writer(tmp_path)),
        model=DLG,
        spec=SPEC,
        batch_norm="eval_public",
        local_training=training,
        labels=[0, 1],
        classes=["healthy", "benign", "malignant"],
        truth=images(),
        defense=Defense(description="clipped to 1, then noise", noise_scale=0.25),
        framework=Framework(name="flower", version="1.41.0", round="6", client="77"),
    )
    (folder,), capture = read_captures(tmp_path), the_one(tmp_path)
    assert capture.capture_id == folder.capture_id == "round-005/client-2"
    assert (capture.round, capture.client) == (5, 2)
    assert not capture.payload.training
    assert capture.spec == SPEC
    assert capture.update.local_training == training
    assert capture.update.num_examples == 2
    assert capture.defense is not None
    assert capture.defense.noise_scale == 0.25
    assert folder.manifest.framework == Framework(
        name="flower", version="1.41.0", round="6", client="77"
    )
    assert folder.manifest.classes == ("healthy", "benign", "malignant")


def test_the_truth_comes_back_with_its_labels(tmp_path):
    written(tmp_path, num_examples=None)
    capture, truth = the_one(tmp_path), images()
    assert capture.truth is not None
    assert torch.equal(capture.truth.inputs, truth.inputs)
    assert torch.equal(capture.truth.labels, truth.labels)
    assert capture.truth.ids == truth.ids
    assert capture.update.labels is not None
    assert torch.equal(capture.update.labels, truth.labels)
    assert capture.update.num_examples == 2


def test_without_truth_there_is_none(tmp_path):
    written(tmp_path, truth=None)
    capture = the_one(tmp_path)
    assert capture.truth is None
    assert capture.update.labels is None


@pytest.mark.parametrize("known", ["num_examples", "labels", "order"])
def test_any_of_these_tells_how_many_images(tmp_path, known):
    say = {
        "num_examples": {"num_examples": 2},
        "labels": {"labels": [2, 0]},
        "order": {"local_training": LOCAL.in_turn(2)},
    }
    written(tmp_path, **{"truth": None, "num_examples": None, **say[known]})
    assert the_one(tmp_path).update.num_examples == 2


def test_where_nobody_tells_how_many_images_the_way_out_is_named(tmp_path):
    written(tmp_path, truth=None, num_examples=None)
    with pytest.raises(DataError, match="write there how many images"):
        read_captures(tmp_path)


def test_statistics_come_back_where_the_client_sends_them(tmp_path):
    federation = writer(tmp_path, RESNET)
    sent = sent_by(federation)
    after = came_back(sent)
    federation.write(round=0, client=0, kind="weights", update=after, sent=sent, num_examples=8)
    private = {n: after[n] for n in federation.network.parameters}
    federation.write(round=0, client=1, kind="weights", update=private, sent=sent, num_examples=8)
    shared, kept = load_captures(read_captures(tmp_path))
    assert kept.update.buffers is None
    assert shared.update.buffers is not None
    assert shared.update.buffers.keys() == shared.payload.buffers.keys()
    for name, buffer in shared.update.buffers.items():
        assert torch.equal(buffer, after[name])
        assert torch.equal(shared.payload.buffers[name], sent[name])
    assert not shared.update.tensors.keys() & shared.update.buffers.keys()


def test_layers_that_stayed_at_the_client_are_left_out(tmp_path):
    federation = writer(tmp_path)
    sent = sent_by(federation)
    body = {name: t for name, t in came_back(sent).items() if name.startswith("body")}
    federation.write(round=0, client=0, kind="delta", update=body, sent=sent, num_examples=1)
    assert the_one(tmp_path).update.tensors.keys() == body.keys()


def test_clients_that_were_sent_the_same_share_its_file_and_its_network(tmp_path):
    federation = writer(tmp_path)
    one, other = sent_by(federation, 0), sent_by(federation, 1)
    for client, sent in enumerate((one, one, other)):
        federation.write(
            round=3, client=client, kind="delta", update=came_back(one), sent=sent, num_examples=1
        )
    assert len(list((tmp_path / "round-003").glob("model-*.safetensors"))) == 2
    first, second, third = load_captures(read_captures(tmp_path))
    assert first.payload is second.payload
    assert third.payload is not first.payload
    assert torch.equal(first.payload.parameters["fc.bias"], one["fc.bias"])
    assert torch.equal(third.payload.parameters["fc.bias"], other["fc.bias"])


def test_captures_come_by_round_and_client_and_some_may_be_left_out(tmp_path):
    for round_, client in ((12, 0), (2, 10), (2, 9)):
        written(tmp_path, round=round_, client=client)
    found = read_captures(tmp_path)
    ids = [capture.capture_id for capture in found]
    assert ids == ["round-002/client-9", "round-002/client-10", "round-012/client-0"]
    assert [c.capture_id for c in load_captures(found, leave_out=ids[:2])] == ids[2:]


def test_a_capture_is_let_go_before_the_next_is_read(tmp_path):
    for client in range(3):
        written(tmp_path, client=client)
    past: list[weakref.ref[torch.Tensor]] = []
    for capture in load_captures(read_captures(tmp_path)):
        gc.collect()
        assert [tensor for tensor in past if tensor() is not None] == []
        assert capture.truth is not None
        past = [weakref.ref(capture.truth.inputs), weakref.ref(capture.update.tensors["fc.bias"])]
        del capture
    assert len(past) == 2


def test_only_the_owner_can_read_a_capture_whatever_the_umask(tmp_path):
    before = os.umask(0o000)
    try:
        folder = written(tmp_path / "new" / "captures")
    finally:
        os.umask(before)
    for path in (tmp_path / "new" / "captures").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert {p.name for p in folder.iterdir()} == {
        "capture.json",
        "truth.safetensors",
        "update.safetensors",
    }


def test_a_folder_that_is_there_keeps_its_access(tmp_path):
    tmp_path.chmod(0o755)
    written(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_the_manifest_is_written_last(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medpfl.captures.write.write_text", full)
    with pytest.raises(DataError, match="No space left"):
        written(tmp_path)
    assert (tmp_path / "round-005" / "client-2" / "update.safetensors").is_file()
    with pytest.raises(DataError, match="no capture"):
        read_captures(tmp_path)
    monkeypatch.undo()
    written(tmp_path)
    assert the_one(tmp_path).capture_id == "round-005/client-2"


def test_a_capture_is_not_written_over(tmp_path):
    content = (written(tmp_path) / "capture.json").read_text()
    with pytest.raises(DataError, match="there already"):
        written(tmp_path, num_examples=2)
    assert (tmp_path / "round-005" / "client-2" / "capture.json").read_text() == content


def test_a_network_of_ones_own_must_be_trusted(tmp_path):
    federation = writer(tmp_path, OWN)
    sent = sent_by(federation)
    federation.write(
        round=0, client=0, kind="weights", update=came_back(sent), sent=sent, num_examples=1
    )
    with pytest.raises(DataError, match=r"not medpfl's: \"test_captures.Own\"") as refused:
        read_captures(tmp_path)
    assert "trust" in str(refused.value)
    (capture,) = load_captures(read_captures(tmp_path, trusted=[OWN["_target_"]]))
    assert isinstance(capture.payload.model, Own)
    assert set(capture.update.tensors) == {"norm.weight", "norm.bias", "first.weight", "first.bias"}
    assert torch.equal(capture.payload.model.second.weight, sent["first.weight"])


def test_a_model_file_may_lie_beside_the_update(tmp_path):
    folder = written(tmp_path)
    entry = json.loads((folder / "capture.json").read_text())["files"]["model"]
    (folder / entry["path"]).rename(folder / "model.safetensors")
    edit(folder, lambda m: m["files"]["model"].update(path="model.safetensors"))
    assert the_one(folder).capture_id == "round-005/client-2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"round": -1}, "round must be a whole number"),
        ({"client": 1.5}, "client must be a whole number"),
        ({"kind": "grad"}, "kind must be gradient or delta or weights"),
        ({"num_examples": 3}, "truth_ids tells of 2 images, and num_examples of 3"),
        ({"labels": [0, 3]}, "labels must be a list of whole numbers from 0 to 2"),
        ({"labels": [1, 0]}, "labels are not those"),
        ({"labels": torch.tensor([0, 1])}, "cannot be written as JSON"),
        ({"update": {}}, "holds no parameter"),
        ({"update": {"fc.bias": torch.zeros(4)}}, r"fc.bias \(4,\) for \(3,\)"),
        ({"update": {"fc.bias": torch.full((3,), torch.nan)}}, "3 numbers that are NaN"),
        ({"update": {"fc.bias": torch.zeros(3, dtype=torch.int32)}}, "holds int32"),
        ({"update": {"fc.bias": "zero"}}, "no array of numbers"),
        ({"sent": {"fc.bias": torch.zeros(3)}}, "lacks body.0.weight"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, changes, words):
    with pytest.raises(DataError, match=words) as refused:
        written(tmp_path / "captures", **changes)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "captures").exists()


def test_a_model_that_is_none_is_told_before_any_update(tmp_path):
    with pytest.raises(DataError, match="cannot be found"):
        _ = writer(tmp_path, {"_target_": "nobody.has.This"}).network


def test_the_folder_holds_what_the_documentation_draws(tmp_path):
    written(tmp_path)
    files = {str(p.relative_to(tmp_path)) for p in Path(tmp_path).rglob("*") if p.is_file()}
    model = next(name for name in files if "model-" in name)
    assert files - {model} == {
        f"round-005/client-2/{name}"
        for name in ("capture.json", "update.safetensors", "truth.safetensors")
    }
