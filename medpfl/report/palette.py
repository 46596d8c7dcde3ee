"""Every colour in one place: on terminals of any background, and in figures on white.

What a terminal shows must be readable on white and on black, whose contrast to any one colour
multiplies to 21: each of these has 4.5 to both, what WCAG 2.1 asks of text.
"""

from __future__ import annotations

WARNING_STYLE = "bold #b06000"
ERROR_STYLE = "bold #e8101c"
BAR_STYLE = "#007fa8"

INK, MUTED, GRID = "#222222", "#6b6b6b", "#dddddd"
# After Okabe and Ito, 2008, darker: told apart with any colour vision, and readable as small text.
SUCCESS, PARTIAL, FAILURE = "#0072b2", "#8a5a00", "#bf4a00"
SYNTHETIC_INK = "#8a5a00"
SERIES = ("#0072b2", "#bf4a00", "#00785a", "#a8447a")
"""Colours of curves, in order."""


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours such as ``#b06000``, from 1 to 21.

    Source: WCAG 2.1, relative luminance and contrast ratio.
    """
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    levels = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
