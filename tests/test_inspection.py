"""What a client sees of a model before training: planted ones are caught, honest ones are not."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import payload_of, seeded, sent, spec_of
from planted_models import SPEC, imprinted, perceptron, traps
from torch import nn

from medpfl.federated.malicious import LokiServer, MicServer, TrapServer
from medpfl.federated.malicious.base import Awaited
from medpfl.inspection import balanced, paired, repeated
from medpfl.inspection.agreed import architecture_hash
from medpfl.inspection.examine import examine
from medpfl.inspection.reach import reach_of
from medpfl.inspection.received import Received
from medpfl.inspection.verdict import Verdict
from medpfl.types import ServerPayload


def found(payload: ServerPayload, **agreed: str) -> set[str]:
    verdict = examine(Received.of_payload(payload, SPEC.shape), **agreed)
    return {finding.check for finding in verdict.alarms}


@pytest.mark.parametrize("kind", ["cumulative", "sparse"])
@pytest.mark.parametrize("query", ["random", "mean"])
@pytest.mark.parametrize("bins", [50, 300])
def test_an_imprint_ahead_of_the_network_is_caught_twice(kind, query, bins):
    payload = imprinted(kind=kind, query=query, bins=bins)
    assert found(payload) == {"repeated_rows", "wide_first_layer"}


def test_an_imprint_in_the_middle_is_caught_by_its_rows():
    spec = spec_of(3, 32, 32)
    payload = imprinted(spec, "lenet", place="fc1")
    verdict = examine(Received.of_payload(payload, spec.shape))
    assert [f.where for f in verdict.alarms] == ["fc1.rows.weights.0"]


def test_rows_are_caught_however_many_honest_ones_they_hide_among():
    rows = nn.Linear(256, 200).weight.detach().clone()
    query = torch.randn(256, generator=seeded(3))
    bias = torch.zeros(200)
    rows[::20], bias[::20] = query, torch.linspace(-1, 1, 10)
    assert found(sent(perceptron(rows, bias))) == {"repeated_rows"}
    several = rows.clone()
    several[1::20] = torch.randn(256, generator=seeded(4)) * torch.rand(10, 1, generator=seeded(5))
    assert found(sent(perceptron(several, bias))) == {"repeated_rows"}


def test_rows_that_are_sent_in_many_small_parameters_are_looked_at_together():
    query = torch.randn(256, generator=seeded(3))
    parts = {f"{n}.weight": query.expand(2, -1) for n in range(6)}
    biases = {f"{n}.bias": torch.tensor([n, n + 0.5]) for n in range(6)}
    assert examine(Received.of_state({**parts, **biases})).suspicious


def test_jittered_rows_are_caught_by_thresholds_that_spread():
    query = torch.randn(1024, generator=seeded(3))
    noise = torch.randn(100, 1024, generator=seeded(4))
    thresholds = query.norm() * torch.randn(100, generator=seeded(5))
    for jitter in (0.1, 0.5, 1.0):
        assert found(sent(perceptron(query + jitter * noise, thresholds))) == {"repeated_rows"}
        # Honest rows that came to be alike have thresholds that agree.
        alike = sent(perceptron(query + jitter * noise, 1e-2 * thresholds))
        assert found(alike) == set()


def test_copies_of_neurons_are_no_imprint():
    widened = nn.Linear(256, 8)
    rows, bias = widened.weight.detach().repeat(8, 1), widened.bias.detach().repeat(8)
    assert found(sent(perceptron(rows, bias))) == set()


@pytest.mark.parametrize("scale", [0.01, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("inputs", [256, 3072])
def test_trap_weights_are_caught(scale, signed, inputs):
    weight = traps(24 if inputs < 1000 else 6, inputs, scale, signed=signed)
    assert "paired_weights" in found(sent(perceptron(weight)))


def test_trap_weights_are_caught_in_half_precision_and_among_honest_rows():
    half = traps(6, 3072, 0.01, signed=False).half().float()
    assert "paired_weights" in found(sent(perceptron(half)))
    rows = nn.Linear(3072, 100).weight.detach().clone()
    rows[::20] = traps(5, 3072, 0.97, signed=True)
    assert found(sent(perceptron(rows))) == {"paired_weights"}


def test_jittered_traps_are_caught_by_their_signs():
    weight = traps(64, 1024, 0.97, signed=True, jitter=0.05)
    assert found(sent(perceptron(weight))) == {"balanced_signs"}


def test_the_scale_of_a_trap_is_read_off_its_weights():
    excess, share, scale = paired.partners(traps(4, 3072, 0.5, signed=True))
    assert float(share.min()) > 0.9
    assert float(excess.min()) > 30
    assert scale.tolist() == pytest.approx([0.5] * 4, rel=0.01)
    excess, share, _ = paired.partners(torch.randn(16, 3072, generator=seeded(6)))
    assert float(excess.max()) < 10


def test_the_statistics_are_what_independent_numbers_make_of_them():
    rows = torch.randn(2000, 400, generator=seeded(7))
    assert balanced.dispersion(rows) == pytest.approx(1, abs=0.15)
    sketch = repeated.sketched(torch.randn(64, 20_000, generator=seeded(8)))
    unit = nn.functional.normalize(sketch)
    cosines = (unit @ unit.T).fill_diagonal_(0)
    # One over the root of the inputs, and of the sketch's.
    assert float(cosines.std()) == pytest.approx(math.sqrt(1 / 20_000 + 1 / 4096), rel=0.05)
    drawn = torch.rand(5000, generator=seeded(9))
    assert repeated.regularity(drawn) == pytest.approx(2 * math.log(2) - 1, abs=0.02)
    assert repeated.regularity(torch.linspace(0, 1, 50)) == pytest.approx(1, abs=1e-3)


def test_kernels_for_one_client_are_caught():
    model = nn.Sequential(nn.Conv2d(3, 30, 3), nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(1, 3, 8, 8))
    assert found(sent(model)) == set()
    with torch.no_grad():
        nn.init.zeros_(model[0].weight)
        model[0].weight[range(9, 12), range(3), 1, 1] = 1
    assert found(sent(model)) == {"single_channel_kernels"}


def test_numbers_that_are_none_end_the_inspection():
    model = perceptron(torch.randn(8, 64, generator=seeded(1)))
    payload = sent(model)
    payload.parameters["1.weight"][0, 0] = math.nan
    assert found(payload) == {"odd_numbers"}
    payload.parameters["1.weight"][0, 0] = 1e6
    assert found(payload) == {"odd_numbers"}


def test_a_wide_layer_is_an_alarm_ahead_of_convolutions_alone():
    images = nn.Linear(256, 300)
    honest = sent(nn.Sequential(nn.Flatten(), images, nn.ReLU(), nn.Linear(300, 3)))
    verdict = examine(Received.of_payload(honest, SPEC.shape))
    assert [(f.check, f.weight) for f in verdict.findings] == [("wide_first_layer", "note")]
    ahead = nn.Sequential(nn.Flatten(), images, nn.Unflatten(1, (3, 10, 10)), nn.Conv2d(3, 3, 3))
    assert found(sent(ahead)) == {"wide_first_layer"}


def test_another_architecture_than_the_one_agreed_on():
    honest = payload_of("idlg_cnn", SPEC)
    agreed = architecture_hash(Received.of_payload(honest))
    stored = {**honest.parameters, **honest.buffers}
    assert architecture_hash(Received.of_state(dict(reversed(stored.items())))) == agreed
    assert found(payload_of("idlg_cnn", SPEC, seed=9), agreed=agreed) == set()
    assert "not_agreed" in found(imprinted(), agreed=agreed)


@pytest.mark.parametrize("network", ["cpl_cnn", "dlg_cnn", "idlg_cnn", "lenet"])
def test_honest_networks_raise_no_alarm(network):
    spec = spec_of(3, 32, 32)
    payload = payload_of(network, spec)
    verdict = examine(Received.of_payload(payload, spec.shape))
    assert verdict == Verdict()
    pruned = {
        name: torch.where(t.abs() > t.abs().median() * 2, t, 0.0) if t.dim() > 1 else t
        for name, t in payload.parameters.items()
    }
    assert not examine(Received.of_state(pruned, spec.shape)).suspicious


def test_biases_that_the_code_multiplies_are_measured_as_they_act():
    spec = spec_of(3, 32, 32)
    for place, weight in ((None, "rows.weights.0"), ("fc1", "fc1.rows.weights.0")):
        received = Received.of_payload(imprinted(spec, "lenet", place=place), spec.shape)
        reaches = {layer.name: reach_of(received, layer) for layer in received.layers}
        assert reaches.pop(weight) == pytest.approx(256, rel=1e-3)
        assert list(reaches.values()) == pytest.approx([1.0] * len(reaches), rel=1e-3)


@pytest.mark.parametrize("kind", ["cumulative", "sparse"])
def test_shuffling_and_jitter_hide_no_imprint(kind):
    spec = spec_of(3, 32, 32)
    payload = imprinted(spec, "lenet", kind=kind, bins=200)
    order = torch.randperm(200, generator=seeded(5))
    weight = payload.parameters["rows.weights.0"]
    noise = torch.randn(weight.shape, generator=seeded(6)) * weight.norm(dim=1, keepdim=True)
    payload.parameters["rows.weights.0"] = (weight + 0.2 * noise / 3072**0.5)[order]
    payload.parameters["rows.biases.0"] = payload.parameters["rows.biases.0"][order]
    found = examine(Received.of_payload(payload, spec.shape)).alarms
    assert [f.check for f in found] == ["wide_first_layer", "repeated_rows"]
    assert "spread" in found[1].threshold


def test_rows_that_are_zero_are_caught_by_the_thresholds_beside_them():
    assert found(imprinted(zero_rows=True)) == {"wide_first_layer", "blank_rows"}
    spec = spec_of(3, 32, 32)
    inside = imprinted(spec, "lenet", place="fc1", zero_rows=True)
    assert [f.check for f in examine(Received.of_payload(inside)).alarms] == ["blank_rows"]
    zero = nn.Linear(64, 30)
    nn.init.zeros_(zero.weight)
    assert found(sent(nn.Sequential(nn.Linear(256, 64), zero))) == set()


def test_columns_of_every_client_are_caught():
    server, awaited = LokiServer(bins=50, auxiliary="normal"), Awaited(images=4, clients=3)
    payload = payload_of("idlg_cnn", SPEC)
    planted = server.plant(payload, SPEC, None, seeded(1), awaited)
    assert found(planted.sent(1)) == {"wide_first_layer", "blank_rows"}


@pytest.mark.parametrize("server", [TrapServer(rows=60, scale=0.97), MicServer(rows=60)])
def test_the_servers_own_traps_are_caught(server):
    payload = server.plant(payload_of("idlg_cnn", SPEC), SPEC, None, seeded(1)).payload
    assert {"wide_first_layer", "paired_weights"} <= found(payload)
