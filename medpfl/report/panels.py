"""One picture an image: original, reconstruction and difference side by side."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from medpfl.image_score import ImageScore
from medpfl.report.planes import three_planes
from medpfl.report.words import how_it_ended

PANEL_SIDE = 192
"""The longer side of a panel in pixels, at least."""

_GAP = 8
_LINE = 22
_FONT_SIZE = 13
_PAPER = (255, 255, 255)
_INK = (32, 32, 32)
_FRAME = (107, 107, 107)


def draw_panels(original: Tensor | None, reconstruction: Tensor, score: ImageScore) -> Image.Image:
    """Draw an image beside its reconstruction and their absolute difference.

    Where nobody knows the image, the reconstruction stands alone; where no reconstruction was left
    for it, an empty frame takes its place.

    Pixels are enlarged without smoothing, all three on the scale [0, 1]; a volume shows its three
    middle slices. One and three channels are shown as grey and as colours, other numbers as their
    mean.

    Args:
        original: `(C, *S)` in [0, 1], S of two or three sides, or None.
        reconstruction: `(C, *S)` in [0, 1].
        score: the numbers to write below.

    Returns:
        An RGB picture.
    """
    panels = {"reconstruction": _panel(reconstruction)}
    if not score.matched:
        panels["reconstruction"] = _nothing(panels["reconstruction"].size)
    if original is not None:
        panels = {"original": _panel(original), **panels}
    if original is not None and score.matched:
        panels["|difference|"] = _panel((original - reconstruction).abs())
    width, height = panels["reconstruction"].size
    size = (3 * width + 4 * _GAP, height + 2 * _LINE + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, (title, panel) in enumerate(panels.items()):
        left = _GAP + column * (width + _GAP)
        pen.text((left, _LINE // 2), title, fill=_INK, font=_font(), anchor="lm")
        sheet.paste(panel, (left, _LINE))
    below = _LINE + height + _LINE // 2 + _GAP // 2
    caption = _fit(_caption(score), size[0] - 2 * _GAP)
    pen.text((_GAP, below), caption, fill=_INK, font=_font(), anchor="lm")
    return sheet


def _panel(image: Tensor) -> Image.Image:
    pixels = _pixels(image)
    height, width = pixels.shape[:2]
    factor = math.ceil(PANEL_SIDE / max(height, width))
    return Image.fromarray(pixels).resize(
        (width * factor, height * factor), Image.Resampling.NEAREST
    )


def _nothing(size: tuple[int, int]) -> Image.Image:
    """Draw an empty frame that cannot be taken for a black image."""
    frame = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(frame)
    width, height = size
    pen.rectangle((0, 0, width - 1, height - 1), outline=_FRAME)
    pen.text((width // 2, height // 2), "none", fill=_FRAME, font=_font(), anchor="mm")
    return frame


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """Return `(C, H, W)`, or three slices of `(C, D, H, W)`, as `(H, W, 3)`."""
    if image.ndim == 4:
        image = torch.from_numpy(three_planes(image.detach().cpu().numpy()))
    if image.shape[0] != 3:
        image = image.mean(dim=0, keepdim=True).expand(3, -1, -1)
    levels = (image.detach().cpu().clamp(0, 1) * 255).round().byte()
    pixels: NDArray[np.uint8] = levels.permute(1, 2, 0).contiguous().numpy()
    return pixels


def _caption(score: ImageScore) -> str:
    if not score.judged:
        told = f"objective {score.objective:.2e}   {how_it_ended(score.status)}"
        return f"{told}   {score.image_id}"
    words = [score.grade] if score.grade else []
    if not score.success:
        words.append(how_it_ended(score.status))
    # The scores of a black image are not this one's.
    numbers = [f"SSIM {score.ssim:.4f}", f"MSE {score.mse:.2e}"] if score.matched else []
    told = "   ".join([*numbers, *words])
    return f"{told}   {score.image_id}"


def _fit(text: str, width: int) -> str:
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)
