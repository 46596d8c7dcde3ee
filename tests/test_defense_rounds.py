"""What the defenses of a client keep from round to round: in training, in probes, after a stop."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers import CONF, CPU, experiment
from records import assert_same_end, run_json
from sessions import Stop, session, start
from torch import Tensor

from medpfl.defenses import RandomK, TopK
from medpfl.federated import Client
from medpfl.report.diary import RunDiary
from medpfl.resume import Request
from medpfl.resume.run import resume_run
from medpfl.seeding import generator
from medpfl.types import ServerPayload, Truth

FEDAVG = (
    "device=cpu",
    "attack=dlg",
    "model=dlg_cnn",
    "dataset.per_class=2",
    "preprocess.size=12",
    "attack.optimizer.max_steps=1",
    "attack.trace_points=0",
    "attack.rows=1",
    "federation=fedavg",
    "federation.clients=2",
    "federation.rounds=3",
    "federation.local.batch_size=2",
)
SPARSE = ("defense=topk", "defense.topk.fraction=0.05")


def truth_of(parts, indices) -> Truth:
    images = parts.data.images
    return Truth(
        inputs=torch.stack([images.load(i) for i in indices]),
        labels=images.labels[list(indices)],
        ids=tuple(images.ids[i] for i in indices),
    )


def same(one, other) -> bool:
    return list(one) == list(other) and all(torch.equal(t, other[n]) for n, t in one.items())


class ByHand:
    """Error feedback in a federation, written out."""

    def __init__(self, parts, part) -> None:
        self.parts, self.part, self.kept = parts, part, {}
        training = parts.source.federation.local
        self.client = Client(spec=parts.data.spec, device=CPU, training=training)

    def sent(self, name: str, number: int, truth: Truth, payload: ServerPayload):
        """Return what a client sends, and what it then keeps."""
        update, _ = self.client.update(truth, payload, generator(0, "order", name))
        kept = self.kept.get(number, {})
        wanted = {n: t + kept[n] if kept else t for n, t in update.tensors.items()}
        tensors, _ = self.part.compress(wanted, generator(0, "defense", name))
        return tensors, {n: t - tensors[n] for n, t in wanted.items()}

    def round(self, number: int, payload: ServerPayload) -> dict[str, Tensor]:
        """Return the parameters after a round, and let its clients keep what they do."""
        total: dict[str, Tensor] = {}
        images = 0
        for client in self.parts.source._rounds.participants(number):
            shard = self.parts.source.shards[client]
            name = f"round-{number:03d}/client-{client}"
            tensors, self.kept[client] = self.sent(
                name, client, truth_of(self.parts, shard), payload
            )
            images += len(shard)
            for n, t in tensors.items():
                total[n] = total.get(n, 0) + t.double() * len(shard)
        return {n: p + (total[n] / images).float() for n, p in payload.parameters.items()}


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (SPARSE, TopK(fraction=0.05)),
        (("defense=randomk", "defense.randomk.fraction=0.1"), RandomK(fraction=0.1)),
        ((*SPARSE, "federation.clients=3", "federation.clients_per_round=2"), TopK(fraction=0.05)),
    ],
    ids=["topk", "randomk", "some take part"],
)
def test_every_client_keeps_its_own_until_it_takes_part_again(settings, part) -> None:
    parts = experiment(*FEDAVG, *settings)
    by_hand, states = ByHand(parts, part), {}
    expected = None
    for number, payload in parts.source._models([], None, states):
        if expected is not None:
            for name, tensor in payload.parameters.items():
                torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-7)
            assert states.keys() == by_hand.kept.keys()
            for client, kept in by_hand.kept.items():
                for name, tensor in states[client][part.name].items():
                    torch.testing.assert_close(tensor, kept[name], rtol=0, atol=1e-7)
        if number < 3:
            expected = by_hand.round(number, payload)
    assert number == 3


def test_a_probe_adds_what_its_client_has_kept_and_changes_nothing() -> None:
    settings = (*FEDAVG, *SPARSE, "n_images=4", "capture.rounds=[0,2]")
    parts = experiment(*settings)
    undisturbed = dict(parts.source._models([], None))
    states: dict = {}
    at_2: dict = {}
    for number, _ in parts.source._models([], None, states):
        if number == 2:
            at_2 = {client: dict(kept["topk"]) for client, kept in states.items()}
    by_hand = ByHand(parts, TopK(fraction=0.05))
    for capture in parts.source.captures():
        payload = undisturbed[capture.round]
        assert same(capture.observation.payload.parameters, payload.parameters)
        by_hand.kept = at_2 if capture.round == 2 else {}
        tensors, left = by_hand.sent(capture.capture_id, capture.client, capture.truth, payload)
        assert same(capture.observation.tensors, tensors)
        residual = torch.cat([t.flatten() for t in left.values()]).double().norm()
        assert capture.facts.defense["residual_norm"] == pytest.approx(float(residual))


def test_what_a_client_really_sends_is_what_moves_the_model() -> None:
    settings = (*FEDAVG, *SPARSE, "federation.clients=2", "federation.batch_size=null")
    parts = experiment(*settings, "capture.rounds=[1]")
    models = dict(parts.source._models([], None))
    total: dict[str, Tensor] = {}
    images = 0
    for capture in parts.source.captures():
        images += len(capture.truth.ids)
        for name, tensor in capture.observation.tensors.items():
            total[name] = total.get(name, 0) + tensor.double() * len(capture.truth.ids)
    for name, before in models[1].parameters.items():
        after = before + (total[name] / images).float()
        torch.testing.assert_close(models[2].parameters[name], after, rtol=0, atol=1e-7)


def test_two_walks_through_the_same_rounds_start_from_nothing() -> None:
    parts = experiment(*FEDAVG, *SPARSE, "n_images=2", "capture.rounds=[1]")
    one, other = list(parts.source.captures()), list(parts.source.captures())
    for a, b in zip(one, other, strict=True):
        assert same(a.observation.tensors, b.observation.tensors)


def test_a_checkpoint_holds_what_clients_keep(tmp_path: Path) -> None:
    settings = (*FEDAVG, *SPARSE, "capture.rounds=[1,3]", "n_images=4")
    parts = experiment(*settings)

    def diary() -> RunDiary:
        return RunDiary(tmp_path, captured={1, 3}, device="cpu")

    whole = list(parts.source.captures((), diary()))
    (tmp_path / "checkpoints/round-003.safetensors").unlink()
    again = list(parts.source.captures([], diary()))
    for one, other in zip(whole, again, strict=True):
        assert same(one.observation.tensors, other.observation.tensors)
        assert one.facts.defense == other.facts.defense
    kept = diary().latest(1)
    assert kept is not None
    assert {client: list(parts) for client, parts in kept.states.items()} == {
        0: ["topk"],
        1: ["topk"],
    }
    assert kept.parameters.keys() == whole[0].observation.payload.parameters.keys()


def test_a_run_that_was_killed_in_training_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    settings = (*FEDAVG, *SPARSE, "capture.rounds=[1,3]", "n_images=4")
    whole, half = tmp_path / "whole", tmp_path / "half"
    process = start(session, whole, settings, tmp_path / "log", None)
    process.join()
    assert process.exitcode == 0
    # Round by round two updates are trained with; after the first, two probes are attacked. The
    # seventh is of the third round.
    process = start(session, half, settings, tmp_path / "log", Stop("update", 7))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert run_json(half)["status"] == "running"
    copy = shutil.copytree(half, tmp_path / "copy")
    resume_run(Request(copy), CONF)
    assert_same_end(copy, whole)
