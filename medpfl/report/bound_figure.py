"""The picture of bounds: which parts of an image an update leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from medpfl.report.figures import (
    as_picture,
    evenly_spread,
    head_inches,
    new_figure,
    save_png,
    write_head,
)
from medpfl.report.palette import GRID, INK, MUTED

MAX_IMAGES = 6
_COLUMNS = ("original", "reconstruction", "error of the attack", "left open by the update")
_WIDTH, _SIDE, _GAP, _BELOW = 7.2, 1.62, 0.22, 0.55
# Of the pixels of all pictures; a few that nothing shows would darken all the others.
_BRIGHTEST = 99.0


@dataclass(frozen=True)
class BoundedItem:
    """One attacked image and what its update leaves open.

    Args:
        image_id: its id in the metrics table.
        original: `(C, *S)` in [0, 1].
        reconstruction: `(C, *S)` in [0, 1].
        left: `(C, *S)`, C 1 where channels are one unknown: variance of each pixel.
        mse: the attack's mean squared error.
        bound_mse: van Trees' bound.
    """

    image_id: str
    original: Tensor
    reconstruction: Tensor
    left: Tensor
    mse: float
    bound_mse: float


def bound_figure(path: Path, items: Sequence[BoundedItem], *, title: str, synthetic: bool) -> None:
    """Draw originals, reconstructions, their errors, and what updates leave open of each pixel.

    Args:
        path: the PNG to write.
        items: the attacked images, at least one, of which at most 6 are drawn, evenly spread. Of a
            volume the middle slice.
        title: the picture's title.
        synthetic: whether the images are made up.

    Raises:
        ValueError: there are no items.
    """
    if not items:
        raise ValueError("bound_figure: items is empty; there is nothing to draw")
    shown = [items[index] for index in evenly_spread(len(items), MAX_IMAGES)]
    caption = (
        "Right: the standard deviation that is left of each pixel once the noisy update is seen, "
        "beside what covariance and mean of held-out images tell. Dark: the update shows the "
        "pixel; bright: it is hidden. Its mean square approaches what the best attack reaches "
        "where noise is low, and is no bound by itself: on average over images none is nearer "
        "than van Trees."
    )
    head = head_inches(caption, _WIDTH) + 0.3
    height = head + (_SIDE + _GAP) * len(shown) + _BELOW
    figure = new_figure(_WIDTH, height)
    grid = figure.subplots(len(shown), len(_COLUMNS), squeeze=False)
    figure.subplots_adjust(
        left=0.02,
        right=0.98,
        top=1 - head / height,
        bottom=_BELOW / height,
        wspace=0.05,
        hspace=_GAP / _SIDE,
    )
    open_ = [_deviation(item.left) for item in shown]
    brightest = max(1e-9, float(np.percentile(np.stack(open_), _BRIGHTEST)))
    for axes, item, deviation in zip(grid, shown, open_, strict=True):
        _draw_row(axes, item, deviation, brightest)
    for axes, name in zip(grid[0], _COLUMNS, strict=True):
        axes.set_title(name, fontsize=8, color=INK, pad=12)
    _draw_scale(figure, grid[0][-1], height, brightest)
    write_head(figure, title, caption, synthetic=synthetic)
    save_png(figure, path)


def _draw_row(
    axes: Sequence[Axes], item: BoundedItem, deviation: npt.NDArray[Any], brightest: float
) -> None:
    error = np.abs(as_picture(item.original) - as_picture(item.reconstruction))
    if error.ndim == 3:
        error = np.sqrt(np.square(error).mean(2))
    for place, image in enumerate((item.original, item.reconstruction)):
        axes[place].imshow(as_picture(image), cmap="gray", vmin=0.0, vmax=1.0)
    for place, values in ((2, error), (3, deviation)):
        axes[place].imshow(values, cmap="magma", vmin=0.0, vmax=brightest)
    below = (
        (0, item.image_id[-30:]),
        (2, f"MSE {item.mse:.1e}"),
        (3, f"here {float(item.left.mean()):.1e}, van Trees {item.bound_mse:.1e}"),
    )
    for one in axes:
        one.set(xticks=[], yticks=[])
        for spine in one.spines.values():
            spine.set(color=GRID, linewidth=0.8)
    for place, text in below:
        axes[place].set_xlabel(text, fontsize=6.5, color=MUTED, labelpad=2).set_parse_math(False)


def _draw_scale(figure: Figure, axes: Axes, height: float, brightest: float) -> None:
    place = figure.add_axes((0.52, 0.3 / height, 0.46, 0.09 / height))
    figure.colorbar(axes.images[0], cax=place, orientation="horizontal")
    place.tick_params(labelsize=6.5, colors=MUTED)
    place.set_xlabel(
        f"pixel in [0, 1]; brighter than {brightest:.2g} is drawn as that",
        fontsize=6.5,
        color=MUTED,
        labelpad=1,
    )


def _deviation(left: Tensor) -> npt.NDArray[Any]:
    """Return the root of the mean variance over channels, `(H, W)`."""
    variance = left.double().clamp_min(0)
    if variance.ndim == 4:
        variance = variance[:, variance.shape[1] // 2]
    deviation: npt.NDArray[Any] = variance.mean(0).sqrt().cpu().numpy()
    return deviation
