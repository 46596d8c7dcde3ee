"""What a run says of read-outs: shares recovered, closed forms, and MIC's way to count."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers import seeded
from test_readouts_judged import SPEC, drawn, judged, read_out, truth_of
from torch import nn

from medpfl.metrics import Scorer, summarise
from medpfl.metrics.identification import ranks_of
from medpfl.metrics.mic import arbitrary_guesses, mic_rebuilt, mic_share, mic_weights
from medpfl.metrics.readout import (
    expected,
    expected_share,
    expected_share_of,
    expected_share_of_traps,
)
from medpfl.planted import PlantedBins, PlantedTraps
from medpfl.report.console import make_console, summary_table
from medpfl.report.jobs import collect
from medpfl.report.run_file import RunFile
from medpfl.types import Observation, ServerPayload


@pytest.mark.parametrize(
    ("bins", "shares"),
    [
        (128, {1: 1.0, 4: 0.977, 16: 0.889, 24: 0.835, 64: 0.610, 96: 0.475}),
        (500, {1: 1.0, 4: 0.994, 16: 0.970, 24: 0.955, 64: 0.882, 96: 0.827}),
        (1000, {8: 0.993, 32: 0.969, 64: 0.939, 100: 0.906, 256: 0.775}),
    ],
)
def test_equal_bins_isolate_what_was_worked_out_by_hand(bins, shares):
    for images, share in shares.items():
        assert expected_share(bins, images) == pytest.approx(share, abs=5e-4)


def test_unequal_bins_isolate_what_counting_every_outcome_says():
    probabilities, images = [0.5, 0.25, 0.125], 3  # an image is in no bin with 0.125
    chance = [*probabilities, 1 - sum(probabilities)]
    alone = 0.0
    for bins in itertools.product(range(4), repeat=images):
        weight = math.prod(chance[b] for b in bins)
        alone += weight * sum(b < 3 and bins.count(b) == 1 for b in bins) / images
    assert expected_share_of(probabilities, images) == pytest.approx(alone, abs=1e-12)


def test_traps_isolate_what_was_worked_out_by_hand():
    assert expected_share_of_traps(128, 1 / 64, 64) == pytest.approx(0.525, abs=5e-4)
    assert expected_share_of_traps(500, 1 / 64, 64) == pytest.approx(0.945, abs=5e-4)


def test_what_a_server_expects_is_known_of_its_secrets_alone():
    rows = {"a": torch.zeros(100, 9), "b": torch.zeros(28, 9)}
    payload = ServerPayload(nn.Identity(), rows, {}, batch_norm="eval_public")
    named = {"weights": ("a", "b"), "biases": ("a.bias", "b.bias"), "shape": (9,)}
    seen = Observation("x", payload, {}, "gradient", SPEC, 64, None, None)
    bins = PlantedBins(kind="cumulative", edges=torch.arange(1000.0).double(), **named)
    traps = PlantedTraps(firing_rate=1 / 64, **named)
    assert expected(replace(seen, planted=bins), 64) == pytest.approx(0.939, abs=5e-4)
    assert expected(replace(seen, planted=traps), 64) == pytest.approx(0.525, abs=5e-4)
    assert expected(replace(seen, planted=replace(traps, share=0.4)), 64) == 0.4
    assert math.isnan(expected(seen, 64))
    assert math.isnan(expected(replace(seen, planted=replace(traps, firing_rate=math.nan)), 64))


def test_mic_counts_each_guess_for_its_nearest_image():
    originals = torch.stack([torch.full(SPEC.shape, v) for v in (0.0, 0.25, 0.5, 1.0)])
    assert mic_rebuilt(originals, originals[:0]).tolist() == [False] * 4
    # Both are nearest to the second image; 0.8 goes to the last and is off by 0.04.
    guesses = torch.stack([torch.full(SPEC.shape, v) for v in (0.2, 0.3, 0.8)])
    assert mic_rebuilt(originals, guesses).tolist() == [False, True, False, True]
    assert mic_share(guesses, originals) == 0.5
    # Beyond 0.1 it counts for nobody; cut to [0, 1] first, it is the white image.
    assert mic_share(torch.full((1, *SPEC.shape), 0.66), originals[:1]) == 0.0
    assert mic_rebuilt(originals, torch.full((1, *SPEC.shape), 7.0)).tolist()[-1]


def test_mic_calls_dark_images_rebuilt_by_pictures_of_others():
    dark, public = 0.4 * drawn(6), 0.4 * drawn(40, seed=3)
    guesses = arbitrary_guesses(40, public.mean(0), public, seeded())
    shares = {name: mic_share(images, dark) for name, images in guesses.items()}
    assert all(len(images) == 40 for images in guesses.values())
    # A guess that is repeated names one image, however often; other people's images name many.
    assert shares["zeros"] == shares["mean_image"] == pytest.approx(1 / 6)
    assert shares["public_images"] > 0.5
    assert shares["random_pixels"] == 0.0


def test_mic_weights_are_those_of_its_running_sum():
    updates = drawn(4).double()
    running = torch.zeros_like(updates[0])
    for update in updates:
        running = running + (update - running) / 4
    weights = mic_weights(4)
    torch.testing.assert_close((weights[:, None, None, None] * updates).sum(0), running)
    assert float(weights.sum()) == pytest.approx(0.68, abs=5e-3)


def summary_of(truth, inputs):
    scores = judged(truth, read_out(inputs)).scores
    return summarise(scores)


def test_shares_precision_and_guesses():
    truth = truth_of(4)
    x = truth.inputs
    x[3] = 0.0  # black: zeros recover it, and an attack that hands nothing in does not
    noisy = (x[1] + 0.02 * torch.randn(SPEC.shape, generator=seeded())).clamp(0, 1)  # 34 dB
    readout = summary_of(truth, torch.stack([x[0], noisy])).readout
    assert readout is not None
    assert (readout.n, readout.matched, readout.readouts) == (4, 2, 2)
    above = readout.recovered
    assert (above["psnr_30"].share, above["psnr_40"].share) == (0.5, 0.25)
    assert above["psnr_30"].zeros == 0.25
    assert above["psnr_30"].batch_mean == above["psnr_30"].dataset_mean == 0
    assert above["psnr_30"].low == pytest.approx(0.15, abs=5e-3)
    assert readout.precision == 1.0
    extra = summary_of(truth, torch.cat([x, 1 - x[:2], drawn(2, seed=8)])).readout
    assert (extra.recovered["psnr_40"].share, extra.precision, extra.readouts) == (1.0, 0.5, 8)
    none = summary_of(truth, x[:0])
    assert none.readout.recovered["ssim_90"].share == 0.0
    assert none.readout.precision is None
    assert none.asr == 0.0


def test_the_console_says_it_in_plain_lines(capsys):
    truth = truth_of(3)
    summary = summary_of(truth, torch.cat([truth.inputs[:2], drawn(2, seed=9)]))
    summary_table(summary, synthetic=False, threshold=0.9, console=make_console())
    told = " ".join(capsys.readouterr().out.split())
    assert "recovered PSNR > 30 dB: 66.7 % [20.8, 93.9], 2 of 3 PSNR > 40 dB: 66.7 %" in told
    assert "guesses > 30 dB zeros 0.0 %, batch mean 0.0 %, dataset mean 0.0 %" in told
    assert "read-outs 4 for 3 images; of these over 30 dB 50.0 % [15.0, 85.0], 2 of 4" in told
    assert "MIC protocol 66.7 % [20.8, 93.9], 2 of 3 (nearest, MSE < 0.1)" in told


def test_chance_of_identification_counts_all_that_was_handed_in():
    truth = truth_of(2)
    scores = judged(truth, read_out(drawn(5, seed=2))).scores
    ranked = [replace(s, identification_rank=1.0, identification_candidates=50) for s in scores]
    assert [rank.guesses for rank in ranks_of(ranked)] == [5, 5]


def test_measures_may_not_take_the_names_of_read_outs():
    with pytest.raises(ValueError, match="has a column readout_rows already"):
        Scorer(measures={"readout_rows": None})


def test_tables_of_sweeps_have_the_shares(tmp_path):
    truth = truth_of(3)
    run = RunFile.of_new_run(tmp_path / "0/run.json", config={}, overrides=[], seed=0, device="cpu")
    run.path.parent.mkdir()
    run.write("complete", summary=summary_of(truth, truth.inputs[:2]))
    (row,) = collect(tmp_path)
    assert (row["readout_readouts"], row["readout_precision"]) == (2, 1.0)
    assert row["recovered_psnr_40"] == row["readout_mic_protocol"] == pytest.approx(2 / 3)
    assert row["n"] == 3
