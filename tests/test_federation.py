"""A simulated federation: rounds, captures, and what is refused before any compute."""

from __future__ import annotations

import csv
import gc
import weakref
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from helpers import CPU, config, context, experiment
from torch import Tensor

from medpfl.errors import ConfigurationError
from medpfl.federated import Client
from medpfl.federated.capturing import Capturing
from medpfl.federated.training import Rounds
from medpfl.report.diary import RunDiary
from medpfl.report.duration import longest_time
from medpfl.report.rounds_file import read_rounds
from medpfl.runner import run
from medpfl.seeding import generator
from medpfl.training import LocalTraining
from medpfl.types import Observation, Truth

TINY = (
    "attack=cpl",
    "model=dlg_cnn",
    "dataset.per_class=2",
    "preprocess.size=12",
    "federation/pretrain=none",
    "attack.optimizer.max_steps=2",
    "attack.trace_points=0",
)
FEDAVG = (
    *TINY,
    "federation=fedavg",
    "federation.clients=2",
    "federation.rounds=2",
    "federation.local.batch_size=2",
)


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def truth_of(parts, shard) -> Truth:
    images = parts.data.images
    return Truth(
        inputs=torch.stack([images.load(i) for i in shard]),
        labels=images.labels[list(shard)],
        ids=tuple(images.ids[i] for i in shard),
    )


def test_a_round_is_the_weighted_mean_of_what_clients_send() -> None:
    parts = experiment(*FEDAVG, "dataset.kinds=[head]", "dataset.per_class=3", "federation.alpha=1")
    source = parts.source
    (_, before), (_, after) = (model for model in source._models([], None) if model[0] < 2)
    training = source.federation.local
    total: dict[str, Tensor] = {}
    for number, shard in enumerate(source.shards):
        client = Client(spec=parts.data.spec, device=CPU, training=training)
        order = generator(parts.seed, "order", f"round-000/client-{number}")
        update, _ = client.update(truth_of(parts, shard), before, order)
        for name, tensor in update.tensors.items():
            total[name] = total.get(name, 0) + tensor.double() * len(shard)
    images = sum(map(len, source.shards))
    for name, tensor in total.items():
        expected = before.parameters[name] + (tensor / images).float()
        torch.testing.assert_close(after.parameters[name], expected, rtol=0, atol=1e-7)


def test_fedsgd_descends_the_gradient_of_all_images() -> None:
    lr = 0.25
    parts = experiment(
        *TINY, "federation.clients=3", "federation.rounds=1", f"federation.local.lr={lr}"
    )
    (_, before), (_, after) = parts.source._models([], None)
    everything = truth_of(parts, range(len(parts.data.images)))
    update, _ = Client(spec=parts.data.spec, device=CPU).update(everything, before)
    for name, gradient in update.tensors.items():
        expected = before.parameters[name] - lr * gradient
        torch.testing.assert_close(after.parameters[name], expected, rtol=1e-5, atol=1e-6)


def test_an_attacked_update_is_of_the_clients_own_images_at_its_rounds_model() -> None:
    parts = experiment(*FEDAVG, "capture.rounds=[0,2]", "capture.clients=[1]", "n_images=4")
    models = dict(parts.source._models([], None))
    captures = list(parts.source.captures())
    assert [c.capture_id for c in captures] == [
        f"round-{r:03d}/client-1/batch-{b}" for r in (0, 2) for b in (0, 1)
    ]
    own = {parts.data.images.ids[i] for i in parts.source.shards[1]}
    for capture in captures:
        sent = capture.observation.payload.parameters
        assert all(torch.equal(sent[n], p) for n, p in models[capture.round].parameters.items())
        assert set(capture.truth.ids) <= own
    # The same images in every round, so that rounds can be compared.
    assert captures[0].truth.ids == captures[2].truth.ids


def test_the_update_that_a_client_really_sends_can_be_captured() -> None:
    parts = experiment(*FEDAVG, "attack=dlg", "federation.batch_size=null", "capture.rounds=[1]")
    for capture, shard in zip(parts.source.captures(), parts.source.shards, strict=True):
        assert capture.truth.ids == tuple(parts.data.images.ids[i] for i in shard)
        assert capture.observation.num_examples == len(shard)
        assert capture.observation.local_training.batch_size == 2


def test_nothing_towards_the_attacker_names_an_image() -> None:
    parts = experiment(*FEDAVG, "capture.rounds=[0,1]", "n_images=4")
    names = {part for i in parts.data.images.ids for part in i.split("/")} - {"0000", "0001"}
    for capture in parts.source.captures():
        seen = capture.observation
        said = " ".join(
            str(getattr(seen, f.name))
            for f in fields(Observation)
            if f.name not in ("payload", "tensors")
        )
        assert not [name for name in names if name in said]


def test_only_the_captured_parameters_are_seen() -> None:
    last = experiment(*TINY, "capture.parameters=[fc.*]", "n_images=2")
    for capture in last.source.captures():
        assert set(capture.observation.tensors) == {"fc.weight", "fc.bias"}
    found = list(
        last.attack.reconstruct((c.observation for c in last.source.captures()), context())
    )
    assert len(found) == 2
    assert all(bool(torch.isfinite(f.inputs).all()) for f in found)


def test_a_global_model_is_let_go_once_its_captures_are_attacked() -> None:
    parts = experiment(*FEDAVG, "capture.rounds=[0,1,2]", "n_images=6")
    seen = []
    for capture in parts.source.captures():
        seen.append(weakref.ref(capture.observation.payload))
        del capture
        gc.collect()
        alive = [ref for ref in seen if ref() is not None]
        # The first model is the one that every training starts from; of the others, one at a time.
        assert len({id(ref()) for ref in alive}) <= 2


def test_an_attack_is_timed_without_any_training(monkeypatch) -> None:
    parts = experiment(*FEDAVG, "capture.rounds=[2]", "n_images=2", "attack.restarts=2000")
    monkeypatch.setattr(Rounds, "models", lambda *_: pytest.fail("a round was trained"))
    longest_time(parts)


def test_what_a_run_leaves_of_its_rounds(tmp_path: Path) -> None:
    settings = config(*FEDAVG, "capture.rounds=[0,2]", "n_images=4")
    run(settings, tmp_path / "run")
    rows = table(tmp_path / "run/metrics.csv")
    assert list(rows[0])[:4] == ["capture_id", "round", "client", "image_id"]
    assert [(row["round"], row["client"]) for row in rows] == [
        ("0", "0"),
        ("0", "1"),
        ("2", "0"),
        ("2", "1"),
    ]
    assert (tmp_path / "run/rounds.csv").read_text().splitlines()[0] == (
        "round,accuracy,balanced_accuracy,auc,loss"
    )
    assert [score.round for score in read_rounds(tmp_path / "run/rounds.csv")] == [0, 1, 2]
    assert (tmp_path / "run/figures/rounds.png").stat().st_size > 10_000
    leakage = table(tmp_path / "run/leakage.csv")
    assert [(row["round"], row["n"]) for row in leakage] == [("0", "2"), ("2", "2")]
    for path in (tmp_path / "run").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_training_that_was_stopped_goes_on_from_its_last_model(tmp_path: Path) -> None:
    parts = experiment(*FEDAVG, "federation.rounds=3", "capture.rounds=[1,3]", "n_images=4")

    def diary() -> RunDiary:
        return RunDiary(tmp_path, captured={1, 3}, device="cpu")

    whole = list(parts.source.captures((), diary()))
    trained = []
    again = diary()
    again.begins = lambda number, rounds: trained.append(number)  # type: ignore[method-assign]
    done = [c.capture_id for c in whole if c.round == 1]
    later = list(parts.source.captures(done, again))
    assert trained == []  # the model of round 3 is there
    for path in (tmp_path / "checkpoints").glob("round-003*"):
        path.unlink()
    rest = list(parts.source.captures(done, again))
    assert trained == [2, 3]
    for found in (later, rest):
        for one, other in zip(found, whole[2:], strict=True):
            assert list(one.observation.tensors) == list(other.observation.tensors)
            pairs = zip(
                one.observation.tensors.values(), other.observation.tensors.values(), strict=True
            )
            assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["capture.rounds=[0,5]"], r"capture\.rounds=\[0, 5\]: round 5 is never reached"),
        (["capture.clients=[2]"], r"capture\.clients=\[2\]: there are 2 clients"),
        (["capture.clients=[]"], r"capture\.clients=\[\]: name at least one"),
        (["capture.rounds=[0,0]"], r"capture\.rounds=\[0, 0\]: name each once"),
        (["capture.parameters=[nothing]"], r"the network has no parameter 'nothing'"),
        (["capture.parameters=[body.*]"], r"SmallestRow reads the labels off fc\.bias|fc\.weight"),
        (["n_images=1", "capture.rounds=[0,1]"], r"n_images=1: 2 rounds of 2 clients"),
        (["federation.batch_size=9", "n_images=18"], r"the smallest-row rule|client 0 has"),
        (["federation.clients=13"], r"federation\.clients=13, but there are 12 images"),
        (["federation.clients_per_round=3"], r"federation\.clients_per_round=3: there are"),
        (["federation.new_model_per_victim=true"], r"clients that train together share one"),
        (["federation.clients=null"], r"federation\.rounds=2: nobody trains together"),
        (
            ["federation.clients=null", "federation.rounds=0", "federation.batch_size=null"],
            r"federation\.batch_size=null is all that a client has",
        ),
        (["threat.local_training=none"], r"attack\.distance: SquaredError compares sizes"),
        (["threat.local_training=some"], r"threat\.local_training=some: choose full"),
        (["federation.partition=folder"], r"in no folders"),
        (
            ["federation.batch_size=null", "federation.clients_per_round=1", "attack=dlg"],
            r"client \d takes no part in round 0 \(federation\.clients_per_round=1\)",
        ),
    ],
)
def test_what_cannot_work_is_said_before_any_compute(settings, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        experiment(*FEDAVG, *settings)


@pytest.mark.parametrize(("size", "few"), [(6, 0), (7, 2)])
def test_local_batches_that_no_client_can_fill_are_said(size, few) -> None:
    """As torch's loader does, a client with fewer images than a batch takes all of them."""
    parts = experiment(*FEDAVG[:-1], f"federation.local.batch_size={size}")
    assert [len(shard) for shard in parts.source.shards] == [6, 6]
    told = [line for line in parts.source.describe().federation if "fewer images" in line]
    assert len(told) == bool(few)
    assert all(f"{few} of 2 clients" in line and f"batch of {size}:" in line for line in told)


def test_one_fedavg_step_is_attacked_as_its_gradient_is_to_the_bit() -> None:
    # A learning rate of one half loses no bit, nor does it where weights are exact to begin with.
    parts = experiment(*TINY, "n_images=2", "attack.precision=float64")
    seen = [c.observation for c in parts.source.captures()]
    as_delta = [
        replace(
            o,
            kind="delta",
            tensors={n: -0.5 * t.double() for n, t in o.tensors.items()},
            local_training=LocalTraining(algorithm="fedavg", lr=0.5),
        )
        for o in seen
    ]
    plain = parts.attack.reconstruct(seen, context())
    found = parts.attack.reconstruct(as_delta, context())
    for one, other in zip(plain, found, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert (one.objective, one.evaluations) == (other.objective, other.evaluations)


def test_capturing_names_parameters_by_pattern() -> None:
    names = ["body.0.weight", "body.0.bias", "fc.weight", "fc.bias"]
    assert Capturing(parameters=["*.bias"]).names_of(names) == ("body.0.bias", "fc.bias")
    assert Capturing().names_of(names) == tuple(names)
