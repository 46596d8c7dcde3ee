"""Pictures of a run: originals beside reconstructions, and how the attack came to them.

Figures are built on matplotlib's objects, never on pyplot: nothing global is touched or kept.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from torch import Tensor

from medpfl._atomic import replacing
from medpfl.outcomes import Grade
from medpfl.report.palette import FAILURE, GRID, INK, MUTED, PARTIAL, SUCCESS, SYNTHETIC_INK
from medpfl.report.planes import three_planes
from medpfl.report.words import how_it_ended

MAX_PAIRS = 24
_PAIRS_PER_ROW = 4
_DPI = 160
_UNKNOWN = "?"
_SOLVED, _HALF, _MISSED = (
    "\N{CHECK MARK}",
    "\N{CIRCLE WITH LEFT HALF BLACK}",
    "\N{BALLOT X}",
)
_LONGEST_ID = 30
# Inches of a figure's head: where the caption begins, a line of it, and what follows it.
_MARGIN, _TITLE, _LINE, _BELOW_HEAD = 0.15, 0.38, 0.145, 0.1
# Of small text, on average and a little more.
_LETTERS_AN_INCH = 15.5
# Above a pair: its name and its verdict.
_TWO_LINES = 0.26

Array = Tensor | npt.NDArray[Any]
Series = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GalleryItem:
    """One attacked image.

    Args:
        image_id: its id in the metrics table.
        original: `(C, *S)` in [0, 1], or None where nobody knows it.
        reconstruction: `(C, *S)` in [0, 1], or None where none was left for this image.
        ssim: SSIM between the two; NaN without an original.
        status: why the attack ended.
        grade: what the reconstruction shows; empty where it was not graded.
    """

    image_id: str
    original: Array | None
    reconstruction: Array | None
    ssim: float
    status: str
    grade: str = ""


@dataclass(frozen=True)
class TraceCurve:
    """How one reconstruction came about, at T recorded steps.

    Args:
        steps: `(T,)` step numbers, increasing.
        objective: `(T,)` objective values.
        ssim: `(T,)` SSIM between the original and the intermediate reconstruction.
    """

    steps: Array
    objective: Array
    ssim: Array


def gallery(
    path: Path,
    items: Sequence[GalleryItem],
    *,
    title: str,
    synthetic: bool,
    threshold: float,
) -> None:
    """Draw originals and reconstructions side by side, at most 24 pairs evenly spread.

    Args:
        path: the PNG to write.
        items: the attacked images, at least one. Of a volume the middle slice is drawn.
        title: the picture's title.
        synthetic: whether the images are made up.
        threshold: the SSIM from which a reconstruction counts as a success.

    Raises:
        ValueError: there are no items.
    """
    if not items:
        raise ValueError("gallery: items is empty; there is nothing to draw")
    shown = [items[index] for index in evenly_spread(len(items), MAX_PAIRS)]
    # At least two columns wide: room for the title over a single pair.
    columns = max(2, min(_PAIRS_PER_ROW, len(shown)))
    rows = math.ceil(len(shown) / columns)
    slices = any(len(i.shape) > 3 for item in items for i in _images(item) if i is not None)
    caption = (
        f"Left: original, right: reconstruction{' (middle slices)' if slices else ''}.\n"
        f"{len(shown)} of {len(items)} images shown; {_counted(items, threshold)}."
    )
    width = 2.5 * columns
    head = head_inches(caption, width) + _TWO_LINES
    height = 1.62 * rows + head - 0.12
    figure = new_figure(width, height)
    grid = GridSpec(
        rows,
        columns,
        figure=figure,
        left=0.15 / width,
        right=1 - 0.15 / width,
        top=1 - head / height,
        bottom=0.1 / height,
        wspace=0.08,
        hspace=0.42,
    )
    for index, item in enumerate(shown):
        _draw_pair(figure, grid, index, item, threshold)
    write_head(figure, title, caption, synthetic=synthetic)
    save_png(figure, path)


def traces(
    path: Path,
    items: Sequence[TraceCurve | None],
    *,
    threshold: float,
    title: str = "SSIM and objective over optimiser steps",
    synthetic: bool = False,
) -> None:
    """Draw SSIM and objective over optimiser steps, a line an image, and their medians.

    Args:
        path: the PNG to write.
        items: a curve an image; None for an image without a trace. At least one curve.
        threshold: the SSIM from which a reconstruction counts as a success.
        title: the picture's title.
        synthetic: whether the images are made up.

    Raises:
        ValueError: no image has a trace.
    """
    curves = [curve for curve in items if curve is not None and len(curve.steps)]
    if not curves:
        raise ValueError("traces: no item has a trace; there is nothing to draw")
    figure = new_figure(7.2, 6.0)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    steps = [_series(curve.steps) for curve in curves]
    ssim = [_series(curve.ssim) for curve in curves]
    objective, floored = _positive([_series(curve.objective) for curve in curves])
    solved = [bool(values[-1] >= threshold) for values in ssim]
    _draw_lines(top, steps, ssim, solved)
    _draw_lines(bottom, steps, objective, solved)
    top.axhline(threshold, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    top.set(ylabel="SSIM", ylim=(min(-0.03, min(map(np.nanmin, ssim))), 1.03))
    bottom.set(ylabel="objective", xlabel="optimiser step")
    if any(np.nanmax(values) > 0 for values in objective):
        bottom.set_yscale("log")
    figure.align_ylabels([top, bottom])
    _legend(top, solved, threshold)
    caption = _trace_caption(len(items), len(curves), floored)
    top_inches = head_inches(caption, figure.get_figwidth()) + 0.1
    figure.subplots_adjust(left=0.1, right=0.97, top=1 - top_inches / 6.0, bottom=0.09, hspace=0.09)
    write_head(figure, title, caption, synthetic=synthetic)
    save_png(figure, path)


def evenly_spread(total: int, most: int) -> list[int]:
    """Return at most ``most`` indices spread evenly over ``range(total)``, both ends included."""
    if total <= most:
        return list(range(total))
    return [round(index * (total - 1) / (most - 1)) for index in range(most)]


def median_curve(steps: Sequence[Series], values: Sequence[Series]) -> tuple[Series, Series]:
    """Return the median over curves at every recorded step, ended curves at their last value.

    Args:
        steps: a `(T_i,)` array a curve, increasing.
        values: a `(T_i,)` array a curve.

    Returns:
        The steps that any curve recorded `(T,)` and the median there `(T,)`.
    """
    grid = np.unique(np.concatenate(steps))
    held = np.full((len(steps), len(grid)), np.nan)
    for row, own_steps, own_values in zip(held, steps, values, strict=True):
        latest = np.searchsorted(own_steps, grid, side="right") - 1
        row[latest >= 0] = own_values[latest[latest >= 0]]
    seen = ~np.isnan(held).all(axis=0)
    return grid[seen], np.nanmedian(held[:, seen], axis=0)


def _draw_pair(
    figure: Figure, grid: GridSpec, index: int, item: GalleryItem, threshold: float
) -> None:
    cell = grid[index // grid.ncols, index % grid.ncols].subgridspec(1, 2, wspace=0.04)
    mark, word, colour = _verdict(item, threshold)
    missing = any(image is None for image in _images(item))
    for half, image in enumerate(_images(item)):
        axes = figure.add_subplot(cell[half])
        picture = np.ones((1, 1)) if image is None else as_picture(image)
        smooth = "nearest" if max(picture.shape) <= 128 else "antialiased"
        axes.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, interpolation=smooth)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=colour if half else GRID, linewidth=2.0 if half else 0.8)
        if half == 0:
            axes.set_title(
                f"{_shortened(item.image_id)}\n", loc="left", fontsize=7, color=INK, pad=2.5
            ).set_parse_math(False)
            left = axes
    left.annotate(
        f"{mark} {word}" if missing else f"{mark} {word}SSIM {item.ssim:.3f}",
        (0, 1),
        (0, 2.5),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=7,
        fontweight="bold",
        color=colour,
        annotation_clip=False,
    )


def _images(item: GalleryItem) -> tuple[Array | None, Array | None]:
    return item.original, item.reconstruction


def _verdict(item: GalleryItem, threshold: float) -> tuple[str, str, str]:
    """Return the mark, the word and the colour of an image."""
    if item.original is None:
        return _UNKNOWN, f"{how_it_ended(item.status)}", MUTED
    if item.reconstruction is None:
        return _MISSED, f"{how_it_ended(item.status)}", FAILURE
    if item.ssim >= threshold:
        return _SOLVED, f"{item.grade}, " if item.grade else "", SUCCESS
    if item.grade == Grade.RECOGNISABLE:
        return _HALF, f"{item.grade}, ", PARTIAL
    return _MISSED, f"{how_it_ended(item.status)}, ", FAILURE


def _counted(items: Sequence[GalleryItem], threshold: float) -> str:
    """Return how many images reach the threshold, and how many more are recognisable."""
    marks = [_verdict(item, threshold)[0] for item in items]
    n = len(items) - marks.count(_UNKNOWN)
    if not n:
        return "nobody knows the originals"
    reached = f"{marks.count(_SOLVED)} of {n} reach SSIM {threshold:g} ({_SOLVED})"
    partly = marks.count(_HALF)
    return f"{reached}, {partly} more recognisable ({_HALF})" if partly else reached


def as_picture(image: Array) -> npt.NDArray[Any]:
    """Return `(H, W)` or `(H, W, 3)` in [0, 1]: of a volume `(C, D, H, W)` three slices."""
    pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if pixels.ndim == 4:
        pixels = three_planes(pixels)
    pixels = np.clip(np.nan_to_num(pixels.astype(np.float64)), 0.0, 1.0)
    return pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 else pixels[0]


def _shortened(image_id: str) -> str:
    """Return the id's end, which tells images apart; folders in front are alike."""
    return image_id if len(image_id) <= _LONGEST_ID else f"...{image_id[3 - _LONGEST_ID :]}"


def _series(values: Array) -> Series:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return array.astype(np.float64)


def _positive(curves: Sequence[Series]) -> tuple[list[Series], int]:
    """Lift values a log axis cannot show to a floor below all others; say how many there were."""
    finite = [np.where(np.isfinite(values), values, np.nan) for values in curves]
    pooled = np.concatenate(finite)
    positive = pooled[pooled > 0]
    below = int(np.sum(pooled <= 0))
    if not positive.size or not below:
        return finite, 0
    return [np.where(values <= 0, positive.min() / 10, values) for values in finite], below


def _draw_lines(
    axes: Axes, steps: Sequence[Series], values: Sequence[Series], solved: Sequence[bool]
) -> None:
    for own_steps, own_values, success in zip(steps, values, solved, strict=True):
        axes.plot(
            own_steps,
            own_values,
            color=SUCCESS if success else FAILURE,
            linestyle="-" if success else (0, (4, 2)),
            linewidth=0.8,
            alpha=max(0.25, min(0.8, 8 / len(steps))),
            marker="." if len(own_steps) == 1 else None,
        )
    axes.plot(*median_curve(steps, values), color=INK, linewidth=2.0)
    axes.grid(color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)


def _legend(axes: Axes, solved: Sequence[bool], threshold: float) -> None:
    successes = sum(solved)
    reaches = f"reaches SSIM {threshold:g}: {successes} of {len(solved)}"
    axes.plot([], [], color=SUCCESS, label=reaches)
    dashed = f"stays below: {len(solved) - successes} of {len(solved)}"
    axes.plot([], [], color=FAILURE, linestyle=(0, (4, 2)), label=dashed)
    axes.plot([], [], color=INK, linewidth=2.0, label="median")
    axes.legend(fontsize=8, frameon=True, edgecolor="none", framealpha=0.85, loc="best")


def _trace_caption(images: int, traced: int, floored: int) -> str:
    caption = f"{traced} of {images} images left a trace; ended images keep their last value."
    if floored:
        caption += f"\n{floored} objective values at or below zero are drawn at the axis' foot."
    return caption


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, on matplotlib's objects alone."""
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def wrapped(caption: str, width: float) -> str:
    """Break a caption's lines so that they fit into a figure of a width in inches."""
    letters = int((width - 2 * _MARGIN) * _LETTERS_AN_INCH)
    return "\n".join(textwrap.fill(line, letters) for line in caption.splitlines())


def head_inches(caption: str, width: float) -> float:
    """Return the room that `write_head` takes at the top of a figure of a width in inches."""
    return _TITLE + _LINE * len(wrapped(caption, width).splitlines()) + _BELOW_HEAD


def write_head(figure: Figure, title: str, caption: str, *, synthetic: bool) -> None:
    """Write title and caption at the top left, and whether the images are made up.

    Its height is `head_inches`: leave room for it.
    """
    caption = wrapped(caption, figure.get_figwidth())
    height = figure.get_figheight()
    left = _MARGIN / figure.get_figwidth()
    figure.text(
        left, 1 - 0.12 / height, title, va="top", fontsize=12, fontweight="bold", color=INK
    ).set_parse_math(False)
    figure.text(
        left, 1 - _TITLE / height, caption, va="top", fontsize=8, color=MUTED, linespacing=1.2
    ).set_parse_math(False)
    if synthetic:
        figure.text(
            1 - left,
            1 - 0.12 / height,
            "SYNTHETIC DATA",
            va="top",
            ha="right",
            fontsize=10,
            fontweight="bold",
            color=SYNTHETIC_INK,
        )


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG that is there whole or not at all."""
    with replacing(path) as file:
        # Without matplotlib's version in it, the same figure is the same file.
        figure.savefig(file, format="png", metadata={"Software": None})


def save_both(figure: Figure, stem: Path) -> dict[str, Path]:
    """Write a figure as PNG and as PDF, and return the two files by suffix."""
    files = {suffix: stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf")}
    save_png(figure, files["png"])
    with replacing(files["pdf"]) as file:
        figure.savefig(file, format="pdf", metadata={"CreationDate": None, "Producer": None})
    return files
