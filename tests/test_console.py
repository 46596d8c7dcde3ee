"""What people read while and after a run: in a pipe, on a terminal, in plain ASCII."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from medpfl.image_score import ImageScore
from medpfl.metrics.success import Summary, summarise
from medpfl.report import console as say
from medpfl.report.progress import show_progress
from medpfl.report.tables import csv_table, format_rate, format_seconds, markdown_table

LONG_PATH = Path("/home/someone") / "a folder with spaces" / ("x" * 70) / "2026-11-20"


def piped(encoding: str = "utf-8") -> tuple[Console, io.TextIOWrapper]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=stream, width=80, markup=False, highlight=False, emoji=False), stream


def text_of(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(stream.encoding)


def plan(*, synthetic: bool) -> say.RunPlan:
    return say.RunPlan(
        attack="[bold]cpl[/bold]",
        dataset="brain_mri",
        source=str(LONG_PATH / "images"),
        synthetic=synthetic,
        model="cpl_cnn",
        parameters=164_532,
        defense="none",
        noise=None,
        threat=("honest-but-curious server", "knows: num_examples", "withheld: labels"),
        device="cpu",
        images=99,
        batch_size=1,
        image_shape=(3, 32, 32),
        notes=("The softmax saturates.",),
        output=LONG_PATH,
    )


def score(*, ssim: float, gradient_norm: float = 1.0) -> ImageScore:
    return ImageScore(
        image_id="a",
        label=0,
        label_inferred=0,
        ssim=ssim,
        mse=0.01,
        psnr_db=20.0,
        success=ssim >= 0.9,
        gradient_norm=gradient_norm,
        true_probability=0.5,
        objective=0.0,
        steps=1,
        evaluations=1,
        seconds=3.8,
        status="converged" if gradient_norm else "no_gradient",
        noise_scale=None,
        snr_db=None,
        ssim_paper=math.nan,
        ssim_zeros=0.05,
        mse_zeros=0.09,
        ssim_mean_image=0.2,
        mse_mean_image=0.02,
    )


def summary() -> tuple[Summary, list[float]]:
    scores = [score(ssim=0.999) for _ in range(74)]
    scores += [score(ssim=-0.01, gradient_norm=0.0) for _ in range(25)]
    return summarise(scores), [one.ssim for one in scores]


@pytest.mark.parametrize("synthetic", [True, False])
def test_the_plan_fits_80_columns_and_keeps_paths_whole(synthetic: bool) -> None:
    console, stream = piped()
    say.announce(plan(synthetic=synthetic), console=console)
    text = text_of(stream)
    lines = text.splitlines()
    assert "\x1b" not in text
    assert "…" not in text
    assert f"  output  {LONG_PATH}" in lines
    assert f"  source  {LONG_PATH / 'images'}" in lines
    assert all(len(line) <= 80 for line in lines if str(LONG_PATH) not in line)
    assert ("SYNTHETIC" in text) is synthetic
    for fact in ("[bold]cpl[/bold]", "164,532 parameters", "honest-but-curious server"):
        assert fact in text
    for fact in ("withheld: labels", "knows: num_examples", "99 of shape 3 x 32 x 32, 1 behind"):
        assert fact in text


def test_the_summary_gives_every_rate_with_its_n() -> None:
    console, stream = piped()
    result, ssim = summary()
    say.summary_table(result, synthetic=True, threshold=0.9, ssim_per_image=ssim, console=console)
    text = text_of(stream)
    assert "74.7 % [65.4, 82.3], 74 of 99" in text
    assert "25.3 %, 25 of 99" in text
    assert "74 reached the threshold; the others: 25 sent no gradient" in text
    assert "SYNTHETIC DATA" in text
    assert "n/a" not in text
    assert "as published" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(("encoding", "full"), [("utf-8", "████"), ("ascii", "@@@@")])
def test_the_histogram_counts_every_image_in_any_encoding(encoding: str, full: str) -> None:
    console, stream = piped(encoding)
    result, ssim = summary()
    say.summary_table(result, synthetic=False, threshold=0.9, ssim_per_image=ssim, console=console)
    lines = text_of(stream).splitlines()
    counts = next(line for line in lines if line.strip().startswith("images"))
    assert [int(word) for word in counts.split()[1:]] == [25, 0, 0, 0, 0, 0, 0, 0, 0, 74]
    assert any(line.endswith(full) for line in lines)


def test_an_error_goes_to_stderr_and_keeps_its_path_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = "/data/" + "y" * 90
    say.error(f"dataset.root: there is no folder {folder}: set dataset.root=<folder>.\nSee [docs].")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("medpfl: error: dataset.root: there is no folder")
    assert f"{folder}:" in captured.err.split()
    assert captured.err.endswith("\nSee [docs].\n")
    assert "\x1b" not in captured.err
    assert "Traceback" not in captured.err


def test_paths_are_aligned_and_one_a_line() -> None:
    console, stream = piped()
    say.paths({"output": LONG_PATH, "metrics table": "m.csv"}, console=console)
    assert text_of(stream) == f"  output         {LONG_PATH}\n  metrics table  m.csv\n"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_progress_writes_the_first_success_then_a_line_a_tenth_or_five_seconds() -> None:
    console, stream = piped()
    clock = Clock()
    with show_progress(99, "images", console=console, clock=clock) as progress:
        for now, done, successes in [(1, 5, 1), (2, 6, 1), (3, 10, 2), (40, 12, 9), (42, 13, 9)]:
            clock.now = 100.0 + now
            progress.update(done, successes, None if done == 5 else 3.0 * done)
    assert text_of(stream).splitlines() == [
        "5/99 images, 1 success, 1 s",
        "10/99 images, 2 successes, 3 s, about 30 s left",
        "12/99 images, 9 successes, 40 s, about 36 s left",
    ]


def test_plain_pulses_are_fifteen_seconds_apart() -> None:
    console, stream = piped()
    clock = Clock()
    with show_progress(2, "images", console=console, clock=clock) as progress:
        for second in range(40):
            clock.now = 100.0 + second
            progress.pulse(f"step {second}/300", 90.0 if second > 20 else None)
        progress.update(2, 1, 90.0)
    assert text_of(stream).splitlines() == [
        "0/2 images, 0 successes, 15 s, step 15/300",
        "0/2 images, 0 successes, 30 s, about 90 s left, step 30/300",
        "2/2 images, 1 success, 39 s",
    ]


@given(
    total=st.integers(1, 300),
    waits=st.lists(st.floats(0.0, 20.0), min_size=1, max_size=60),
)
def test_plain_progress_is_never_chatty(total: int, waits: list[float]) -> None:
    console, stream = piped()
    clock = Clock()
    with show_progress(total, "images", console=console, clock=clock) as progress:
        for index, wait in enumerate(waits):
            clock.now += wait
            progress.update(min(total, index + 1), 0)
    assert len(text_of(stream).splitlines()) <= 11 + sum(waits) / 5


def test_a_terminal_gets_a_bar() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with show_progress(3, "images", console=console) as progress:
        progress.pulse("step 120/300, 64 rows active")
        progress.pulse("step 121/300", 120.0)
        progress.update(2, 2, 3.0)
    text = stream.getvalue()
    assert "2/3" in text
    assert "2 successes" in text
    assert "about 3 s left" in text


def test_without_a_terminal_standard_output_gets_plain_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with say.progress(2) as progress:
        progress.update(1, 1)
        progress.update(2, 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["1/2 images", "2/2 images"]


def test_numbers_as_text() -> None:
    assert format_rate(math.nan, 0) == "n/a, 0 of 0"
    assert format_rate(1.0, 3, low=0.4385, high=1.0) == "100.0 % [43.9, 100.0], 3 of 3"
    seconds = [0.4321, 3.81, 40.2, 300.0, 7500.0, 190_000.0, 1e7, math.nan]
    texts = ["0.43 s", "3.8 s", "40 s", "5 min", "2 h 05 min", "2 days", "116 days", "n/a"]
    assert [format_seconds(value) for value in seconds] == texts


def test_tables_survive_awkward_cells() -> None:
    expected = "| a | b |\n| --- | --- |\n| x\\|y | two lines |\n"
    assert markdown_table(["a", "b"], [["x|y", "two\nlines"]]) == expected
    assert csv_table(["a", "b"], [['say "x", y', None]]) == 'a,b\n"say ""x"", y",\n'
