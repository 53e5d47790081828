"""Pictures on a screen as text, where text stands on a figure, and labels that are hard to draw."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from attnviz.render.figure.sheet import Sheet
from attnviz.render.terminal.cells import CellPaint, ColourDepth
from attnviz.render.terminal.draw import Screen, draw_picture_lines

GOLDEN = Path(__file__).parent / "golden"
WIDE_LABELS = ("猫", "👩‍🚀", "é", "مرحبا", "a\x1bb", "x" * 40, "", "\n")
HOSTILE_LABELS = (
    "</script><img onerror=alert(1)>",
    "&amp;&#0;",
    r"$\alpha$",
    "\x1b[31m\0",
    "x" * 10_000,
    "'\"<![CDATA[",
    "مرحبا",
    "é",
    "\u202eabc",
)


def make_screen(width: int, depth: ColourDepth) -> Screen:
    """Make a screen of so many columns and colours."""
    return Screen(width, paint=CellPaint(depth))


def draw_text(drawable: object, screen: Screen) -> str:
    """Draw a picture on a screen, and return its lines without their styles."""
    return (
        "\n".join(
            "".join(segment.text for segment in line).rstrip()
            for line in draw_picture_lines(drawable, screen)
        )
        + "\n"
    )


def draw_styled_text(drawable: object, screen: Screen) -> str:
    """Draw a picture on a screen, and return its lines with the style of each segment before it."""
    return "\n".join(
        "".join(
            f"<{segment.style}>{segment.text}" if segment.style else segment.text
            for segment in line
        )
        for line in draw_picture_lines(drawable, screen)
    )


def measure_text_boxes(sheet: Sheet) -> np.ndarray:
    """Return where the ink of each text may be: (text, [left, bottom, right, top]), in dots.

    That is what a text takes less a tenth of an em, the space that lines share.
    """
    renderer = FigureCanvasAgg(sheet.figure).get_renderer()
    spare = [-0.1 * text.get_fontsize() * sheet.dpi / 72 for text in sheet.axes.texts]
    boxes = [text.get_window_extent(renderer) for text in sheet.axes.texts]
    return np.array([box.padded(space).extents for box, space in zip(boxes, spare, strict=True)])


def find_overlaps(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Tell which boxes (left, bottom, right, top) share area with which, two by two."""
    low = np.maximum(ones[:, None, :2], others[None, :, :2])
    high = np.minimum(ones[:, None, 2:], others[None, :, 2:])
    return (high > low).all(-1)
