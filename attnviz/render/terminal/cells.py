"""Cells of a terminal picture: colours, half blocks or shades; neighbouring cells of one look become one segment."""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from rich.color import Color
from rich.segment import Segment
from rich.style import Style

from attnviz.drawable import MASKED, Panel, Scale, Steps
from attnviz.render.colour import RGB, STEPS, colour_map, colours, is_light

Line: TypeAlias = list[Segment]
Depth: TypeAlias = Literal["truecolor", "256", "16", "shades", "ascii"]

BEYOND = STEPS
VALUE_WIDTH = 4  # columns of a cell that shows its number
SHADES = {"16": "·░▒▓█▲", "shades": "·░▒▓█▲", "ascii": ".:-=+*#%@^"}  # the last is beyond the scale
HUES = (
    "bright_black",
    "blue",
    "cyan",
    "green",
    "yellow",
    "magenta",
)  # of the shades, where there are 16 colours
# Differences: strokes where they are negative, areas where they are positive, more of them the larger they are.
SIGNED_SHADES = {"16": "≡═─╌·░▒▓█", "shades": "≡═─╌·░▒▓█", "ascii": "=~-.+*#"}
SIGNED_HUES = *("bright_blue",) * 4, "bright_black", *("bright_red",) * 4
PLAIN = Style()


class Paint(NamedTuple):
    """How cells are painted."""

    depth: Depth = "truecolor"
    colours: str = "viridis"
    signed: bool = False
    """Whether cells are differences, which have colours and shades of their own."""

    @property
    def coloured(self) -> bool:
        """Whether cells have any colour, so that half blocks can show two in one place."""
        return self.depth in ("truecolor", "256")


def steps_of(panel: Panel, scale: Scale) -> Steps:
    """The steps of a panel's cells: 0 to STEPS - 1, BEYOND the scale, MASKED where nothing is visible."""
    return scale.steps(panel, STEPS)


def cell_lines(cells: Steps, paint: Paint) -> Iterator[Line]:
    """Cells one column wide: two rows a line with colour, one without."""
    if not paint.coloured:
        yield from (full_cells(row, paint, 1) for row in cells)
        return
    if len(cells) % 2:
        cells = np.vstack([cells, np.full((1, cells.shape[1]), MASKED)])
    for upper, lower in zip(cells[0::2], cells[1::2], strict=True):
        above, below = upper.tolist(), lower.tolist()
        yield [half_cells(above[i], below[i], j - i, paint) for i, j in runs(upper * 1000 + lower)]


def full_cells(row: Steps, paint: Paint, width: int) -> Line:
    """A row of cells so many columns wide, runs of one step as one segment."""
    steps = row.tolist()
    return [full_cell(steps[i], (j - i) * width, paint) for i, j in runs(row)]


def full_cell(at: int, width: int, paint: Paint) -> Segment:
    """Cells of one step."""
    if at == MASKED:
        return Segment(" " * width)
    if paint.coloured:
        return Segment(" " * width, Style(bgcolor=colour(at, paint)))
    shade, sign = shade_of(at, paint)
    hues = SIGNED_HUES if paint.signed else HUES
    return Segment(sign * width, Style.parse(hues[shade]) if paint.depth == "16" else PLAIN)


def shade_of(at: int, paint: Paint) -> tuple[int, str]:
    """Which of the shades stands for a step, and its sign."""
    shades, beyond = (SIGNED_SHADES[paint.depth], 0) if paint.signed else (SHADES[paint.depth], 1)
    shade = len(shades) - 1 if at == BEYOND else at * (len(shades) - beyond) // STEPS
    return shade, shades[shade]


def value_cell(value: float, at: int, paint: Paint) -> Segment:
    """A cell with its weight to two digits."""
    if at == MASKED:
        return Segment(" " * VALUE_WIDTH)
    shown = signed_number(value) if paint.signed else number(value)
    if paint.depth == "ascii":
        shown = shown.replace("·", "." if paint.signed else "-")
    return Segment(shown, text_style(at, paint))


def text_style(at: int, paint: Paint) -> Style:
    """The style of text on a cell: on its colour, where there are colours."""
    return on_colour(at, paint) if paint.coloured else PLAIN


def half_cells(upper: int, lower: int, width: int, paint: Paint) -> Segment:
    """Pairs of cells, one above the other in each column; the upper or the lower half is left blank where masked."""
    if upper == lower == MASKED:
        return Segment(" " * width)
    if upper == MASKED:
        return Segment("▄" * width, half_style(lower, None, paint))
    return Segment("▀" * width, half_style(upper, None if lower == MASKED else lower, paint))


@cache
def half_style(front: int, back: int | None, paint: Paint) -> Style:
    """The style of a half block."""
    return Style(color=colour(front, paint), bgcolor=None if back is None else colour(back, paint))


@cache
def on_colour(at: int, paint: Paint) -> Style:
    """Black or white text, whichever reads better, on the colour of a step."""
    return Style(
        bgcolor=colour(at, paint), color=Color.from_ansi(16 if is_light(*rgb(at, paint)) else 231)
    )


@cache
def colour(at: int, paint: Paint) -> Color:
    """The colour of a step."""
    if paint.depth == "256":
        chosen = colour_map(paint.colours, signed=paint.signed)
        ramp = chosen.ramp_256
        return Color.from_ansi(chosen.beyond_256 if at == BEYOND else ramp[at * len(ramp) // STEPS])
    return Color.from_rgb(*rgb(at, paint))


def rgb(at: int, paint: Paint) -> RGB:
    """Red, green and blue of a step."""
    if at == BEYOND:
        return colour_map(paint.colours, signed=paint.signed).beyond
    red, green, blue = map(int, colours(paint.colours, signed=paint.signed)[at])
    return red, green, blue


def runs(row: Steps) -> Iterator[tuple[int, int]]:
    """Start and end of each run of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    yield from pairwise(edges)


def number(value: float) -> str:
    """A weight in a cell of four columns: .31, 1.0, or a dot below .005."""
    if value < 0.005:
        return " ·  "
    if value >= 10:
        return f"{value:.0f}".center(VALUE_WIDTH) if value < 1000 else ">999"
    return f"{value:.2f}"[1:].center(VALUE_WIDTH) if value < 0.995 else f"{value:.1f} "


def signed_number(value: float) -> str:
    """A difference in a cell of four columns: +.31, -.31, -1.0, or a dot within .005 of none."""
    sign, size = "-" if value < 0 else "+", abs(value)
    if size < 0.005:
        return " ·  "
    if size >= 10:
        return f"{value:+.0f}".center(VALUE_WIDTH) if size < 1000 else f"{sign}>1k"
    return f"{sign}{size:.2f}".replace("0.", ".") if size < 0.995 else f"{sign}{size:.1f}"
