"""What `python -m medpfl.bench inspection` measures, on a few models: detection, hiding, states."""

from __future__ import annotations

import pytest
import torch

from medpfl.bench import hidden_rows, malicious_models
from medpfl.bench.honest_models import STATES, Images, Kind, Training, images_of, kinds, states
from medpfl.bench.inspection import Tally, _examined
from medpfl.bench.malicious_models import sent


@pytest.fixture(scope="module")
def images() -> Images:
    return images_of("phantom", 16)


def test_hiding_rows_costs_images(images):
    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(0))
    attacked, public = images.some(order[::2]), images.some(order[1::2])
    told, hits = [], []
    for strength, reach in ((0.0, 1.0), (0.3, 1.0), (0.3, 256.0), (10.0, 1.0)):
        one = hidden_rows.hidden(public, strength, 0, reach=reach)
        told.append("repeated_rows" in hidden_rows._checks(one.planting.payload, public))
        hits.append(sum(hidden_rows._recovered(one.planting, attacked, 8)))
    assert told == [True, True, True, False]
    assert hits[0] > 10  # of 16
    assert hits[0] > hits[3]


def test_a_network_is_inspected_in_every_state(images):
    tally = Tally()
    maker = next(kind.maker for kind in kinds(1, large=False))
    kind = Kind(name="perceptron", maker=maker, training=Training(steps=5), size=16)
    seen = []
    for state, model in states(kind, images):
        seen.append(state)
        tally.verdicts.append(_examined(sent(model), images))
    assert tuple(seen) == STATES
    assert tally.rate().startswith("0.0 % [0.0, 35.4], 0 of 7")


def test_rows_among_honest_ones_are_caught(images):
    tally = Tally([_examined(c.payload, images) for c in malicious_models._among_honest_rows()])
    assert tally.rate(alone=True).endswith("8 of 8")
