"""Secure aggregation in a federation: what the server sees, and how attacks read a sum."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from capture_files import DLG
from helpers import FACTORIES, experiment, payload_of, seeded, sent, spec_of, victim_of
from torch.nn import functional

from medpfl.aggregates import Aggregate
from medpfl.attacks.arrangements import Arrangements
from medpfl.attacks.determination import rounding
from medpfl.attacks.distances import SquaredError
from medpfl.attacks.reading import as_gradient, unit_of, update_map_of
from medpfl.captures import load_captures, read_captures, write_capture
from medpfl.errors import ConfigurationError
from medpfl.metrics.success import DefenseSummary
from medpfl.report import console
from medpfl.threat import ThreatModel
from medpfl.training import LocalTraining, UpdateMap, weighted_mean
from medpfl.types import Capture, ClientUpdate, Observation

SPEC = spec_of(1, 12, 12)
LOCAL = LocalTraining(algorithm="fedavg", epochs=2, batch_size=2, lr=0.3, momentum=0.5)
SMALL = (
    "attack=scale_free",
    "dataset=phantom",
    "preprocess.size=12",
    "dataset.per_class=3",
    "federation.clients=3",
    "capture.rounds=[0]",
)
FEDAVG = ("federation=fedavg", "federation.local.batch_size=1", "federation.local.epochs=2")
SECURE = "threat.aggregation=secure"
KNOWS = ["num_examples", "labels", "local_training", "local_order"]


def captures(*overrides: str) -> list[Capture]:
    return list(experiment(*SMALL, *overrides).source.captures())


def mean_of(singles: list[Capture]) -> dict[str, torch.Tensor]:
    tensors = [{n: t.double() for n, t in c.observation.tensors.items()} for c in singles]
    weights = [c.observation.num_examples or 0 for c in singles]
    return weighted_mean(tensors, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_map_of_several_clients_is_the_mean_of_theirs_to_the_bit(dtype):
    sizes, payload = (3, 1, 4), payload_of("dlg_cnn", SPEC)
    victim = victim_of(SPEC, [0, 2, 1, 1, 0, 2, 2, 1])
    parameters = {n: p.to(dtype) for n, p in payload.parameters.items()}
    inputs = victim.inputs.to(dtype)
    labels = functional.one_hot(victim.labels, 3).to(dtype)
    trainings = [LOCAL.drawn(size, seeded(n)) for n, size in enumerate(sizes)]
    forward = payload.forward()
    singles = [
        UpdateMap.of(training).train(forward, parameters, images, own)
        for training, images, own in zip(
            trainings, inputs.split(sizes), labels.split(sizes), strict=True
        )
    ]
    update = UpdateMap.of_clients(trainings, sizes)
    together = update.train(forward, parameters, inputs, labels)
    steps = [LOCAL.steps(size) for size in sizes]
    moved = weighted_mean(
        [one.moved for one in singles], [n * s for n, s in zip(sizes, steps, strict=True)]
    )
    after = weighted_mean([one.parameters for one in singles], sizes)
    assert all(torch.equal(together.moved[n], moved[n]) for n in moved)
    assert all(torch.equal(together.parameters[n], after[n]) for n in after)
    # Its unit takes what moved back to the server's difference of weights.
    exact = 1e-12 if dtype is torch.float64 else 1e-5
    for name, tensor in moved.items():
        way = (parameters[name] - after[name]) / update.unit
        torch.testing.assert_close(tensor, way, rtol=1e-4, atol=exact)


def test_an_order_that_rows_bring_is_that_of_the_batches():
    sizes, payload = (3, 2), payload_of("dlg_cnn", SPEC)
    victim = victim_of(SPEC, [0, 2, 1, 1, 0])
    labels = functional.one_hot(victim.labels, 3).float()
    drawn = UpdateMap.of_clients([LOCAL.drawn(n, seeded(n)) for n in sizes], sizes)
    in_turn = UpdateMap.of_clients([LOCAL, LOCAL], sizes)
    order = torch.tensor([image for batch in drawn.batches or () for image in batch])
    arguments = (payload.forward(), payload.parameters, victim.inputs, labels)
    wanted, given = drawn(*arguments), in_turn(*arguments, order=order)
    assert all(torch.equal(given[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("settings", [("federation.batch_size=1", "n_images=6"), FEDAVG])
@pytest.mark.parametrize("defense", ["none", "[topk,secure_aggregation]"])
def test_the_server_sees_the_mean_of_what_clients_send_to_half_a_step(settings, defense):
    whole = () if "n_images=6" in settings else ("federation.batch_size=null",)
    sums = captures(*settings, *whole, f"defense={defense}", SECURE)
    plain = defense.strip("[]").split(",")[0]
    singles = captures(*settings, *whole, f"defense={plain}")
    assert sums[0].capture_id.startswith("round-000/aggregate")
    for number, capture in enumerate(sums):
        own = [s for s in singles if len(sums) == 1 or s.capture_id.endswith(f"batch-{number}")]
        seen = capture.observation
        assert len(own) == 3 == seen.aggregate.clients
        assert capture.truth.ids == tuple(i for s in own for i in s.truth.ids)
        assert seen.num_examples == len(capture.truth.ids)
        assert capture.facts.defense["survivors"] == 3
        assert capture.facts.defense["entries_clipped"] == 0
        assert capture.facts.defense["expansion"] > 2
        assert list(seen.tensors) == list(seen.payload.parameters)
        for name, exact in mean_of(own).items():
            room = 0.51 * seen.aggregate.step + 2.0**-24 * exact.abs()
            assert ((seen.tensors[name].double() - exact).abs() <= room).all()


@pytest.mark.parametrize("local", [(), FEDAVG])
def test_training_goes_the_same_way_under_secure_aggregation(local):
    settings = (*local, "federation.rounds=2", "capture.rounds=[2]", "n_images=3")
    after = [
        c[0].observation.payload.parameters
        for c in (captures(*settings, "defense=topk"), captures(*settings, "defense=topk", SECURE))
    ]
    for name, tensor in after[0].items():
        torch.testing.assert_close(after[1][name], tensor, rtol=1e-5, atol=1e-6)


def test_who_drops_out_is_in_no_sum_and_in_no_round():
    settings = (
        *("federation.clients=6", "n_images=12", "defense=secure_aggregation"),
        *("defense.secure_aggregation.dropouts=0.3", "federation.rounds=1", "capture.rounds=[0,1]"),
    )
    source = experiment(*SMALL, *settings).source
    one, again = (experiment(*SMALL, *settings).source.plan for _ in range(2))
    assert one == again
    for planned in one:
        survivors = source._rounds.survivors(planned.round)
        assert len(survivors) == 4
        assert [m.client for m in planned.members] == survivors
    assert sum(planned.images for planned in one) <= 12
    made = list(source.captures())
    assert [c.observation.aggregate.clients for c in made] == [4] * len(one)
    first, second = (next(c for c in made if c.round == r).observation.payload for r in (0, 1))
    shards, rounds = source.shards, source._rounds
    own = [
        source._sender.send(f"round-000/client-{n}", rounds._truth(n), first, {}).update
        for n in rounds.survivors(0)
    ]
    mean = weighted_mean([u.tensors for u in own], [len(shards[n]) for n in rounds.survivors(0)])
    for name, tensor in mean.items():
        moved = first.parameters[name] - source.federation.local.lr * tensor
        torch.testing.assert_close(second.parameters[name], moved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["federation.clients=1"], "1 client.* in a round: the sum over one client"),
        (["federation.clients=null"], "say how many clients there are|set federation.clients to 2"),
        (["federation.clients_per_round=1"], "federation.clients_per_round where it is set"),
        (["capture.clients=[1]"], r"capture.clients=\[1\]: under secure aggregation"),
        (
            ["defense.secure_aggregation.dropouts=0.3", "federation.clients=2"],
            "of 2 clients 1 stay.* needs 2: no round would have a sum",
        ),
        (["defense.secure_aggregation.bits=32"], "would wrap round: value_bits="),
        (["threat.aggregation=individual"], "leaves the server nothing but sums"),
        (["federation.batch_norm=train_shared"], "masks the update alone: choose eval_public"),
        (["attack=idlg", "federation.new_model_per_victim=false"], "3 images are behind each"),
        (["attack=surrogate", *FEDAVG], "attack.surrogate: Surrogate follows the weights of one"),
        (["attack=dimitrov", *FEDAVG], "attack.epochs: SeparateEpochs follows the weights of one"),
    ],
)
def test_what_cannot_be_aggregated_is_said_before_training(settings, message):
    base = [*SMALL, "defense=secure_aggregation", "n_images=6"]
    with pytest.raises(ConfigurationError, match=message):
        experiment(*base, *settings)


def test_secure_aggregation_comes_last_and_either_setting_brings_the_other():
    with pytest.raises(ConfigurationError, match="list secure_aggregation last"):
        experiment(*SMALL, "defense=[secure_aggregation,clipping]")
    for settings, parts in (
        ([SECURE], ["secure_aggregation"]),
        ([SECURE, "defense=clipping"], ["clipping", "secure_aggregation"]),
        (["defense=[clipping,secure_aggregation]"], ["clipping", "secure_aggregation"]),
        (["defense=clipping"], ["clipping"]),
    ):
        source = experiment(*SMALL, "n_images=6", *settings).source
        assert list(source.defense.parts) == parts
        assert all(bool(p.members) == ("secure_aggregation" in parts) for p in source.plan)


def summed(threat: ThreatModel, training: LocalTraining, sizes: tuple[int, ...]) -> Observation:
    """Return what is seen of a sum of clients who train so, without any rounding but float32's."""
    payload = sent(FACTORIES["dlg_cnn"].build(SPEC, seeded(3)))
    victim = victim_of(SPEC, [0, 1, 2, 1][: sum(sizes)])
    trainings = [training.drawn(size, seeded(n)) for n, size in enumerate(sizes)]
    trained = UpdateMap.of_clients(trainings, sizes).train(
        payload.forward(),
        payload.parameters,
        victim.inputs,
        functional.one_hot(victim.labels, 3).float(),
    )
    update = ClientUpdate(
        kind="delta",
        tensors={n: t - payload.parameters[n] for n, t in trained.parameters.items()},
        num_examples=sum(sizes),
        local_training=training,
        labels=victim.labels,
        aggregate=Aggregate(
            clients=len(sizes), sizes=sizes, orders=tuple(t.order or () for t in trainings)
        ),
    )
    return threat.observe(capture_id="sum", payload=payload, update=update, spec=SPEC)


@pytest.mark.parametrize("local", [LOCAL, replace(LOCAL, epochs=1, batch_size=None)])
def test_an_attack_reads_a_sum_by_the_map_that_made_it(local):
    observation = as_gradient(summed(ThreatModel(knows=KNOWS), local, (3, 1)))
    victim = victim_of(SPEC, [0, 1, 2, 1])
    found = update_map_of(observation)(
        observation.payload.forward(),
        observation.payload.parameters,
        victim.inputs,
        functional.one_hot(victim.labels, 3).float(),
    )
    assert (found.keys()) == observation.tensors.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(observation.tensors[name], tensor, rtol=1e-3, atol=3e-6)
    # One step each is the plain gradient of all images, in one pass.
    assert bool(update_map_of(observation).clients) == (local is LOCAL)


def test_where_images_of_a_batch_act_on_each_other_each_client_has_a_gradient_of_its_own():
    seen = summed(ThreatModel(knows=KNOWS), replace(LOCAL, epochs=1, batch_size=None), (3, 1))
    in_train_mode = replace(seen, payload=replace(seen.payload, batch_norm="train_private"))
    assert update_map_of(seen) == UpdateMap(lr=LOCAL.lr)
    assert [(c.images, c.steps) for c in update_map_of(in_train_mode).clients] == [(3, 1), (1, 1)]


def test_a_server_is_granted_sizes_and_orders_by_name_and_the_step_always():
    for knows, told in (
        ([], (None, None)),
        (["num_examples"], ((3, 1), None)),
        (["num_examples", "local_training"], ((3, 1), None)),
        (KNOWS, ((3, 1), ...)),
        (["local_training", "local_order"], (None, None)),
    ):
        seen = summed(ThreatModel(knows=knows), LOCAL, (3, 1)).aggregate
        assert seen is not None
        assert (seen.clients, seen.sizes) == (2, told[0])
        assert (seen.orders is None) == (told[1] is None)
    assert ThreatModel().describe("2")[0].endswith("sees sums of 2 clients")


def test_a_row_is_told_which_images_are_whose_and_clients_alike_are_not_told_apart():
    knows = ["num_examples", "local_training"]
    local = replace(LOCAL, batch_size=1)
    observation = as_gradient(summed(ThreatModel(knows=knows), local, (1, 1)))
    found = Arrangements(considered=10).of(
        observation, torch.tensor([0, 1]), classes=2, generator=seeded()
    )
    # Of two clients of one image each: two of a class, of the other, or one of either.
    assert len({tuple(sorted(a.labels.tolist())) for a in found}) == len(found) == 3
    observation = as_gradient(summed(ThreatModel(knows=knows), local, (2, 1)))
    for arrangement in Arrangements(considered=10).of(
        observation, torch.tensor([0, 0, 0]), classes=1, generator=seeded()
    ):
        first, last = arrangement.order.split([4, 2])
        assert sorted(first.tolist()) == [0, 0, 1, 1]
        assert last.tolist() == [2, 2]


def test_no_image_counts_as_determined_below_the_step_of_the_sum():
    observation = as_gradient(summed(ThreatModel(knows=KNOWS), LOCAL, (2, 2)))
    left = []
    for step in (0.0, 1e-3, 1e-2):
        coarse = replace(observation, aggregate=replace(observation.aggregate, step=step))
        left.append(rounding(SquaredError(), coarse))
    assert left[0] < 1e-3 * left[1]
    assert left[2] == pytest.approx(100 * left[1], rel=1e-3)
    # Rounding is uniform over a step, and a mean over two equal clients halves its square.
    entries = sum(t.numel() for t in observation.tensors.values())
    assert left[2] == pytest.approx(entries * 1e-4 / 12 / 2, rel=1e-3)
    delta = summed(ThreatModel(knows=KNOWS), LOCAL, (2, 2))
    delta = replace(delta, aggregate=replace(delta.aggregate, step=0.5))
    assert as_gradient(delta).aggregate.step == pytest.approx(0.5 / unit_of(delta))


def test_a_captured_sum_is_observed_as_the_sum_itself(tmp_path):
    threat = ThreatModel(knows=KNOWS)
    seen = summed(threat, LOCAL, (3, 1))
    victim = victim_of(SPEC, [0, 1, 2, 1])
    given = {
        "round": 1,
        "kind": "delta",
        "update": seen.tensors,
        "sent": seen.payload.parameters,
        "model": DLG,
        "spec": SPEC,
        "batch_norm": "eval_public",
        "local_training": LOCAL,
        "truth": victim,
    }
    write_capture(tmp_path, client=None, aggregate=seen.aggregate, **given)
    (capture,) = load_captures(read_captures(tmp_path))
    read = threat.observe(
        capture_id=capture.capture_id, payload=capture.payload, update=capture.update, spec=SPEC
    )
    assert capture.capture_id == "round-001/aggregate"
    assert read.aggregate == seen.aggregate
    assert all(torch.equal(read.tensors[n], t) for n, t in seen.tensors.items())
    for broken, message in (
        ({"aggregate": seen.aggregate, "client": 3}, "client=3 and aggregate"),
        ({"aggregate": replace(seen.aggregate, sizes=(3, 2)), "client": None}, "num_examples of 5"),
        ({"aggregate": replace(seen.aggregate, clients=3), "client": None}, "a list of 3 entries"),
        ({"aggregate": replace(seen.aggregate, sizes=(1, 3)), "client": None}, "orders of client"),
    ):
        with pytest.raises(Exception, match=message):
            write_capture(tmp_path / "other", **{**given, **broken})
    file = ("attack=scale_free", "source=file", f"source.path={tmp_path}")
    with pytest.raises(ConfigurationError, match=r"1 of the 1 captures in .* are sums"):
        experiment(*file, "threat.aggregation=individual")
    assert experiment(*file, SECURE).source.plan[0].images == 4


def test_the_summary_says_what_a_sum_costs():
    means = {
        "bytes_sent": 118_836.0,
        "expansion": 2.004,
        "aggregation_seconds": 0.012,
        "entries_clipped": 0.0,
    }
    told = DefenseSummary(
        parts=[],
        noise=None,
        privacy="",
        unit="image",
        epsilon_round=None,
        epsilon_attacked=None,
        candidates=10,
        guarantee=[],
        means=means,
    )
    assert console._sent(told) == (
        "118,836 bytes a client and round, 2.004 times the plain update's, 0.012 s to add up a "
        "round"
    )
    cut = replace(told, means={**means, "entries_clipped": 3.0})
    assert console._sent(cut).endswith("3 entries a round cut to clip_range")
