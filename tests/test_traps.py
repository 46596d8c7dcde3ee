"""Rows that fire for few images each: how they are drawn and tuned, and what is read off them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import config, payload_of, seeded, spec_of
from test_readout import nearest, read

from medpfl.attacks.readout.apart import leaders_of, sketches_of
from medpfl.errors import ConfigurationError
from medpfl.federated.malicious import Awaited, TrapServer
from medpfl.federated.malicious.firing import Firing, assumed_scale, expected_share, tuned_scale
from medpfl.federated.malicious.halves import trap_rows
from medpfl.planted import PlantedTraps

TRAPS = ("attack=trap_weights", "server.rows=100")
SPEC = spec_of(1, 16, 16)
PUBLIC = torch.rand(64, *SPEC.shape, generator=seeded(1))


def responses(payload, inputs_norm):
    rows = payload.model.rows
    return inputs_norm.flatten(1) @ rows.weights[0].T + rows.reach * rows.biases[0]


def test_halves_have_the_same_magnitudes_and_opposite_signs():
    first, second = trap_rows(3, 101, seeded(), constrained=True)
    assert (first <= 0).all()
    assert (second >= 0).all()
    assert not ((first != 0) & (second != 0)).any()
    assert torch.equal(
        (-first).sort().values.fliplr()[:, :50], second.sort().values.fliplr()[:, :50]
    )
    free, turned = trap_rows(3, 101, seeded(), constrained=False)
    assert (free > 0).any()
    assert torch.equal(free.abs(), first.abs())
    assert torch.allclose(free.sum(1), -turned.sum(1), atol=1e-4)


def test_rows_fire_at_the_rate_that_their_scale_was_tuned_to():
    first, second = trap_rows(50, 256, seeded(), constrained=True)
    images = PUBLIC.flatten(1)
    scale = tuned_scale(-(images @ first.T), images @ second.T, 0.1)
    assert (images @ (first + scale * second).T > 0).double().mean() == pytest.approx(0.1, abs=1e-3)
    assumed = assumed_scale(256, 0.1)
    assert (images @ (first + assumed * second).T > 0).double().mean() == pytest.approx(
        0.1, abs=0.02
    )


def test_normalisation_changes_nothing_of_what_fires():
    normalised = replace(SPEC, mean=(0.45,), std=(0.22,))
    found = []
    for spec in (SPEC, normalised):
        planting = TrapServer(rows=40).plant(
            payload_of("dlg_cnn", spec), spec, PUBLIC, seeded(), Awaited(images=8)
        )
        assert isinstance(planting.secret, PlantedTraps)
        assert planting.secret.firing_rate == pytest.approx(1 / 8, abs=1e-3)
        found.append(responses(planting.payload, spec.normalise(PUBLIC)))
    assert torch.allclose(*found, atol=1e-5)
    assert (found[0] > 0).double().mean() == pytest.approx(1 / 8, abs=1e-3)


def test_shares_are_those_of_drawn_rows():
    assert expected_share(1 / 64, 128, 64) == pytest.approx(0.525, abs=0.001)
    fired = torch.rand(400, 60, generator=seeded()) < torch.linspace(0.01, 0.2, 400)[:, None]
    firing = Firing(fired, torch.linspace(1, 0, 400))
    assert -0.9 < firing.bias < -0.7
    alone = []
    for number in range(200):
        batch = fired[torch.randperm(400, generator=seeded(number))[:8]]
        alone.append((batch & (batch.sum(0) == 1)).any(1).double().mean())
    assert firing.share(8) == pytest.approx(float(torch.stack(alone).mean()), abs=0.03)


@pytest.mark.parametrize("more", [(), ("preprocess.mean=[0.4]", "preprocess.std=[0.2]")])
def test_images_that_are_alone_in_a_row_are_exact_and_handed_in_once(more):
    capture, found = read(*TRAPS, "preprocess.channels=1", *more)
    clean = found.quality["mismatch"] < 1e-3
    assert clean.sum() >= 3
    assert found.quality["rows"][clean].min() >= 1
    kept = found.inputs[clean]
    apart = (kept[:, None] - kept[None]).flatten(2).abs().amax(2) + torch.eye(len(kept))
    assert apart.min() > 0.02
    assert (nearest(capture, found) < 1e-3).sum() == clean.sum()


def test_mic_hands_in_every_row_that_anything_switched_on():
    capture, found = read("attack=mic", "server.rows=40")
    seen = capture.observation
    assert seen.planted is not None
    assert len(found.inputs) == int((seen.tensors[seen.planted.biases[0]] != 0).sum()) > 6
    assert found.quality["rows"].tolist() == [1.0] * len(found.inputs)
    settings = config("attack=mic").server
    assert (settings.rows, settings.scale, settings.sigma, settings.mu) == (128, 0.01, 0.5, 0)


def test_like_images_gather_around_the_first():
    images = torch.rand(3, 1, 40, 40, generator=seeded())
    sketches = sketches_of([images[n % 3] + 1e-3 * n for n in range(6)], 1600)
    assert leaders_of(sketches, 0.01, range(6)) == {0: [0, 3], 1: [1, 4], 2: [2, 5]}
    assert len(leaders_of(sketches, 1e-4, range(6))) == 6


def test_a_rate_of_all_or_none_is_refused():
    with pytest.raises(ConfigurationError, match=r"server\.firing_rate"):
        read(*TRAPS, "server.firing_rate=1")
    with pytest.raises(ConfigurationError, match="choose normal or dataset"):
        TrapServer(auxiliary="guessed")
