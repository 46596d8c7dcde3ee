"""Pictures of a run, checked by the pixels that they hold."""

from __future__ import annotations

import stat
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers import sample_images
from PIL import Image

from medpfl.report import palette
from medpfl.report.figures import (
    GalleryItem,
    TraceCurve,
    evenly_spread,
    gallery,
    head_inches,
    median_curve,
    new_figure,
    traces,
    wrapped,
    write_head,
)
from medpfl.report.palette import FAILURE, PARTIAL, SUCCESS

BLUE, AMBER, VERMILLION = (
    tuple(bytes.fromhex(colour[1:])) for colour in (SUCCESS, PARTIAL, FAILURE)
)


def item(
    image_id: str, *, ssim: float, shape: tuple[int, ...] = (3, 8, 8), grade: str = ""
) -> GalleryItem:
    grey = torch.full(shape, 0.5)
    return GalleryItem(image_id, grey, grey.numpy(), ssim, "converged", grade)


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def count(path: Path, colour: tuple[int, int, int]) -> int:
    return int(np.sum(np.all(pixels(path) == colour, axis=-1)))


def draw(path: Path, items: list[GalleryItem], *, synthetic: bool = False) -> None:
    gallery(path, items, title="cpl on $brain_mri", synthetic=synthetic, threshold=0.9)


def test_successes_and_failures_have_their_own_colour(tmp_path: Path) -> None:
    path = tmp_path / "gallery.png"
    draw(path, [item("a", ssim=0.9)])
    assert count(path, BLUE) > 500
    assert count(path, VERMILLION) == 0
    draw(path, [item("a", ssim=0.899)])
    assert count(path, BLUE) == 0
    assert count(path, VERMILLION) > 500


def test_what_is_recognisable_is_no_mere_failure(tmp_path: Path) -> None:
    path = tmp_path / "gallery.png"
    draw(path, [item("a", ssim=0.6, grade="recognisable")])
    assert count(path, AMBER) > 500
    assert count(path, VERMILLION) == 0
    draw(path, [item("a", ssim=0.6, grade="nothing")])
    assert count(path, AMBER) == 0
    assert count(path, VERMILLION) > 500


def test_terminal_colours_are_readable_on_light_and_dark() -> None:
    styles = {n: v for n, v in vars(palette).items() if n.endswith("_STYLE")}
    assert len(styles) >= 3
    for name, style in styles.items():
        colour = style.split()[-1]
        for background in ("#ffffff", "#000000"):
            assert palette.contrast(colour, background) >= 4.5, name


def test_coloured_text_in_figures_is_readable_on_white() -> None:
    for colour in (palette.INK, palette.MUTED, SUCCESS, PARTIAL, FAILURE, *palette.SERIES):
        assert palette.contrast(colour, "#ffffff") >= 4.5, colour
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#777777", "#777777") == pytest.approx(1)


@pytest.mark.parametrize("width", [5.0, 9.0, 12.0])
@pytest.mark.parametrize("letter", ["n", "m. ", "word of "])
def test_no_caption_leaves_its_figure(width: float, letter: str) -> None:
    caption = (letter * 300)[:300] if " " in letter else f"{letter * 9} " * 30
    figure = new_figure(width, 4.0)
    write_head(figure, "title", caption, synthetic=True)
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    assert len(wrapped(caption, width).splitlines()) > 1
    assert max(box.x1 for box in boxes) <= figure.bbox.width
    lowest = min(box.y0 for box in boxes)
    assert lowest >= figure.bbox.height * (1 - head_inches(caption, width) / 4.0)


def test_a_gallery_is_private_whole_and_the_same_every_time(tmp_path: Path) -> None:
    path = tmp_path / "gallery.png"
    settings = dict(mpl.rcParams)
    draw(path, [item("a", ssim=1.0)])
    first = path.read_bytes()
    draw(path, [item("a", ssim=1.0)])
    assert path.read_bytes() == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["gallery.png"]
    assert dict(mpl.rcParams) == settings


def test_a_synthetic_gallery_says_so(tmp_path: Path) -> None:
    draw(tmp_path / "real.png", [item("a", ssim=1.0)])
    draw(tmp_path / "synthetic.png", [item("a", ssim=1.0)], synthetic=True)
    assert count(tmp_path / "real.png", AMBER) == 0
    assert count(tmp_path / "synthetic.png", AMBER) > 100


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 9), (1, 5, 8, 8)])
def test_every_kind_of_image_can_be_drawn(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "gallery.png"
    draw(path, [item("odd $id_" + "x" * 60, ssim=float("nan"), shape=shape)] * 2)
    assert count(path, (128, 128, 128)) + count(path, (127, 127, 127)) > 20_000


def test_a_volume_shows_its_middle_slice(tmp_path: Path) -> None:
    volume = torch.zeros(1, 5, 8, 8)
    volume[:, 2] = 1.0
    path = tmp_path / "gallery.png"
    gallery(
        path,
        [GalleryItem("v", volume, volume * 0.0, 0.0, "stalled")],
        title="",
        synthetic=False,
        threshold=0.9,
    )
    black = count(path, (0, 0, 0))
    white_share = np.mean(np.all(pixels(path) == 255, axis=-1))
    assert black > 10_000
    assert white_share > 0.5


def test_the_spread_is_even_and_keeps_both_ends() -> None:
    assert evenly_spread(3, 24) == [0, 1, 2]
    assert evenly_spread(99, 3) == [0, 49, 98]
    chosen = evenly_spread(100, 24)
    assert (len(set(chosen)), chosen[0], chosen[-1]) == (24, 0, 99)
    assert set(np.diff(chosen)) == {4, 5}


def test_the_median_holds_the_last_value_of_ended_curves() -> None:
    steps = [np.array([0.0, 10.0]), np.array([0.0, 10.0, 20.0]), np.array([10.0, 20.0])]
    values = [np.array([1.0, 3.0]), np.array([2.0, 5.0, 9.0]), np.array([4.0, 0.0])]
    grid, median = median_curve(steps, values)
    np.testing.assert_array_equal(grid, [0.0, 10.0, 20.0])
    np.testing.assert_array_equal(median, [1.5, 4.0, 3.0])


@pytest.mark.parametrize("objective", [[1.0, 0.1, 0.0], [1.0, -0.5, np.nan], [0.0, 0.0, 0.0]])
def test_traces_take_any_objective(tmp_path: Path, objective: list[float]) -> None:
    path = tmp_path / "traces.png"
    solved = TraceCurve(torch.arange(3), torch.tensor(objective), torch.tensor([0.1, 0.5, 0.95]))
    failed = TraceCurve(np.arange(2), np.array([1.0, 0.9]), np.array([0.1, 0.1]))
    traces(path, [solved, None, failed], threshold=0.9)
    assert pixels(path).shape == (960, 1152, 3)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_there_must_be_something_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="items is empty"):
        draw(tmp_path / "gallery.png", [])
    with pytest.raises(ValueError, match="no item has a trace"):
        traces(tmp_path / "traces.png", [None], threshold=0.9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real_data
def test_real_images_make_a_gallery(tmp_path: Path) -> None:
    files = sorted(sample_images("brain_mri").glob("Training/*/*.jpg"))[:30]
    items = []
    for file in files:
        with Image.open(file) as picture:
            image = np.asarray(picture.convert("L").resize((32, 32)), dtype=np.float32)[None] / 255
        items.append(GalleryItem(f"{file.parent.name}/{file.stem}", image, image, 1.0, "converged"))
    draw(tmp_path / "gallery.png", items)
    height, width, _ = pixels(tmp_path / "gallery.png").shape
    assert height > width == 1600
