"""More reconstructions than images, or fewer: matched one to one, scored, and kept on record."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest
import torch
from helpers import capture_of, seeded, spec_of
from torch import Tensor
from torch.nn.functional import avg_pool2d

from medpfl.metrics import Scorer, match, matching, mse, ssim
from medpfl.metrics.matching import UNMATCHED, squared_errors
from medpfl.metrics.success import summarise
from medpfl.outcomes import Status
from medpfl.report.panels import draw_panels
from medpfl.report.record import RunRecord, load_victim
from medpfl.types import DataSpec, Reconstruction, Truth, UpdateFacts

SPEC = spec_of(1, 12, 12)
MEAN_IMAGE = torch.full(SPEC.shape, 0.5)


def drawn(count: int, *, seed: int = 0, shape: tuple[int, ...] = SPEC.shape) -> Tensor:
    return torch.rand((count, *shape), generator=seeded(seed))


def truth_of(count: int, spec: DataSpec = SPEC) -> Truth:
    ids = tuple(f"class/{n}" for n in range(count))
    return Truth(drawn(count, shape=spec.shape), torch.arange(count) % 3, ids)


def read_out(inputs: Tensor, **changes: object) -> Reconstruction:
    count = len(inputs)
    found = Reconstruction(
        capture_id="round-000/client-0",
        inputs=inputs,
        labels=torch.arange(count) % 3,
        objective=math.nan,
        status=Status.CONVERGED,
        steps=0,
        evaluations=0,
        seconds=6.0,
        closed_form=True,
        quality={
            "mismatch": torch.linspace(0, 1, count).double(),
            "out_of_range": torch.zeros(count).double(),
            "total_variation": torch.full((count,), 0.25).double(),
            "rows": torch.arange(1, count + 1).double(),
        },
    )
    return replace(found, **changes)


def judged(truth: Truth, found: Reconstruction, spec: DataSpec = SPEC):
    facts = UpdateFacts(gradient_norm=2.0, true_probability=torch.ones(len(truth.ids)))
    return Scorer().judge(capture_of(truth, facts, spec), found, torch.full(spec.shape, 0.5))


@pytest.mark.parametrize(("images", "guesses"), [(18, 24), (24, 18), (24, 24)])
def test_the_nearest_alone_are_as_good_as_all_pairs(images, guesses, monkeypatch):
    """Two thirds are rebuilt, and the others are two images in one."""
    smooth = avg_pool2d(drawn(images, shape=(1, 14, 14)), 3, 1).sub(0.5).mul(2).add(0.5).clamp(0, 1)
    where = torch.randperm(images, generator=seeded(1))
    found = torch.cat([smooth[where], drawn(6, seed=2)])[:guesses]
    found[::3] = (found[::3] + found[::3].roll(1, 0)) / 2
    everything = match(smooth, found)
    asked = []
    monkeypatch.setattr(matching, "_MOST_PIXELS", 0)
    monkeypatch.setattr(matching, "ssim", lambda x, y: asked.append(1) or ssim(x, y))
    order = match(smooth, found)
    assert torch.equal(order, everything)
    rebuilt = [m for m in range(min(images, guesses)) if m % 3]
    assert [int(order[where[m]]) for m in rebuilt] == rebuilt
    assert len(asked) < images * guesses / 3
    assert (order == UNMATCHED).sum() == max(0, images - guesses)
    assert len(set(order.tolist()) - {UNMATCHED}) == min(images, guesses)


def test_squared_errors_of_all_pairs_are_those_of_single_pairs():
    shape = (3, 70, 90)  # more than one block
    originals, found = drawn(3, shape=shape), drawn(2, seed=1, shape=shape)
    found[1] = originals[2]
    errors = squared_errors(originals, found)
    wanted = [[mse(x, y) for y in found] for x in originals]
    torch.testing.assert_close(
        errors, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-14
    )
    assert squared_errors(originals, found[:0]).shape == (3, 0)


def test_an_image_without_a_reconstruction_keeps_its_row():
    truth = truth_of(3)
    truth.inputs[1] = 0.0  # black: what stands in for a missing reconstruction is no success
    judgement = judged(truth, read_out(truth.inputs[[2]]))
    assert judgement.order.tolist() == [UNMATCHED, UNMATCHED, 0]
    first, black, found = judgement.scores
    assert (found.status, found.success, found.label_inferred) == ("converged", True, 0)
    assert (first.status, first.label_inferred, first.success) == ("unmatched", None, False)
    assert (first.ssim, first.mse) == (first.ssim_zeros, first.mse_zeros)
    assert (black.ssim, black.success, black.label_inferred) == (1.0, False, None)
    assert [s.seconds for s in judgement.scores] == [2.0, 2.0, 2.0]
    assert [s.readout["readouts"] for s in judgement.scores] == [1, 1, 1]
    assert found.readout["readout_total_variation"] == 0.25
    assert math.isnan(first.readout["readout_rows"])


def test_more_reconstructions_than_images_and_none():
    truth = truth_of(2)
    extra = torch.cat([drawn(1, seed=4), truth.inputs.flip(0), drawn(2, seed=5)])
    judgement = judged(truth, read_out(extra))
    assert judgement.order.tolist() == [2, 1]
    assert [s.readout["readout_rows"] for s in judgement.scores] == [3, 2]
    assert all(s.success and s.readout["readouts"] == 5 for s in judgement.scores)
    nothing = judged(truth, read_out(truth.inputs[:0], quality={}))
    assert [s.status for s in nothing.scores] == ["unmatched"] * 2
    assert [s.readout["readouts"] for s in nothing.scores] == [0, 0]
    search = judged(truth, read_out(truth.inputs, quality={}))
    assert [s.readout for s in search.scores] == [{}, {}]


def test_parts_of_other_numbers_are_refused():
    truth = truth_of(2)
    with pytest.raises(ValueError, match=r"reconstruction\.labels holds 1 images"):
        judged(truth, read_out(truth.inputs, labels=torch.zeros(1).long()))
    with pytest.raises(ValueError, match=r"reconstruction\.rows holds 3 images"):
        judged(truth, read_out(truth.inputs, quality={"rows": torch.zeros(3)}))


def test_a_record_of_fewer_reconstructions_is_read_back(tmp_path):
    truth = truth_of(3)
    found = read_out(truth.inputs[[1]])
    facts = UpdateFacts(gradient_norm=2.0, true_probability=torch.ones(3))
    record = RunRecord.create(tmp_path / "run", config={}, overrides=[], seed=0)
    judgement = judged(truth, found)
    record.add(capture_of(truth, facts, SPEC), found, judgement)
    record.finish(record.summarise())
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["unmatched", "converged", "unmatched"]
    assert [row["label_inferred"] for row in rows] == ["", "0", ""]
    assert [row["readout_rows"] for row in rows] == ["nan", "1.0", "nan"]
    kept = load_victim(tmp_path / "run/reconstructions/round-000__client-0.npz")
    assert repr(kept.scores) == repr(judgement.scores)
    assert torch.equal(
        kept.reconstruction, truth.inputs * torch.tensor([0, 1, 0])[:, None, None, None]
    )
    again = RunRecord.reopen(tmp_path / "run")
    assert repr(again.scores) == repr(list(judgement.scores))
    assert repr(again.summarise()) == repr(summarise(judgement.scores))


def test_nothing_handed_in_for_images_that_nobody_knows_is_on_record(tmp_path):
    found = read_out(truth_of(1).inputs[:0])
    capture = replace(capture_of(truth_of(2), None, SPEC), truth=None)
    judgement = Scorer().judge(capture, found, MEAN_IMAGE)
    (score,) = judgement.scores
    assert (score.judged, score.status, score.readout["readouts"]) == (False, "unmatched", 0)
    record = RunRecord.create(tmp_path / "run", config={}, overrides=[], seed=0)
    record.add(capture, found, judgement)
    record.finish(record.summarise())
    assert repr(RunRecord.reopen(tmp_path / "run").scores) == repr([score])


def test_a_missing_reconstruction_is_not_drawn_as_a_black_image():
    truth = truth_of(2)
    missing, found = judged(truth, read_out(truth.inputs[[1]])).scores
    sheets = [
        draw_panels(image, guess, score)
        for image, guess, score in (
            (truth.inputs[0], torch.zeros(SPEC.shape), missing),
            (truth.inputs[1], truth.inputs[1], found),
        )
    ]
    assert sheets[0].size == sheets[1].size
    places = [(8 + column * 200 + 20, 40) for column in range(3)]
    assert [sheets[0].getpixel(place) == (255, 255, 255) for place in places] == [False, True, True]
    assert sheets[1].getpixel(places[2]) == (0, 0, 0)  # no difference
