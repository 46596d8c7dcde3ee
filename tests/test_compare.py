"""Paired comparison of two runs: numbers against references, and what cannot be compared."""

from __future__ import annotations

import csv
import json
from math import comb
from pathlib import Path

import numpy as np
import pytest

from medpfl.compare import compare, main, read_run
from medpfl.errors import DataError
from medpfl.metrics.bootstrap import bootstrap_mean
from medpfl.metrics.paired import mcnemar_exact


def run(
    folder: Path,
    ssim: dict[str, float],
    *,
    attack: str = "dlg",
    dataset: str = "covid",
    status: str = "complete",
    size: int = 32,
) -> Path:
    folder.mkdir()
    config = {
        "attack": {"name": attack},
        "dataset": {"name": dataset},
        "preprocess": {"size": size},
        "defense": {"_target_": "medpfl.defenses.NoDefense"},
    }
    (folder / "run.json").write_text(json.dumps({"status": status, "config": config}))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "label", "ssim", "success"])
        writer.writerows([name, 0, value, value >= 0.9] for name, value in ssim.items())
    return folder


@pytest.mark.parametrize(("a", "b"), [(0, 0), (5, 0), (1, 7), (4, 4), (10, 2)])
def test_mcnemar_is_the_binomial_sum(a: int, b: int) -> None:
    n, k = a + b, min(a, b)
    tail = sum(comb(n, i) for i in range(k + 1)) / 2**n
    assert mcnemar_exact(a, b) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="cannot be negative"):
        mcnemar_exact(-1, 3)


def test_the_bootstrap_interval_is_seeded_and_close_to_the_normal_one() -> None:
    values = np.random.default_rng(5).normal(0.3, 1.0, size=400).tolist()
    low, high = bootstrap_mean(values)
    assert (low, high) == bootstrap_mean(values)
    half = 1.96 * float(np.std(values)) / 20
    mean = float(np.mean(values))
    # The ends of 5000 resamples scatter by about 3 % of the half width.
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.12 * half)
    assert bootstrap_mean([0.5] * 5) == (0.5, 0.5)
    assert np.isnan(bootstrap_mean([0.5, 0.6, 0.7, 0.8])).all()
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean([0.5, float("nan")])


def test_pairs_by_image_whatever_the_order(tmp_path: Path) -> None:
    a = run(tmp_path / "a", {"x": 1.0, "y": 0.95, "z": 0.2, "v": 0.2, "w": 0.2, "only a": 1.0})
    b = run(tmp_path / "b", {"z": 0.1, "x": 0.99, "y": 0.3, "w": 0.1, "v": 0.1})
    found = compare(read_run(a), read_run(b))
    assert found.n == 5
    assert found.successes == (2, 1)
    assert (found.only_a, found.only_b, found.p_value) == (1, 0, 1.0)
    assert found.ssim_difference == pytest.approx((0.01 + 0.65 + 0.3) / 5)
    low, high = found.ssim_interval
    assert 0.01 <= low < found.ssim_difference < high <= 0.65


def test_the_printed_table_tells_n_and_what_is_unequal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = run(tmp_path / "a", {"x": 1.0, "y": 0.95, "z": 0.2}, size=32)
    b = run(tmp_path / "b", {"x": 0.1, "y": 0.2}, attack="cpl", size=224, status="interrupted")
    main([str(a), str(b)])
    text = " ".join(capsys.readouterr().out.split())
    assert "2 images in common" in text
    assert "dlg on covid" in text
    assert "cpl on covid" in text
    assert "100.0 % [34.2, 100.0]" in text
    assert "p = 0.5, two-sided" in text
    assert "A minus B: +0.825" in text
    assert "A has 1 more images" in text
    assert "B is interrupted" in text
    assert "preprocess differently" in text


def test_a_run_against_itself_differs_by_nothing(tmp_path: Path) -> None:
    a = read_run(run(tmp_path / "a", {name: 0.1 * k for k, name in enumerate("uvwxyz")}))
    found = compare(a, a)
    assert (found.p_value, found.ssim_difference, found.ssim_interval) == (1.0, 0.0, (0.0, 0.0))


def test_what_cannot_be_compared_is_an_error_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = run(tmp_path / "a", {"x": 1.0})
    other = run(tmp_path / "other", {"x": 1.0}, dataset="melanoma")
    disjoint = run(tmp_path / "disjoint", {"y": 1.0})
    with pytest.raises(DataError, match="different datasets, covid and melanoma"):
        compare(read_run(a), read_run(other))
    with pytest.raises(DataError, match="no image in common"):
        compare(read_run(a), read_run(disjoint))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main([str(a), str(tmp_path / "empty")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "is not the folder of a run: it has no run.json" in " ".join(error.split())
    assert "Traceback" not in error
    (a / "metrics.csv").write_text("image_id\nx\n")
    with pytest.raises(DataError, match=r"cannot be read"):
        read_run(a)
