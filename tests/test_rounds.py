"""``rounds.csv`` written and read back, and the picture of rounds by its pixels."""

from __future__ import annotations

import math
import stat
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medpfl.errors import DataError
from medpfl.report import palette
from medpfl.report import rounds_figure as module
from medpfl.report.palette import FAILURE, SERIES, SUCCESS
from medpfl.report.rounds_figure import rounds_figure
from medpfl.report.rounds_file import COLUMNS, RoundScore, read_rounds, write_rounds

numbers = st.floats(0, 1) | st.just(math.nan)


def row(number: int, value: float = 0.5, auc: float = 0.75) -> RoundScore:
    return RoundScore(
        round=number, accuracy=value, balanced_accuracy=value, auc=auc, loss=1 - value
    )


def test_the_columns_are_these():
    assert COLUMNS == ("round", "accuracy", "balanced_accuracy", "auc", "loss")


@given(
    st.dictionaries(
        st.integers(0, 10**6), st.tuples(numbers, numbers, numbers, numbers), max_size=5
    )
)
def test_what_is_written_is_read_back_to_the_bit(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("rounds") / "rounds.csv"
    rounds = [
        RoundScore(round=n, accuracy=a, balanced_accuracy=b, auc=c, loss=d)
        for n, (a, b, c, d) in sorted(scores.items())
    ]
    write_rounds(path, rounds)
    back = read_rounds(path)
    np.testing.assert_array_equal([astuple(s) for s in back], [astuple(s) for s in rounds])


def test_the_file_is_private_whole_and_plain(tmp_path):
    path = tmp_path / "rounds.csv"
    write_rounds(path, [row(0, 0.25, math.nan)])
    write_rounds(path, [row(0, 0.25, math.nan), row(2)])
    assert path.read_text() == (
        "round,accuracy,balanced_accuracy,auc,loss\n0,0.25,0.25,nan,0.75\n2,0.5,0.5,0.75,0.5\n"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["rounds.csv"]


@pytest.mark.parametrize("order", [[1, 0], [0, 0]])
def test_rounds_out_of_order_are_not_written(tmp_path, order):
    write_rounds(tmp_path / "rounds.csv", [row(7)])
    with pytest.raises(ValueError, match="ascend"):
        write_rounds(tmp_path / "rounds.csv", [row(number) for number in order])
    assert read_rounds(tmp_path / "rounds.csv") == (row(7),)


HEAD = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column round"),
        ("round,accuracy\n0,1\n", "no column balanced_accuracy"),
        (f"{HEAD}\n0,1,1,1,x\n", "line 2: loss=x is not a number"),
        (f"{HEAD}\n0,1,1,1,0\n0.5,1,1,1,0\n", r"line 3: round=0\.5 is no whole number"),
        (f"{HEAD}\n,1,1,1,0\n", r"round=\(nothing\)"),
        (f"{HEAD}\n3,1,1,1,0\n2,1,1,1,0\n", "round 2 follows round 3"),
        (f'{HEAD}\n0,1,1,1,"0\n', "not the table"),
        (b"\xff\xfe\x00r", "not the table"),
    ],
)
def test_a_table_that_somebody_broke_is_a_message(tmp_path, text, words):
    path = tmp_path / "rounds.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=words) as refused:
        read_rounds(path)
    assert str(path) in str(refused.value)


def test_what_a_spreadsheet_does_to_a_table_is_read(tmp_path):
    path = tmp_path / "rounds.csv"
    path.write_bytes(f"\ufeff{HEAD},note\r\n0, 0.5,0.5,,0.5,x\r\n1,1,1\r\n".encode())
    first, second = read_rounds(path)
    assert (first.accuracy, first.loss) == (0.5, 0.5)
    assert math.isnan(first.auc)
    assert second.balanced_accuracy == 1
    assert math.isnan(second.loss)


def test_a_missing_table_is_the_file_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_rounds(tmp_path / "rounds.csv")


def drawn(path: Path, **given) -> np.ndarray:
    settings = {"rounds": [row(0), row(1)], "title": "t $x", "threshold": 0.9, **given}
    rounds_figure(path, settings.pop("rounds"), **settings)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def count(pixels: np.ndarray, colour: str) -> int:
    """Count pixels near a colour: thin lines and transparent dots are blended."""
    wanted = np.array(list(bytes.fromhex(colour[1:])))
    return int((np.abs(pixels - wanted).max(-1) <= 20).sum())


def test_each_measure_has_its_line_and_its_name(tmp_path):
    pixels = drawn(tmp_path / "r.png", rounds=[row(n, n / 10, 0.9) for n in range(8)])
    assert all(count(pixels, colour) > 300 for colour in SERIES[:3])
    without = drawn(tmp_path / "r.png", rounds=[row(n, n / 10, math.nan) for n in range(8)])
    assert count(without, SERIES[2]) == 0


def test_panels_are_there_where_there_is_something_for_them(tmp_path):
    ssim, norms = {0: [0.95, 0.2], 1: [0.5]}, {0: [1.0, 2.0], 1: [0.1]}
    heights = [
        len(drawn(tmp_path / f"{number}.png", **given))
        for number, given in enumerate(
            (
                {},
                {"ssim": {}, "gradient_norm": {0: []}},
                {"ssim": ssim},
                {"ssim": ssim, "gradient_norm": norms},
            )
        )
    ]
    assert heights[0] == heights[1] < heights[2] < heights[3]


def test_images_that_reach_the_threshold_are_filled(tmp_path):
    reach = drawn(tmp_path / "a.png", rounds=[], ssim={3: [0.95] * 6})
    miss = drawn(tmp_path / "b.png", rounds=[], ssim={3: [0.85] * 6})
    assert count(reach, SUCCESS) > 300
    assert count(reach, FAILURE) == 0
    assert count(miss, SUCCESS) == 0
    assert count(miss, FAILURE) > 0


def test_captured_rounds_are_marked(tmp_path):
    rounds = [row(n, 0.9, 0.95) for n in range(10)]
    ink = [
        count(drawn(tmp_path / "r.png", rounds=rounds, **given), palette.INK)
        for given in ({}, {"captured": [2]}, {"captured": [2, 5, 7]})
    ]
    assert ink[0] < ink[1] < ink[2]


@pytest.mark.parametrize(
    "given",
    [
        {"rounds": [row(0)], "captured": [0], "ssim": {0: [1.0]}, "gradient_norm": {0: [0.0]}},
        {"rounds": [row(0, math.nan, math.nan)]},
        {"ssim": {0: [math.nan, -0.3], 5: [math.nan]}},
        {"gradient_norm": {0: [0.0, 1e-30, math.inf, 3e8]}},
        {"gradient_norm": {1: [2.0, 3.0]}},
        {"rounds": [], "ssim": {4: [0.5]}, "synthetic": True},
        {"rounds": [row(n) for n in range(0, 3000, 3)], "captured": range(3000)},
    ],
)
def test_any_numbers_can_be_drawn(tmp_path, given):
    path = tmp_path / "rounds.png"
    first = drawn(path, **given)
    whole = path.read_bytes()
    assert first.shape[1] == 1152
    drawn(path, **given)
    assert path.read_bytes() == whole
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_there_must_be_something_to_draw(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        drawn(tmp_path / "rounds.png", rounds=[], captured=[1], ssim={1: [math.nan]})
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_names_of_lines_stay_in_the_picture_and_apart(values):
    figure = module.new_figure(7.2, 3.0)
    axes = figure.add_axes((0.1, 0.1, 0.65, 0.7))
    axes.set_ylim(-0.03, 1.03)
    module._name_lines(axes, [(v, f"balanced accuracy {v:.2f}", "#000000") for v in values])
    boxes = sorted(
        (text.get_window_extent(figure.canvas.get_renderer()) for text in axes.texts),
        key=lambda box: box.y0,
    )
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))
    assert boxes[0].y0 >= 0
    assert boxes[-1].y1 <= figure.bbox.height
    assert max(box.x1 for box in boxes) <= figure.bbox.width
