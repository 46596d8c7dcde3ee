"""breaching beside medpfl: what it is told, and what it makes of it where it is installed."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from helpers import observe, payload_of, spec_of, victim_of
from test_bench import SMALL, table
from torch import nn

from medpfl.bench import __main__ as bench
from medpfl.bench import breaching_side
from medpfl.errors import ConfigurationError
from medpfl.training import LocalTraining
from medpfl.types import DataSpec

SPEC = replace(spec_of(3, 16, 16), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))

installed = pytest.mark.skipif(
    not breaching_side.is_installed(), reason="breaching is not installed (the bench extra)"
)


def update(spec: DataSpec = SPEC, labels: tuple[int, ...] = (2, 0)):
    """Return the truth behind an update, and what the attacker sees of it."""
    victim = victim_of(spec, labels)
    return victim, observe(payload_of("dlg_cnn", spec), spec, victim)


def test_breaching_is_told_the_network_and_the_gradient_in_its_own_order():
    victim, seen = update()
    shuffled = replace(
        seen,
        tensors=dict(reversed(seen.tensors.items())),
        payload=replace(seen.payload, parameters=dict(reversed(seen.payload.parameters.items()))),
    )
    server, user = breaching_side.as_dictionaries(shuffled, victim.labels)
    names = [name for name, _ in seen.payload.model.named_parameters()]
    for n, name in enumerate(names):
        assert server["parameters"][n] is seen.payload.parameters[name]
        assert user["gradients"][n] is seen.tensors[name]
    assert server["buffers"] == []
    assert user["buffers"] is None


def test_breaching_is_told_what_the_data_look_like_and_the_labels():
    victim, seen = update()
    server, user = breaching_side.as_dictionaries(seen, victim.labels)
    about = server["metadata"]
    assert list(about.shape) == [3, 16, 16]
    assert (list(about.mean), list(about.std)) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    assert (about.classes, about["modality"], about["task"]) == (3, "vision", "classification")
    assert user["metadata"]["num_data_points"] == 2
    assert user["metadata"]["labels"].tolist() == [2, 0]
    hidden = breaching_side.as_dictionaries(seen, None)[1]
    assert hidden["metadata"]["labels"] is None


IN_TURN = LocalTraining(algorithm="fedavg", epochs=2, batch_size=1, lr=0.3, shuffle=False)


def test_breaching_unrolls_local_steps_as_the_client_took_them():
    victim, seen = update()
    seen = replace(seen, kind="delta", local_training=IN_TURN)
    local = breaching_side.as_dictionaries(seen, victim.labels)[1]["metadata"]["local_hyperparams"]
    assert (local["steps"], local["data_per_step"], local["lr"]) == (4, 1, 0.3)
    assert [batch.tolist() for batch in local["labels"]] == [[2], [0], [2], [0]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_examples": None}, "how many images"),
        ({"kind": "delta", "local_training": None}, "threat.local_training=full"),
        ({"kind": "delta", "local_training": replace(IN_TURN, shuffle=True)}, "shuffle=false"),
        ({"kind": "delta", "local_training": replace(IN_TURN, momentum=0.5)}, "momentum=0"),
    ],
)
def test_other_updates_are_refused(changes, words):
    victim, seen = update()
    with pytest.raises(ConfigurationError, match=words):
        breaching_side.as_dictionaries(replace(seen, **changes), victim.labels)


def test_configurations_are_named_in_full():
    assert breaching_side.known_configurations(["all"]) == list(breaching_side.CONFIGURATIONS)
    assert breaching_side.known_configurations(["wei", "modern"]) == ["wei", "modern"]
    with pytest.raises(ConfigurationError, match="gan: choose all, or some of deepleakage"):
        breaching_side.known_configurations(["wei", "gan"])


def test_without_breaching_medpfl_is_measured_alone(monkeypatch, capsys):
    monkeypatch.setattr(breaching_side, "is_installed", lambda: False)
    wanted = ["--batches", "1", "2", "--updates", "1", "--override", *SMALL]
    assert bench.main(["breaching", *wanted]) == 0
    printed = capsys.readouterr().out
    assert [row["attacker"] for row in table(printed)] == ["medpfl scale_free"] * 2
    assert breaching_side.HOW_TO_GET in printed
    with pytest.raises(ConfigurationError, match="pip install"):
        breaching_side.settings("wei")


@installed
def test_the_true_image_is_breachings_own_optimum():
    victim, seen = update()
    server, user = breaching_side.as_dictionaries(seen, victim.labels)
    config = breaching_side.settings("deepleakage, labels given").config
    loss = nn.CrossEntropyLoss()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import breaching

        attacker = breaching.attacks.prepare_attack(seen.payload.model, loss, config)
        models, labels, _ = attacker.prepare_attack([server], [user])
        attacker.objective.initialize(loss, config.impl, None)

        def distance(pixels):
            return attacker.objective(models[0], user["gradients"], SPEC.normalise(pixels), labels)[
                0
            ].item()

        assert distance(victim.inputs) < 1e-10
        assert distance(victim.inputs.flip(-1)) > 1e-3


@installed
@pytest.mark.parametrize("name", breaching_side.CONFIGURATIONS)
def test_every_configuration_runs_and_leaves_no_trace(name):
    victim, seen = update()
    chosen = breaching_side.settings(name, budget=0.001)
    before = torch.get_rng_state()
    found, again = (
        breaching_side.reconstruct(seen, victim.labels, chosen, seed=0) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found.inputs, again.inputs)
    assert found.inputs.shape == victim.inputs.shape
    assert 0 <= float(found.inputs.min()) <= float(found.inputs.max()) <= 1
    assert chosen.labels_hidden or torch.equal(found.labels, victim.labels)


@installed
def test_the_budget_scales_breachings_own_iterations():
    assert breaching_side.settings("deepleakage").iterations == 1200
    assert breaching_side.settings("invertinggradients").iterations == 24_000
    assert breaching_side.settings("modern", budget=0.25).iterations == 6000
    assert breaching_side.settings("wei", budget=1e-9).iterations == 1


@installed
def test_both_are_scored_on_the_same_updates(capsys):
    wanted = ["--batches", "1", "--updates", "2", "--budget", "0.001", "--override", *SMALL]
    assert bench.main(["breaching", *wanted]) == 0
    own, *theirs = table(capsys.readouterr().out)
    assert own["solved"] == "2 of 2"
    assert [row["attacker"] for row in theirs] == [
        "breaching deepleakage",
        "breaching deepleakage, labels given",
    ]
    assert all(row["solved"].endswith("of 2") for row in theirs)
