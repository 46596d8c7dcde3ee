"""The attack's parts: starts, labels, distances and the settings that are refused."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers import experiment, observe, payload_of, seeded, spec_of, victim_of
from hypothesis import given
from hypothesis import strategies as st

from medpfl.attacks import GradientMatching
from medpfl.attacks.distances import Cosine, SquaredError
from medpfl.attacks.labels import Joint, Known, SmallestRow
from medpfl.attacks.starts import Normal, PatchTiled, Smooth
from medpfl.errors import ConfigurationError, ThreatModelError
from medpfl.optim import LBFGS

SPEC = spec_of(3, 16, 16, num_classes=4)
OBSERVATION = observe(payload_of("dlg_cnn", SPEC), SPEC, victim_of(SPEC, [1]))


# Starts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (2, 1, 9, 7), (1, 2, 5, 6, 7), (1, 3, 1, 1)])
@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_patch_tiled_repeats_one_patch_exactly(shape, tiles):
    start = PatchTiled(tiles=tiles)(OBSERVATION, shape, seeded())
    assert start.shape == shape
    assert start.dtype == torch.float32
    sides = [-(-size // tiles) for size in shape[2:]]
    patch = torch.rand((*shape[:2], *sides), generator=seeded())
    for axis, side in enumerate(sides, start=2):
        index = torch.arange(shape[axis]) % side
        patch = patch.index_select(axis, index)
    assert torch.equal(start, patch)
    assert 0 <= start.min() <= start.max() < 1


def test_a_start_needs_at_least_one_tile():
    with pytest.raises(ConfigurationError, match=r"attack\.start\.tiles=0"):
        PatchTiled(tiles=0)


@pytest.mark.parametrize("shape", [(2, 3, 32, 31), (1, 3, 4, 9), (1, 3, 7, 8, 9)])
def test_smooth_interpolates_a_coarse_grid_of_pixels(shape):
    seen = replace(OBSERVATION, spec=spec_of(*shape[1:]))
    pixels = seen.spec.denormalise(Smooth(cells=6)(seen, shape, seeded()))
    assert pixels.shape == shape
    assert -1e-6 <= pixels.min() <= pixels.max() <= 1 + 1e-6
    coarse = torch.rand((*shape[:2], *(min(6, side) for side in shape[2:])), generator=seeded())
    corners = [(..., *ends) for ends in itertools.product((0, -1), repeat=len(shape) - 2)]
    for corner in corners:
        torch.testing.assert_close(pixels[corner], coarse[corner])
    for axis, side in enumerate(shape[2:], start=2):
        assert pixels.diff(dim=axis).abs().max() <= 5.01 / (side - 1) or side <= 6


def test_a_smooth_start_needs_at_least_two_cells():
    with pytest.raises(ConfigurationError, match=r"attack\.start\.cells=1"):
        Smooth(cells=1)


def test_normal_is_the_generators_own_normal():
    shape = (2, 3, 8, 8)
    start = Normal()(OBSERVATION, shape, seeded(3))
    assert torch.equal(start, torch.randn(shape, generator=seeded(3)))


# Labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["attack=cpl", "attack=dlg", "attack=idlg"])
def test_smallest_row_is_right_on_every_phantom_image_with_a_gradient(attack):
    parts = experiment(attack, "dataset.stride=1", "dataset.per_class=4")
    seen = 0
    for capture in parts.source.captures():
        observation, victim, facts = capture.observation, capture.truth, capture.facts
        if facts.gradient_norm > 0:
            assert torch.equal(SmallestRow().labels(observation), victim.labels)
            seen += 1
    assert seen >= len(parts.data.selected) * 2 // 3


def test_smallest_row_refuses_two_images_in_one_update():
    model = payload_of("dlg_cnn", SPEC).model
    SmallestRow().check(model, 1)
    with pytest.raises(ConfigurationError, match="2 images are behind each"):
        SmallestRow().check(model, 2)
    with pytest.raises(ConfigurationError, match="2 images are behind each"):
        experiment("attack=idlg", "federation.batch_size=2")


def test_smallest_row_refuses_a_network_without_a_linear_layer():
    with pytest.raises(ConfigurationError, match="no fully connected layer"):
        SmallestRow().check(torch.nn.Conv2d(1, 1, 1), 1)


def test_known_labels_are_the_granted_ones():
    payload, victim = payload_of("dlg_cnn", SPEC), victim_of(SPEC, [2, 0])
    granted = observe(payload, SPEC, victim)
    assert torch.equal(Known().labels(granted), torch.tensor([2, 0]))
    assert Known().requires == {"labels"}
    withheld = observe(payload, SPEC, victim, knows=["num_examples"])
    with pytest.raises(ValueError, match="holds no labels"):
        Known().labels(withheld)
    with pytest.raises(ThreatModelError, match=r"threat\.knows=\[num_examples,local_training,"):
        experiment("attack=dlg", "attack.labels._target_=medpfl.attacks.labels.Known")


# Distances ---------------------------------------------------------------------------------------


def test_distances_have_their_known_values():
    x = [torch.tensor([1.0, 2.0]), torch.tensor([[2.0]])]
    y = [torch.tensor([0.0, 4.0]), torch.tensor([[-1.0]])]
    assert SquaredError()(x, y).item() == 1 + 4 + 9
    assert Cosine()(x, y).item() == pytest.approx(1 - 6 / (3 * math.sqrt(17)))
    assert SquaredError()(x, x).item() == 0
    assert Cosine()(x, x).item() == pytest.approx(0, abs=1e-7)
    assert Cosine()(x, [-t for t in x]).item() == pytest.approx(2)


@given(scale=st.floats(1e-6, 1e6), other=st.floats(1e-6, 1e6), seed=st.integers(0, 1000))
def test_cosine_does_not_see_scale(scale, other, seed):
    g = seeded(seed)
    x = [torch.randn(4, generator=g, dtype=torch.float64) for _ in range(2)]
    y = [torch.randn(4, generator=g, dtype=torch.float64) for _ in range(2)]
    scaled = Cosine()([scale * t for t in x], [other * t for t in y])
    assert scaled.item() == pytest.approx(Cosine()(x, y).item(), abs=1e-12)
    assert 0 <= scaled.item() <= 2


def test_distances_refuse_lists_of_different_length():
    with pytest.raises(ValueError, match="longer"):
        SquaredError()([torch.zeros(1)], [torch.zeros(1), torch.zeros(1)])


# Settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("restarts", 0),
        ("restart_above", -1.0),
        ("rows", 0),
        ("trace_points", -1),
        ("precision", "float16"),
    ],
)
def test_settings_that_cannot_work_are_named(setting, value):
    with pytest.raises(ConfigurationError, match=rf"attack\.{setting}={value}"):
        GradientMatching(
            name="dlg",
            start=Normal(),
            labels=Joint(),
            distance=SquaredError(),
            optimizer=LBFGS(),
            **{setting: value},
        )


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lr", 0.0),
        ("max_steps", 0),
        ("max_iter", 0),
        ("max_eval", 0),
        ("history", 0),
        ("check_every", 0),
        ("line_search", "armijo"),
        ("on_stall", "pray"),
    ],
)
def test_optimiser_settings_that_cannot_work_are_named(setting, value):
    with pytest.raises(ConfigurationError, match=rf"attack\.optimizer\.{setting}={value}"):
        LBFGS(**{setting: value})
