"""Cells of a terminal picture: colours, half blocks or shades.

Neighbouring cells of one look become one segment, so that a terminal is sent less.
"""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from rich.color import Color
from rich.segment import Segment
from rich.style import Style

from attnviz.drawable import MASKED, Panel, Scale, Steps
from attnviz.render.colour import (
    RGB,
    STEPS,
    get_colour_map,
    is_light,
    sample_colours,
)

TerminalLine: TypeAlias = list[Segment]
ColourDepth: TypeAlias = Literal["truecolor", "256", "16", "shades", "ascii"]

BEYOND = STEPS  # the step of a weight beyond the scale
VALUE_WIDTH = 4  # columns of a cell that shows its number
LEAST_SHOWN = 0.005  # which two digits show as more than 0
ONE, TEN, THOUSAND = 0.995, 9.95, 999.5  # what is written as 1.0, 10 and 1000, once it is rounded
DOT = " ·  "  # in place of a smaller number
SHADES = {"16": "·░▒▓█▲", "shades": "·░▒▓█▲", "ascii": ".:-=+*#%@^"}  # the last is beyond the scale
SHADE_HUES = (  # where there are 16 colours
    "bright_black",
    "blue",
    "cyan",
    "green",
    "yellow",
    "magenta",
)
# Differences: strokes where they are negative, areas where they are positive; the larger a
# difference is, the more of them there are.
SIGNED_SHADES = {"16": "≡═─╌·░▒▓█", "shades": "≡═─╌·░▒▓█", "ascii": "=~-.+*#"}
SIGNED_HUES = (*("bright_blue",) * 4, "bright_black", *("bright_red",) * 4)
NO_STYLE = Style()
BLACK, WHITE = 16, 231  # in the 256-colour cube
MOST_STEPS = 1000  # more than there are steps, so that two of them make one number


class CellPaint(NamedTuple):
    """The way in which cells are painted."""

    depth: ColourDepth = "truecolor"
    colours: str = "viridis"
    """The name of a colour map."""
    signed: bool = False
    """Cells are differences, which have colours and shades of their own."""

    @property
    def has_colours(self) -> bool:
        """True if cells have any colour, so that a half block can show two cells."""
        return self.depth in ("truecolor", "256")

    @property
    def is_ascii(self) -> bool:
        """True if nothing but ASCII can be shown."""
        return self.depth == "ascii"


def choose_steps(panel: Panel, scale: Scale) -> Steps:
    """Choose the colours of a matrix's cells on a terminal, as numbers called steps: (row, column).

    A step is 0 to STEPS - 1 on the scale, BEYOND for a weight above it, or MASKED.
    """
    return scale.steps(panel, STEPS)


def paint_matrix(steps: Steps, paint: CellPaint) -> Iterator[TerminalLine]:
    """Yield the lines of a matrix whose cells are one column wide.

    With colours a line shows two rows of cells, as the halves of its characters, else one row.

    steps: the colour of each cell as a number, 0 to STEPS - 1, BEYOND or MASKED: (row, column).
    paint: how this terminal shows cells.
    """
    if not paint.has_colours:
        for row in steps:
            yield paint_row(row, paint, 1)
        return
    height, width = steps.shape
    if height % 2:
        empty_row = np.full((1, width), MASKED)
        steps = np.vstack([steps, empty_row])
    upper_rows = steps[0::2]
    lower_rows = steps[1::2]
    for upper_row, lower_row in zip(upper_rows, lower_rows, strict=True):
        yield paint_two_rows(upper_row, lower_row, paint)


def paint_two_rows(upper_row: Steps, lower_row: Steps, paint: CellPaint) -> TerminalLine:
    """Paint two rows of cells as one line of characters whose halves have two colours.

    upper_row, lower_row: the colour of each cell as a number, 0 to STEPS - 1, BEYOND or MASKED:
    (column,). Cells beside each other that look the same become one segment.
    """
    above = upper_row.tolist()
    below = lower_row.tolist()
    pairs = upper_row * MOST_STEPS + lower_row  # one number for both colours
    line: TerminalLine = []
    for start, end in find_runs(pairs):
        cells = paint_half_blocks(above[start], below[start], end - start, paint)
        line.append(cells)
    return line


def paint_row(row: Steps, paint: CellPaint, cell_width: int) -> TerminalLine:
    """Paint a row of cells as a line of a terminal.

    Cells beside each other that look the same become one segment.

    row: the colour of each cell as a number, 0 to STEPS - 1, BEYOND or MASKED: (column,).
    cell_width: the columns of the terminal that a cell takes.
    """
    steps = row.tolist()
    line: TerminalLine = []
    for start, end in find_runs(row):
        width = (end - start) * cell_width
        cells = paint_run(steps[start], width, paint)
        line.append(cells)
    return line


def paint_run(step: int, width: int, paint: CellPaint) -> Segment:
    """Paint some columns of a line in the colour of a step, or with its shade without colours.

    step: the number of a colour, 0 to STEPS - 1, BEYOND or MASKED. width: the columns to paint.
    """
    if step == MASKED:
        return Segment(" " * width)
    if paint.has_colours:
        colour = get_terminal_colour(step, paint)
        return Segment(" " * width, Style(bgcolor=colour))
    index, shade = choose_shade(step, paint)
    style = NO_STYLE
    if paint.depth == "16":
        hues = SIGNED_HUES if paint.signed else SHADE_HUES
        style = Style.parse(hues[index])
    return Segment(shade * width, style)


def choose_shade(step: int, paint: CellPaint) -> tuple[int, str]:
    """Choose the character that stands for a step where there are not enough colours.

    step: the number of a colour, 0 to STEPS - 1 or BEYOND. Returns the index of the character in
    the shades of this terminal, and the character.
    """
    if paint.signed:
        shades = SIGNED_SHADES[paint.depth]
        shades_on_scale = len(shades)
    else:
        shades = SHADES[paint.depth]
        shades_on_scale = len(shades) - 1  # the last one is beyond the scale
    index = step * shades_on_scale // STEPS
    if step == BEYOND:
        index = len(shades) - 1
    return index, shades[index]


def paint_value(value: float, step: int, paint: CellPaint) -> Segment:
    """Paint a cell that shows its value to two digits, VALUE_WIDTH columns wide.

    step: the number of its colour, 0 to STEPS - 1, BEYOND or MASKED; a masked cell is blank.
    """
    if step == MASKED:
        return Segment(" " * VALUE_WIDTH)
    text = format_cell_difference(value) if paint.signed else format_cell_weight(value)
    if paint.is_ascii:
        dot = "." if paint.signed else "-"
        text = text.replace("·", dot)
    return Segment(text, style_text(step, paint))


def style_text(step: int, paint: CellPaint) -> Style:
    """Return the style of text on a cell: on its colour, where there are colours."""
    return style_on_colour(step, paint) if paint.has_colours else NO_STYLE


def paint_half_blocks(upper: int, lower: int, width: int, paint: CellPaint) -> Segment:
    """Paint equal pairs of cells beside each other, an upper and a lower one, as half blocks.

    A half block is a character whose upper and lower halves have different colours. The half of a
    masked cell is blank.

    upper, lower: the numbers of the two colours, 0 to STEPS - 1, BEYOND or MASKED. width: how many
    pairs there are, each a column wide.
    """
    if upper == lower == MASKED:
        return Segment(" " * width)
    if upper == MASKED:
        return Segment("▄" * width, style_half_block(lower, None, paint))
    back = None if lower == MASKED else lower
    return Segment("▀" * width, style_half_block(upper, back, paint))


@cache
def style_half_block(front: int, back: int | None, paint: CellPaint) -> Style:
    """Return the style of a character of two colours, a half block.

    front: the number of the colour of the half that is drawn, 0 to STEPS - 1 or BEYOND. back: that
    of the other half; None if it is blank.
    """
    front_colour = get_terminal_colour(front, paint)
    back_colour = None if back is None else get_terminal_colour(back, paint)
    return Style(color=front_colour, bgcolor=back_colour)


@cache
def style_on_colour(step: int, paint: CellPaint) -> Style:
    """Return the style of text on a coloured cell: black or white, whichever reads better.

    step: the number of the cell's colour, 0 to STEPS - 1 or BEYOND.
    """
    background = get_terminal_colour(step, paint)
    ink = BLACK if is_light(*get_rgb(step, paint)) else WHITE
    return Style(bgcolor=background, color=Color.from_ansi(ink))


@cache
def get_terminal_colour(step: int, paint: CellPaint) -> Color:
    """Return a colour of the scale for a terminal: one of 256 colours, or any colour.

    step: the number of the colour, 0 to STEPS - 1 or BEYOND.
    """
    if paint.depth != "256":
        return Color.from_rgb(*get_rgb(step, paint))
    colour_map = get_colour_map(paint.colours, signed=paint.signed)
    if step == BEYOND:
        return Color.from_ansi(colour_map.beyond_256)
    ramp = colour_map.ramp_256
    index = step * len(ramp) // STEPS
    return Color.from_ansi(ramp[index])


def get_rgb(step: int, paint: CellPaint) -> RGB:
    """Return red, green and blue, 0 to 255, of a colour of the scale.

    step: the number of the colour, 0 to STEPS - 1 or BEYOND.
    """
    if step == BEYOND:
        return get_colour_map(paint.colours, signed=paint.signed).beyond
    colours = sample_colours(paint.colours, signed=paint.signed)
    red, green, blue = map(int, colours[step])
    return red, green, blue


def find_runs(row: Steps) -> Iterator[tuple[int, int]]:
    """Yield the start and the end (exclusive) of each run of equal values in a row: (column,)."""
    changes = np.flatnonzero(np.diff(row)) + 1
    edges = [0, *changes.tolist(), len(row)]
    yield from pairwise(edges)


def format_cell_weight(value: float) -> str:
    """Format a weight on four columns: .31, 1.0, 12, >999, or a dot below .005."""
    if value < LEAST_SHOWN:
        return DOT
    if value >= THOUSAND:
        return ">999"
    if value >= TEN:
        return f"{value:.0f}".center(VALUE_WIDTH)
    if value >= ONE:
        return f"{value:.1f} "
    digits = f"{value:.2f}"
    return digits.removeprefix("0").center(VALUE_WIDTH)


def format_cell_difference(value: float) -> str:
    """Format a difference on four columns: +.31, -1.0, -12, +>1k, or a dot within .005 of 0."""
    sign = "-" if value < 0 else "+"
    size = abs(value)
    if size < LEAST_SHOWN:
        return DOT
    if size >= THOUSAND:
        return f"{sign}>1k"
    if size >= TEN:
        return f"{value:+.0f}".center(VALUE_WIDTH)
    if size >= ONE:
        return f"{sign}{size:.1f}"
    return f"{sign}{size:.2f}".replace("0.", ".")
