"""A captured update is attacked as the update itself is: to the same bytes."""

from __future__ import annotations

import pytest
import torch
from capture_files import DLG, RESNET
from helpers import CPU, FACTORIES, context, experiment, seeded, sent, spec_of, victim_of

from medpfl.captures import load_captures, read_captures, write_capture
from medpfl.federated import Client
from medpfl.threat import ThreatModel
from medpfl.training import LocalTraining

SPEC = spec_of(3, 32, 32, num_classes=4)
EVERYTHING = ["num_examples", "labels", "local_training", "local_order", "buffers"]


@pytest.mark.parametrize(
    ("network", "model", "training"),
    [
        ("dlg_cnn", DLG, LocalTraining()),
        ("dlg_cnn", DLG, LocalTraining(algorithm="fedavg", epochs=2, batch_size=1)),
        ("resnet18", RESNET, LocalTraining(algorithm="fedavg", batch_size=2)),
    ],
)
def test_a_captured_update_is_observed_as_the_update_itself(tmp_path, network, model, training):
    payload = sent(FACTORIES[network].build(SPEC, seeded(3)), batch_norm="train_shared")
    truth = victim_of(SPEC, [0, 1, 2, 3])
    client = Client(spec=SPEC, device=CPU, training=training)
    update, _ = client.update(truth, payload, seeded(4))
    write_capture(
        tmp_path,
        round=1,
        client=2,
        kind=update.kind,
        update={**update.tensors, **(update.buffers or {})},
        sent={**payload.parameters, **payload.buffers},
        model=model,
        spec=SPEC,
        local_training=update.local_training,
        truth=truth,
    )
    (capture,) = load_captures(read_captures(tmp_path))
    threat = ThreatModel(knows=EVERYTHING)
    seen, read = (
        threat.observe(capture_id="round-001/client-2", payload=p, update=u, spec=SPEC)
        for p, u in ((payload, update), (capture.payload, capture.update))
    )
    assert read.capture_id == capture.capture_id
    for name in ("kind", "spec", "num_examples", "local_training"):
        assert getattr(read, name) == getattr(seen, name)
    assert read.labels is not None
    assert torch.equal(read.labels, truth.labels)
    assert read.payload.training
    for mine, theirs in (
        (read.tensors, seen.tensors),
        (read.payload.parameters, payload.parameters),
        (read.payload.buffers, payload.buffers),
        (read.buffers or {}, seen.buffers or {}),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())


def test_a_captured_update_is_attacked_to_the_same_bytes(tmp_path):
    payload, truth = sent(FACTORIES["dlg_cnn"].build(SPEC, seeded(3))), victim_of(SPEC, [2])
    update, _ = Client(spec=SPEC, device=CPU).update(truth, payload)
    write_capture(
        tmp_path,
        round=0,
        client=0,
        kind="gradient",
        update=update.tensors,
        sent=payload.parameters,
        model=DLG,
        spec=SPEC,
        batch_norm="eval_public",
        truth=truth,
    )
    (capture,) = load_captures(read_captures(tmp_path))
    attack = experiment("attack=scale_free", "dataset=phantom", "n_images=1").attack
    threat = ThreatModel(knows=["num_examples"])
    results = []
    for p, u in ((payload, update), (capture.payload, capture.update)):
        seen = threat.observe(capture_id=capture.capture_id, payload=p, update=u, spec=SPEC)
        results += attack.reconstruct(iter([seen]), context())
    one, other = results
    assert torch.equal(one.inputs, other.inputs)
    assert one.objective == other.objective
    assert float((other.inputs - truth.inputs).square().mean()) < 1e-3
