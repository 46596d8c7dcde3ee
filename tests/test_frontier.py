"""The frontier: points over seeds, what is efficient, what costs least, table and picture."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from test_paper_tables import SCORE, add_job, plan

from medpfl.metrics.identification import Rank, identification
from medpfl.metrics.rates import wilson
from medpfl.paper import Frontier
from medpfl.paper.frontier.attacks import attacked
from medpfl.paper.frontier.choice import (
    Corner,
    Verdict,
    cheapest,
    dominating,
    efficient,
    verdict,
)
from medpfl.paper.frontier.points import Leakage, Point, points_of, spread
from medpfl.paper.frontier.table import answer
from medpfl.paper.results import Estimate, read_results
from medpfl.report.rounds_file import RoundScore, write_rounds
from medpfl.report.sweep import write_report

NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


def leak(hits: int, n: int, *, first: int = 0) -> Leakage:
    """Return what an attacker got who rebuilt `hits` of n images, and named `first` of them."""
    ranks = [Rank(1, 100)] * first + [Rank(50 + i % 7, 100) for i in range(n - first)]
    return Leakage(
        attacker="one",
        asr=Estimate(hits / n, *wilson(hits, n), n),
        ssim=Estimate(hits / n, 0, 1, n),
        identification=identification(ranks),
        psnr_db=NOTHING,
        cut_short=0,
        guessed=0.0,
        bound_psnr_db=NOTHING,
    )


def point(name: str, accuracy: float, naive: Leakage | None, adaptive: Leakage | None) -> Point:
    return Point(
        name=name,
        defense=name.partition("_")[0],
        setting=name,
        accuracy=Estimate(accuracy, accuracy, accuracy, 3),
        auc=NOTHING,
        naive=naive,
        adaptive=adaptive,
    )


def test_the_efficient_frontier_of_given_corners() -> None:
    corners = [(0.5, 0.8), (0.0, 0.3), (0.5, 0.7), (0.2, 0.2), (1.0, 0.8), (0.1, 0.6), (0.9, 0.9)]
    found = efficient([Corner(*c) for c in [*corners, (math.nan, 1.0), (0.0, math.nan)]])
    assert [(c.leakage, c.utility) for c in found] == [
        (0.0, 0.3),
        (0.1, 0.6),
        (0.5, 0.8),
        (0.9, 0.9),
    ]
    assert efficient([]) == []


def test_a_defense_is_judged_by_the_attacker_that_does_better() -> None:
    safe, broken, named = leak(0, 80), leak(40, 80), leak(0, 80, first=20)
    assert verdict(point("a", 0.9, safe, safe)) is Verdict.SAFE
    assert verdict(point("a", 0.9, safe, broken)) is Verdict.LEAKS
    assert verdict(point("a", 0.9, broken, safe)) is Verdict.LEAKS
    assert verdict(point("a", 0.9, safe, named)) is Verdict.LEAKS
    # 0 of 12 does not show that the rate is under 5 %: its interval ends at 24 %.
    assert verdict(point("a", 0.9, leak(0, 12), leak(0, 12))) is Verdict.LIKELY
    assert verdict(point("a", 0.9, safe, None)) is Verdict.UNKNOWN


def test_the_cheapest_is_the_safe_one_of_highest_accuracy_and_there_may_be_none() -> None:
    safe, broken = leak(0, 80), leak(40, 80)
    points = [
        point("none", 0.9, broken, broken),
        point("topk_1", 0.88, safe, broken),
        point("noise_1", 0.8, safe, safe),
        point("noise_2", 0.4, safe, safe),
        point("sign_1", math.nan, safe, safe),
    ]
    best = cheapest(points)
    assert best is not None
    assert best.name == "noise_1"
    assert answer(points) == (
        "Cheapest that keeps ASR under 5 % and identification at chance: noise (noise_1), at a "
        "balanced accuracy of 80.0 %, 10.0 points below no defense."
    )
    assert answer(points[:2]).startswith("Nothing here keeps ASR under 5 %")
    assert answer([point("noise_1", 0.8, safe, None)]).startswith("No point was attacked by both")
    smooth = point("sign_2", 0.8, replace(safe, guessed=0.25), safe)
    assert "reaches an SSIM of 0.9 for 25 % of the images" in answer([smooth])
    worse = dominating(points[3], points)
    assert worse is not None
    assert worse.name == "noise_1"
    # Leaks as much as no defense under the stronger attacker, and costs more.
    assert dominating(points[1], points) is points[0]
    assert [dominating(p, points) for p in points[:1] + points[2:3]] == [None, None]


def test_seeds_are_spread_from_the_lowest_to_the_highest() -> None:
    found = spread([0.5, 0.7, math.nan, 0.9])
    assert (found.value, found.low, found.high, found.n) == (pytest.approx(0.7), 0.5, 0.9, 3)
    assert spread([math.nan]).n == 0


DEFENSES = {"none": ("none", "none"), "sign": ("sign", "1 bit"), "topk_0.1": ("topk", "10 %")}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three points, two attackers, two seeds; the last job never started."""
    axes = ["seed=0,1", f"paper/defense={','.join(DEFENSES)}", "paper/attacker=naive,adaptive"]
    plan(tmp_path, "dataset=phantom_many", *axes)
    jobs = [
        (seed, name, kind) for seed in "01" for name in DEFENSES for kind in ("naive", "adaptive")
    ]
    for number, (seed, name, kind) in enumerate(jobs[:-1]):
        told = [
            *("dataset=phantom_many", f"seed={seed}"),
            *(f"paper/defense={name}", f"paper/attacker={kind}"),
        ]
        broken = name == "none" or (name == "topk_0.1" and kind == "adaptive")
        score = replace(SCORE, identification_rank=1.0, identification_candidates=50, round=3)
        if not broken:
            score = replace(score, success=False, ssim=0.01, status="out_of_steps")
            score = replace(score, identification_rank=30.0)
        images = [replace(score, capture_id=f"update-{n}") for n in range(6)]
        folder = add_job(tmp_path, number, told, scores=images)
        record = json.loads((folder / "run.json").read_text())
        paper = {"defense": DEFENSES[name][0], "setting": DEFENSES[name][1], "attacker": kind}
        record["config"] = {"paper": paper, "dataset": {"name": "phantom"}}
        record["summary"] |= {} if name == "none" else {"epsilon": "inf"}
        (folder / "run.json").write_text(json.dumps(record))
        accuracy = {"none": 0.8, "sign": 0.6, "topk_0.1": 0.7}[name] + 0.1 * (seed == "1")
        utility = RoundScore(
            round=3, accuracy=0.5, balanced_accuracy=accuracy, auc=accuracy, loss=1.0
        )
        write_rounds(folder / "rounds.csv", [utility])
    return tmp_path


def test_images_are_pooled_over_seeds_and_a_seed_trains_once(sweep: Path) -> None:
    (points,) = map(points_of, attacked(read_results(write_report(sweep)), sweep).values())
    none, sign, topk = points
    assert (none.name, none.accuracy.n, none.naive.asr.n) == ("none", 2, 12)  # type: ignore[union-attr]
    assert (none.accuracy.value, none.accuracy.low) == (pytest.approx(0.85), 0.8)
    assert none.naive.asr == Estimate(1.0, *wilson(12, 12), 12)  # type: ignore[union-attr]
    assert none.naive.identification.top1_chance == 1 / 50  # type: ignore[union-attr]
    assert (sign.setting, sign.epsilon, none.epsilon) == ("1 bit", math.inf, None)
    assert topk.adaptive.asr.n == 6  # type: ignore[union-attr]  # one of its jobs never started
    assert [verdict(p) for p in points] == [Verdict.LEAKS, Verdict.LIKELY, Verdict.LEAKS]


def test_the_product_is_a_table_for_readers_one_for_scripts_and_a_picture(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = read_results(write_report(sweep))
    files = Frontier(title="The frontier").make(results, sweep, note="PREVIEW")
    text = (sweep / "frontier.md").read_text()
    assert text.startswith("# The frontier\n\nPREVIEW\n\n## phantom_many\n\nCheapest that keeps")
    assert "sign (1 bit)" in text
    assert "| topk | 10 % |" in text
    assert "infinite" in text
    with (sweep / "frontier.csv").open() as file:
        rows = {row["point"]: row for row in csv.DictReader(file)}
    assert [row["cheapest"] for row in rows.values()] == ["False", "True", "False"]
    assert rows["topk_0.1"]["dominated_by"] == "none"
    assert float(rows["topk_0.1"]["adaptive_asr"]) == 1.0
    assert float(rows["topk_0.1"]["naive_asr"]) == 0.0
    assert float(rows["sign"]["adaptive_asr_high"]) == pytest.approx(wilson(0, 12)[1])
    with Image.open(files["frontier, png"]) as drawn:
        assert drawn.width > 1500
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    assert "raise n_images" in words
    assert "ran out of steps on 24 of 24 images" in words


def test_a_sweep_without_a_complete_job_says_so(tmp_path: Path) -> None:
    plan(tmp_path, "dataset=phantom_many", "paper/defense=none", "seed=0,1")
    results = read_results(write_report(tmp_path))
    files = Frontier(title="The frontier").make(results, tmp_path, note="")
    assert "frontier, png" not in files
    assert files["frontier"].read_text().startswith("# The frontier\n")
