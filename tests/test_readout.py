"""A malicious server reads images off rows that it planted: closed forms, and what is refused."""

from __future__ import annotations

import pytest
import torch
from helpers import config, context, experiment

from medpfl.attacks.readout.rows import Gradients
from medpfl.errors import ConfigurationError, ThreatModelError
from medpfl.federated.malicious.bins import measured_edges, normal_edges
from medpfl.types import Capture, DataSpec, Reconstruction

BATCH = (
    *("attack=imprint", "preprocess.size=16", "n_images=6", "federation.batch_size=6"),
    *("model=dlg_cnn", "dataset.per_class=12"),
)


def read(*overrides: str) -> tuple[Capture, Reconstruction]:
    parts = experiment(*BATCH, *overrides)
    (capture,) = parts.source.captures()
    (found,) = parts.attack.reconstruct([capture.observation], context())
    return capture, found


def nearest(capture: Capture, found: Reconstruction) -> torch.Tensor:
    """Return of each true image the least largest difference to any that was read."""
    truth = capture.truth.inputs[:, None] - found.inputs[None]
    return truth.flatten(2).abs().amax(2).amin(1)


@pytest.mark.parametrize("kind", ["cumulative", "sparse"])
def test_images_that_are_alone_in_a_bin_are_exact_and_labelled(kind):
    capture, found = read(f"server.kind={kind}", "server.bins=3000")
    assert nearest(capture, found).max() < 1e-3
    order = (capture.truth.inputs[:, None] - found.inputs[None]).flatten(2).abs().amax(2).argmin(1)
    assert torch.equal(found.labels[order], capture.truth.labels)
    assert found.quality["mismatch"].max() < 0.01


def test_images_that_share_a_bin_are_told_by_their_mismatch():
    capture, found = read("server.bins=2")
    assert len(found.inputs) <= 2
    assert found.quality["mismatch"].min() > 0.01
    assert nearest(capture, found).max() > 0.05


def test_a_row_deeper_in_the_rows_is_found_in_its_block():
    blocks = torch.arange(6.0).reshape(3, 2), torch.arange(6.0, 10.0).reshape(2, 2)
    gradients = Gradients(blocks, torch.tensor([1.0, 3.0, 6.0, 10.0, 15.0]).double(), 5)
    differences = gradients.differences()
    assert gradients.row(3).tolist() == [6.0, 7.0]
    assert differences.row(2).tolist() == [-2.0, -2.0]
    assert differences.row(4).tolist() == [8.0, 9.0]
    assert differences.biases.tolist() == [-2.0, -3.0, -4.0, -5.0, 15.0]


def test_thresholds_are_quantiles():
    drawn = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edges, std = measured_edges(3 + 2 * drawn, bins=8)
    expected = 3 + 2 * torch.special.ndtri(torch.arange(1, 8, dtype=torch.float64) / 8)
    assert (edges[1:] - expected).abs().max() < 0.15
    assert edges[0] < edges[1] - 10 * std
    spec = DataSpec((1, 2, 2), 2, (0.5,), (0.25,))
    edges, std = normal_edges(torch.full((4,), 0.5), 4, spec)
    assert std == 1.0
    assert edges[1:].tolist() == pytest.approx([-0.6745, 0.0, 0.6745], abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (("threat=honest_but_curious",), ThreatModelError, "only looks. Choose threat=malicious"),
        (("server=honest",), ConfigurationError, "server=honest sends the model as it is"),
        (
            ("server=honest", "threat=honest_but_curious"),
            ConfigurationError,
            "reads the rows of server=imprint, and nothing is planted",
        ),
        (
            ("threat.knows=[num_examples]",),
            ThreatModelError,
            "threat.knows=[num_examples,auxiliary]",
        ),
        (("capture.parameters=[fc.weight]",), ConfigurationError, "have their own names"),
        (("source=file", "source.path=nowhere"), ConfigurationError, "do not hold its secrets"),
        (("server.bins=1000000", "preprocess.size=64"), ConfigurationError, "server.bins"),
        (("server.bins=1000000000",), ConfigurationError, "server.bins"),
        (("server.place=body.1.rows",), ConfigurationError, "Choose from body"),
        (("server=loki", "+server.zero_rows=false"), ConfigurationError, "server=loki are zero"),
    ],
)
def test_what_contradicts_itself_is_refused(overrides, error, words):
    with pytest.raises(error) as raised:
        experiment(*BATCH, *overrides)
    assert words in str(raised.value)


def test_clients_are_not_told_the_secrets():
    parts = experiment(*BATCH)
    (capture,) = parts.source.captures()
    payload = capture.observation.payload
    assert capture.observation.planted is not None
    assert not any("planted" in name for name in vars(payload))
    assert config(*BATCH).threat.server == "malicious"


@pytest.mark.parametrize("kind", ["cumulative", "sparse"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_local_steps_leave_rows_exact_and_in_their_bins(kind, optimizer):
    capture, found = read(
        *("federation=fedavg", "federation.local.epochs=2", "federation.local.batch_size=2"),
        *("federation.local.lr=0.1" if optimizer == "sgd" else "federation.local.lr=0.001",),
        *(f"federation.local.optimizer={optimizer}", f"server.kind={kind}", "server.bins=3000"),
    )
    assert capture.observation.kind == "delta"
    assert nearest(capture, found).max() < 1e-3
    rows = capture.observation.payload.parameters[capture.observation.planted.weights[0]]
    assert not rows.any()


@pytest.mark.parametrize("federation", ["fedsgd", "fedavg"])
def test_clients_with_columns_of_their_own_do_not_collide(federation):
    several = (
        *("federation.clients=3", "federation.batch_size=1", "n_images=3", "server.bins=2"),
        *("threat.aggregation=secure", f"federation={federation}", "dataset=phantom_many"),
    )
    capture, found = read("server=loki", *several)
    assert nearest(capture, found).max() < 1e-2
    seen = capture.observation
    assert seen.planted is not None
    assert seen.planted.clients == 3
    assert seen.tensors[seen.planted.weights[0]].shape == (2, 3 * 3 * 256)
    together, mixed = read("server=imprint", *several)
    assert nearest(together, mixed).max() > 0.05


def test_rows_that_are_not_zero_lose_a_difference_of_weights_to_rounding():
    capture, found = read("federation=fedavg", "server.zero_rows=false", "server.gain=0.001")
    assert nearest(capture, found).max() > 0.05


@pytest.mark.parametrize(
    ("network", "place"), [("model=dlg_cnn", "body.2"), ("model=lenet", "act1")]
)
def test_features_are_read_deeper_in_and_their_images_found(network, place):
    capture, found = read(
        *(network, f"server.place={place}", "server.bins=3000", "n_images=2"),
        *("federation.batch_size=2", "dataset.kinds=[head,chest]"),
    )
    assert nearest(capture, found).max() < 5e-3
    assert found.quality["mismatch"].max() < 0.01


def test_where_features_are_too_few_it_is_said():
    parts = experiment(*BATCH, "model=dlg_cnn", "server.place=body.4", "preprocess.channels=3")
    assert any("too few" in line for line in parts.source.describe().federation)
