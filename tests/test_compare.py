"""Paired comparison of two runs: numbers against references, and what cannot be compared."""

from __future__ import annotations

import csv
import json
from math import comb
from pathlib import Path

import numpy as np
import pytest

from medpfl.compare import main
from medpfl.compare.pairs import compare
from medpfl.compare.runs import read_run
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


TABLE = "image_id,ssim,success\n"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("", "cannot be read: No columns to parse"),
        ("image_id,ssim\nx,1.0\n", "cannot be read: metrics.csv has no column success"),
        (TABLE + "x,high,True\n", "metrics.csv, x: ssim=high is not a number"),
        (TABLE + "x,,True\n", "metrics.csv, x: ssim=(nothing) is not a number"),
        (TABLE + "x,nan,True\n", "metrics.csv, x: ssim=nan is not a number"),
        (TABLE + "x,inf,True\n", "metrics.csv, x: ssim=inf is not a number"),
        (TABLE + "x,0.9,\n", "metrics.csv, x: success=(nothing) is neither True nor False"),
        (TABLE + "x,0.9,yes\n", "metrics.csv, x: success=yes is neither True nor False"),
        (TABLE + "x,0.9,True\nx,0.9,True\n", "names an image twice"),
        (TABLE + 'x,"0.9,True\n', "cannot be read"),
        ("\x00\xff", "cannot be read"),
        (TABLE, "no image in common"),
    ],
)
def test_an_edited_table_is_told_in_one_message(tmp_path, capsys, table, told):
    a, b = run(tmp_path / "a", {"x": 1.0}), run(tmp_path / "b", {"x": 1.0})
    (b / "metrics.csv").write_bytes(table.encode("latin-1"))
    assert told in refused(capsys, a, b)


ODD = ("text", 7, [], [1], None, {"x": []}, True)


@pytest.mark.parametrize("value", ODD, ids=str)
@pytest.mark.parametrize("key", ["status", "config", "attack", "dataset", "defense", "preprocess"])
def test_an_edited_record_is_compared_or_told_in_one_message(tmp_path, capsys, key, value):
    a, b = run(tmp_path / "a", {"x": 1.0}), run(tmp_path / "b", {"x": 1.0})
    record = json.loads((b / "run.json").read_text())
    (record["config"] if key in record["config"] else record)[key] = value
    (b / "run.json").write_text(json.dumps(record))
    code: object = 0
    try:
        main([str(a), str(b)])
    except SystemExit as ended:
        code = ended.code
    told = " ".join(capsys.readouterr().err.split())
    assert (code, told[:15]) in ((0, ""), (2, "medpfl: error: "))
    assert "Traceback" not in told


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\x00", '"text"', "[]"])
def test_a_record_of_another_kind(tmp_path, capsys, content):
    a = run(tmp_path / "a", {"x": 1.0})
    (a / "run.json").write_text(content)
    assert "cannot be read" in refused(capsys, a, a)


def refused(capsys: pytest.CaptureFixture[str], a: Path, b: Path) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(a), str(b)])
    assert stopped.value.code == 2
    error = " ".join(capsys.readouterr().err.split())  # a long path begins a line of its own
    assert error.startswith("medpfl: error: ")
    assert error.count("medpfl: error: ") == 1
    assert "Traceback" not in error
    return error
