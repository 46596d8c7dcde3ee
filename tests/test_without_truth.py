"""Captures whose images nobody knows: attacked and recorded, and nothing claimed or denied."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import config
from PIL import Image
from records import rewrite, run_json, table

from medpfl import compare, runner
from medpfl.errors import DataError, MedpflError
from medpfl.experiment import Experiment, build
from medpfl.image_score import ImageScore
from medpfl.metrics import Scorer, summarise
from medpfl.metrics.measures import NRMSE
from medpfl.metrics.measures.columns import columns_of
from medpfl.report.panels import draw_panels
from medpfl.report.record import RunRecord, load_victim
from medpfl.resume.finished import finished
from medpfl.resume.run import continue_run
from medpfl.source import CaptureSource, Planned
from medpfl.types import Capture, Truth

SHORT = (
    "attack=dlg",
    "n_images=3",
    "dataset.per_class=1",
    "preprocess.size=16",
    "attack.optimizer.max_steps=1",
    "attack.optimizer.max_iter=4",
    "attack.rows=1",
    "attack.trace_points=2",
    "+metrics.measures.nrmse._target_=medpfl.metrics.measures.NRMSE",
)
NEEDS_TRUTH = (
    *("ssim", "mse", "psnr_db", "true_probability", "ssim_paper", "ssim_zeros", "mse_zeros"),
    *("ssim_mean_image", "mse_mean_image", "ssim_paper_cpl", "ssim_paper_dlg"),
    *("ssim_paper_gradinv", "ssim_oracle", "mse_oracle", "gradient_norm"),
)


@dataclass(frozen=True)
class Blind:
    """A source that keeps the images behind some captures to itself."""

    source: CaptureSource
    known: frozenset[str]

    @property
    def plan(self) -> tuple[Planned, ...]:
        return tuple(
            p if p.capture_id in self.known else replace(p, image_ids=()) for p in self.source.plan
        )

    def captures(self, leave_out: Collection[str] = (), diary: Any = None) -> Iterator[Capture]:
        for capture in self.source.captures(leave_out, diary):
            known = capture.capture_id in self.known
            yield capture if known else replace(capture, truth=None, facts=None)

    def truth(self, planned: Planned) -> Truth | None:
        if planned.capture_id not in self.known:
            return None
        (own,) = (p for p in self.source.plan if p.capture_id == planned.capture_id)
        return self.source.truth(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Build experiments that know the images of no capture but of those added here."""
    names: set[str] = set()

    def blindly(composed: Any) -> Experiment:
        experiment = build(composed)
        return replace(experiment, source=Blind(experiment.source, frozenset(names)))

    monkeypatch.setattr(runner, "build", blindly)
    return names


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("known")
def test_a_run_says_how_attacks_ended_and_nothing_of_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    summary = runner.run(config(*SHORT), folder)
    told = capsys.readouterr().out
    assert (summary.n, summary.n_judged, summary.unsolved) == (3, 0, {})
    assert summary.unjudged == summary.statuses == {"out_of_steps": 3}
    for name in ("asr", "asr_low", "asr_high", "asr_ceiling", "ssim_mean", "label_accuracy"):
        assert math.isnan(getattr(summary, name)), name
    assert summary.leaked is None
    rows = read(folder)
    assert [row["image_id"] for row in rows] == [f"round-000/client-{n}/image-0" for n in range(3)]
    for row in rows:
        assert {row[name] for name in (*NEEDS_TRUTH, *columns_of("nrmse"))} == {"nan"}
        assert {row[name] for name in ("label", "success", "grade", "noise_scale")} == {""}
        assert (row["status"], row["steps"]) == ("out_of_steps", "1")
    assert summary.objective_median == sorted(float(row["objective"]) for row in rows)[1]
    recorded = run_json(folder)["summary"]
    assert (recorded["asr"], recorded["n_judged"]) == (None, 0)
    after = told[told.index("Summary") :]
    assert "0 of 3 images; nobody knows the others" in after
    assert "3 ran out of steps" in after
    assert f"{summary.objective_median:.4g} (median)" in after
    assert "nobody knows 3 of 3 images: a low objective" in " ".join(after.split())
    for word in ("ASR", "ceiling", "labels right", "reached", "SSIM", "n/a", "nan"):
        assert word not in after, word


@pytest.mark.usefixtures("known")
def test_the_record_holds_the_reconstruction_alone(tmp_path: Path) -> None:
    runner.run(config(*SHORT), tmp_path / "run")
    paths = sorted((tmp_path / "run" / "reconstructions").glob("*.npz"))
    victim = load_victim(paths[0])
    assert victim.original.shape == (0, 3, 16, 16)
    assert victim.reconstruction.shape == (1, 3, 16, 16)
    assert victim.originals == (None,)
    assert (victim.ssim_trace, victim.scores[0].success) == (None, False)
    assert not victim.scores[0].judged
    assert (tmp_path / "run" / "figures" / "gallery.png").is_file()
    with np.load(paths[0]) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    for original in (victim.reconstruction.numpy(), np.zeros((0, 3, 5, 5), np.float32)):
        np.savez(paths[0], **{**kept, "original": original})
        with pytest.raises(MedpflError, match="is not a readable record"):
            load_victim(paths[0])


def test_rates_are_over_the_images_that_are_known(
    known: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known.add("round-000/client-1")
    summary = runner.run(config(*SHORT), tmp_path / "run")
    told = " ".join(capsys.readouterr().out.split())
    assert (summary.n, summary.n_judged) == (3, 1)
    assert (summary.asr, summary.asr_ceiling) == (0.0, 1.0)
    assert summary.asr_high == pytest.approx(0.7935, abs=1e-3)
    assert (summary.unsolved, summary.unjudged) == ({"out_of_steps": 1}, {"out_of_steps": 2})
    rows = read(tmp_path / "run")
    assert [row["success"] for row in rows] == ["", "False", ""]
    assert summary.ssim_mean == float(rows[1]["ssim"])
    assert summary.measures["nrmse"].n == 1
    assert "0.0 % [0.0, 79.3], 0 of 1" in told
    assert "judged 1 of 3 images; nobody knows the others" in told
    assert "mean of 1 images" in told
    assert "1 of 1 images ran out of steps" in told
    assert "nobody knows 2 of 3 images" in told


@pytest.mark.parametrize("seen", [(), ("round-000/client-0", "round-001/client-1")])
def test_rounds_are_set_against_what_is_known(
    seen: tuple[str, ...], known: set[str], tmp_path: Path
) -> None:
    known |= set(seen)
    rounds = ("federation=fedavg", "federation.clients=2", "federation.rounds=1")
    several = (*SHORT[:1], *SHORT[2:], "n_images=4", *rounds, "capture.rounds=[0,1]")
    runner.run(config(*several, "federation.batch_size=1"), tmp_path / "run")
    scores = [row for row in read(tmp_path / "run") if row["success"]]
    with (tmp_path / "run" / "leakage.csv").open(newline="") as file:
        leaked = list(csv.DictReader(file))
    assert len(scores) == len(leaked) == len(seen)
    assert [row["n"] for row in leaked] == ["1"] * len(seen)


def test_a_run_is_resumed(known: set[str], tmp_path: Path) -> None:
    known.add("round-000/client-2")
    folder = tmp_path / "run"
    runner.run(config(*SHORT), folder)
    whole = table(folder / "metrics.csv")
    for number in (0, 2):
        (folder / "reconstructions" / f"round-000__client-{number}.npz").unlink()
    rewrite(folder, status="interrupted", summary=None)
    continue_run(folder, run_json(folder))
    assert table(folder / "metrics.csv") == whole
    source = runner.build(config(*SHORT)).source
    victims = list(RunRecord.reopen(folder).victims())
    assert len(finished(source, victims)) == 3
    known.clear()  # what was known is no more
    with pytest.raises(DataError, match="the data has changed since"):
        finished(runner.build(config(*SHORT)).source, victims)


def test_runs_are_compared_on_what_is_known(
    known: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.run(config(*SHORT), tmp_path / "none")
    known |= {"round-000/client-0", "round-000/client-1"}
    runner.run(config(*SHORT), tmp_path / "two")
    capsys.readouterr()
    compare.main([str(tmp_path / "two"), str(tmp_path / "two")])
    assert "2 images in common" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "none"), str(tmp_path / "two")])
    assert "nobody knows its images" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("known")
def test_several_reconstructions_share_the_time(tmp_path: Path) -> None:
    experiment = runner.build(config(*SHORT, "federation.batch_size=3"))
    (capture,) = experiment.source.captures()
    (found,) = experiment.attack.reconstruct(
        [capture.observation], runner.AttackContext(seed=0, device=torch.device("cpu"))
    )
    scorer = Scorer(measures={"mine": NRMSE(), "off": None})
    judgement = scorer.judge(capture, found, experiment.data.mean_image())
    assert judgement.order.tolist() == [0, 1, 2]
    assert [score.seconds for score in judgement.scores] == [found.seconds / 3] * 3
    assert [score.label_inferred for score in judgement.scores] == found.labels.tolist()
    assert all(list(score.measures) == list(columns_of("mine")) for score in judgement.scores)
    with pytest.raises(ValueError, match=r"labels holds 1 images; reconstruction\.inputs 3"):
        scorer.judge(capture, replace(found, labels=found.labels[:1]), experiment.data.mean_image())


def test_a_sheet_without_an_original_has_one_panel(score: ImageScore) -> None:
    image = torch.rand((3, 16, 16), generator=torch.Generator().manual_seed(0))
    alone, beside = (draw_panels(original, image, score) for original in (None, image))
    assert alone.size == beside.size
    half = alone.crop((alone.width // 2, 30, alone.width, 150))
    assert half.getextrema() == ((255, 255),) * 3
    assert isinstance(alone, Image.Image)


def test_a_summary_of_nobody_known_is_of_numbers_that_are_not(score: ImageScore) -> None:
    summary = summarise([score] * 4)
    assert math.isnan(summary.ssim_median)
    assert math.isnan(summary.zero_gradient_share)
    assert summary.n_ok == 4


@pytest.fixture
def score() -> ImageScore:
    texts = {"image_id": "a", "status": "stalled"}
    nan = dict.fromkeys(NEEDS_TRUTH, math.nan)
    counts = {"label_inferred": 0, "steps": 1, "evaluations": 1, "seconds": 1.0, "objective": 0.5}
    nothing = {"label": None, "noise_scale": None, "snr_db": None}
    fields: dict[str, Any] = {**texts, **nan, **counts, **nothing, "success": False}
    return ImageScore(**fields)
