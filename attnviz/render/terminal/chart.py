"""Curves as charts: colours and round numbers for all media, and the lines of a terminal.

The colours can be told apart by every eye (Okabe & Ito 2008). Besides, each curve has a sign of its
own on a terminal, and dashes of its own on a figure, so that no curve is known by its colour alone.
"""

from collections.abc import Iterator, Sequence
from math import ceil, floor, log10
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.segment import Segment
from rich.style import Style

from attnviz.drawable import Curve, Curves, Mark, Plot
from attnviz.render.colour import RGB
from attnviz.render.terminal.cells import CellPaint, TerminalLine, find_runs
from attnviz.render.terminal.table import fit_on_screen
from attnviz.render.terminal.text_width import (
    count_columns,
    fix_width,
    wrap_columns,
    write_ascii,
)

CURVE_COLOURS: tuple[RGB, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
)
CURVE_HUES = "blue", "red", "green", "magenta", "cyan", "yellow"  # where there are 16 colours
CURVE_SIGNS, ASCII_CURVE_SIGNS = "●○▲△■□", "*o+x#@"
NO_CURVE, MARKED = -1, -2  # in place of the number of a curve, in a cell of a plot
LEAST_HEIGHT, MOST_HEIGHT = 4, 12  # lines of a plot
COLUMNS_A_NUMBER, LINES_A_NUMBER = 10, 3  # that a number on an axis has at least
CURVE_GAP = "   "  # between the names of curves
STEP_TOLERANCE = 1e-9  # of a step, which floats may be off
DIM_STYLE, PLAIN_STYLE = Style(dim=True), Style()


class PlotSize(NamedTuple):
    """The room of a plot on a terminal."""

    gutter: int
    """Columns of the numbers on its left."""
    width: int
    """Columns of its cells."""
    height: int
    """Lines of its cells."""


def choose_round_numbers(low: float, high: float, most: int) -> list[float]:
    """Choose round numbers between two numbers, for the ticks of an axis.

    They are multiples of 1, 2 or 5 times a power of ten, the smallest of these that gives at most
    ``most`` numbers; two are allowed in any case. If high is not above low, low is the only number.

    >>> choose_round_numbers(0, 1, 6)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        return [low]
    most = max(most, 2)
    exponent = floor(log10((high - low) / most))
    power = 10.0**exponent
    for factor in (1, 2, 5, 10, 20):
        spacing = factor * power
        first = ceil(low / spacing - STEP_TOLERANCE)
        last = floor(high / spacing + STEP_TOLERANCE)
        multiples = range(first, last + 1)
        if len(multiples) <= most:
            break
    return [round(multiple * spacing, 12) for multiple in multiples]


def choose_round_steps(steps: Sequence[int], most: int) -> list[int]:
    """Choose round whole numbers between the first and the last of some steps, for an axis.

    steps: rising, such as those of a training run. most: how many round numbers there may be; two
    are allowed in any case.
    """
    numbers = choose_round_numbers(steps[0], steps[-1], most)
    return [int(number) for number in numbers if number == int(number)]


def draw_chart_lines(
    curves: Curves,
    width: int,
    room: int | None,
    paint: CellPaint,
) -> Iterator[TerminalLine]:
    """Yield the lines of plots below each other on a terminal.

    The names of the curves stand above each plot, the axis of steps and the marks below the last.

    width: the columns of the screen. room: its lines for all of this; None for no limit. paint: how
    the terminal shows colours and which characters it has.
    """
    legends = [list(draw_legend(plot, width, paint)) for plot in curves.plots]
    height = choose_plot_height(curves, legends, room)
    ticks = [name_ticks(plot, height) for plot in curves.plots]
    tick_widths = [len(name) for names in ticks for name in names.values()]
    gutter = max(tick_widths, default=0) + 1
    size = PlotSize(gutter, width - gutter - 1, height)
    for plot, legend, tick_names in zip(curves.plots, legends, ticks, strict=True):
        yield from legend
        yield from draw_plot_lines(curves, plot, tick_names, size, paint)
    yield draw_step_axis(curves, size, paint)
    axis_name = write_for_screen(curves.name, paint)
    yield [Segment(fit_on_screen(axis_name, width, paint, left=False), DIM_STYLE)]
    for mark in curves.marks:
        yield from draw_mark_lines(mark, gutter, width, paint)


def choose_plot_height(
    curves: Curves,
    legends: Sequence[list[TerminalLine]],
    room: int | None,
) -> int:
    """Choose how many lines high each plot is, so that all plots fit the screen if they can.

    The height is within LEAST_HEIGHT and MOST_HEIGHT.

    legends: the lines above each plot. room: the lines of the screen; None for no limit.
    """
    if room is None:
        return MOST_HEIGHT
    legend_lines = sum(map(len, legends))
    axis_lines = 2  # the steps, and the name of the axis
    plot_lines = room - legend_lines - axis_lines - len(curves.marks)
    fair_share = plot_lines // len(legends)
    return min(max(fair_share, LEAST_HEIGHT), MOST_HEIGHT)


def name_ticks(plot: Plot, height: int) -> dict[float, str]:
    """Return the round numbers on the axis of a plot, and the text of each.

    height: the lines of the plot, which decide how many numbers there are.
    """
    ticks = choose_round_numbers(plot.low, plot.high, height // LINES_A_NUMBER)
    return {tick: f"{tick:g}" for tick in ticks}


def draw_mark_lines(
    mark: Mark,
    gutter: int,
    width: int,
    paint: CellPaint,
) -> Iterator[TerminalLine]:
    """Yield the lines below a chart that explain a mark, a step at which something happens.

    gutter: the columns that are left free on the left. width: the columns of the screen.
    """
    name = write_for_screen(mark.name, paint)
    sign = choose_mark_sign(paint)
    text = f"{sign} {name}: step {mark.step:,}"
    indent = " " * gutter
    for line in wrap_columns(text, width - gutter):
        yield [Segment(indent + line, DIM_STYLE)]


def draw_legend(plot: Plot, width: int, paint: CellPaint) -> Iterator[TerminalLine]:
    """Yield the lines above a plot: the meaning of its numbers, and a list of its curves.

    Each curve has the character that it is drawn with, its name and its last value.

    width: the columns of the screen, to which the list is wrapped.
    """
    for text in wrap_columns(write_for_screen(plot.name, paint), width):
        yield [Segment(text)]
    line: TerminalLine = []
    used = 0
    for i, curve in enumerate(plot.curves):
        sign = Segment(choose_curve_sign(i, paint), style_curve(i, paint))
        name = Segment(name_curve(curve, width, paint))
        columns = 1 + count_columns(name.text)
        if used and used + len(CURVE_GAP) + columns > width:
            yield line
            line = []
            used = 0
        if used:
            line.append(Segment(CURVE_GAP))
            used += len(CURVE_GAP)
        line += [sign, name]
        used += columns
    yield line


def name_curve(curve: Curve, width: int, paint: CellPaint) -> str:
    """Return a space, the name of a curve and its last value, cut where a line has no room.

    width: the columns of a line, one of which is left free for the character of the curve.
    """
    name = write_for_screen(curve.name, paint)
    value = format_last_value(curve)
    text = f" {name} {value}".rstrip()
    if count_columns(text) < width:
        return text
    return fit_on_screen(text, width - 1, paint, left=True)


def draw_plot_lines(
    curves: Curves,
    plot: Plot,
    tick_names: dict[float, str],
    size: PlotSize,
    paint: CellPaint,
) -> Iterator[TerminalLine]:
    """Yield the lines of a plot: its curves, the first above the others, beside round numbers.

    curves: the picture, with the steps and marks of all its plots. tick_names: the round numbers on
    the axis, and the text of each. size: the columns and lines of the plot and its numbers.
    """
    cells = fill_plot(curves, plot, size)
    names_by_row: dict[int, str] = {}
    for tick, name in tick_names.items():
        row = int(find_rows(plot, tick, size.height))
        names_by_row[row] = name
    label_width = size.gutter - 1
    bar, notch = "|+" if paint.is_ascii else "│┤"
    for row, curve_numbers in enumerate(cells):
        name = names_by_row.get(row, "")
        edge = notch if row in names_by_row else bar
        label = f"{name:>{label_width}} {edge}"
        yield [Segment(label, DIM_STYLE), *draw_plot_row(curve_numbers, paint)]


def fill_plot(curves: Curves, plot: Plot, size: PlotSize) -> npt.NDArray[np.int64]:
    """Return for each cell of a plot which curve is drawn there: (row, column).

    A cell holds the index of the curve in the plot, MARKED on the upright line of a mark, or
    NO_CURVE. Where curves meet, the first one is drawn.

    curves: the picture, with the steps and marks of all its plots. size: the plot's rows and
    columns.
    """
    cells = np.full((size.height, size.width), NO_CURVE)
    for mark in curves.marks:
        column = int(find_columns(curves.steps, mark.step, size.width))
        cells[:, column] = MARKED
    for i in reversed(range(len(plot.curves))):
        cells[find_curve_cells(curves.steps, plot, i, size)] = i
    return cells


def draw_plot_row(curve_numbers: npt.NDArray[np.int64], paint: CellPaint) -> TerminalLine:
    """Return the line of a terminal that shows a row of a plot.

    curve_numbers: for each cell the index of a curve, MARKED or NO_CURVE: (column,).
    """
    line: TerminalLine = []
    for start, end in find_runs(curve_numbers):
        curve_number = curve_numbers[start]
        sign = choose_curve_sign(curve_number, paint)
        style = style_curve(curve_number, paint)
        line.append(Segment(sign * (end - start), style))
    return line


def find_curve_cells(
    steps: Sequence[int],
    plot: Plot,
    curve_number: int,
    size: PlotSize,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the cells of a plot that a curve goes through.

    They are the cells of its values, and those on straight lines between values that follow each
    other. Across a missing value there is no line.

    steps: the step of each value, rising. curve_number: the index of the curve in the plot. Returns
    the rows and the columns of the cells, (cell,) each.
    """
    values = np.asarray(plot.curves[curve_number].values, np.float64)
    x = find_columns(steps, np.array(steps), size.width)
    y = find_rows(plot, values, size.height)
    is_known = np.isfinite(y)
    across = [x[is_known]]
    down = [y[is_known]]
    is_followed = is_known[:-1] & is_known[1:]
    for i in np.flatnonzero(is_followed):
        x0, x1 = x[i : i + 2]
        y0, y1 = y[i : i + 2]
        width = abs(x1 - x0)
        height = abs(y1 - y0)
        cells = int(max(width, height)) + 1
        across.append(np.linspace(x0, x1, cells))
        down.append(np.linspace(y0, y1, cells))
    return round_to_cells(down), round_to_cells(across)


def round_to_cells(positions: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.int64]:
    """Join arrays of positions, and round them to whole numbers: (position,)."""
    rounded = np.rint(np.concatenate(positions))
    return rounded.astype(np.int64)


def find_columns(steps: Sequence[int], step: npt.ArrayLike, width: int) -> npt.NDArray[np.float64]:
    """Find the column of a plot at which a step stands, or each step of an array.

    Columns are whole numbers from 0, the first step, to width - 1, the last, but as floats.

    steps: all steps of the plot, rising. step: the one to find, or an array of them. width: the
    number of columns. Returns an array of the shape of ``step``.
    """
    steps_from_first = np.asarray(step, np.float64) - steps[0]
    share = steps_from_first / measure_step_range(steps)
    return np.rint(share * (width - 1))


def measure_step_range(steps: Sequence[int]) -> int:
    """Return the distance from the first to the last of some rising steps, 1 at least."""
    span = steps[-1] - steps[0]
    return max(span, 1)


def find_rows(plot: Plot, value: npt.ArrayLike, height: int) -> npt.NDArray[np.float64]:
    """Find the row of a plot at which a value stands, or each value of an array.

    Rows are whole numbers from 0, the top of the plot's range, to height - 1, its bottom, but as
    floats. Values outside the range are on the first or the last row. The row of NaN is NaN.

    height: the number of rows. Returns an array of the shape of ``value``.
    """
    distance = plot.high - np.asarray(value, np.float64)
    share = distance / (plot.high - plot.low)
    inside = np.clip(share, 0, 1)
    return np.rint(inside * (height - 1))


def draw_step_axis(curves: Curves, size: PlotSize, paint: CellPaint) -> TerminalLine:
    """Return the line below the plots with round steps, each at its column with a mark before it.

    A step that would overlap the one before it, or would not fit the line, is left out.
    """
    line = ""
    mark = "|" if paint.is_ascii else "╵"
    most = size.width // COLUMNS_A_NUMBER
    for step in choose_round_steps(curves.steps, most):
        column = int(find_columns(curves.steps, step, size.width))
        tick = f"{mark}{step:,}"
        if len(line) <= column <= size.width - len(tick):
            line = line.ljust(column) + tick
    indent = " " * (size.gutter + 1)
    return [Segment(indent + line, DIM_STYLE)]


def format_last_value(curve: Curve) -> str:
    """Format the last value of a curve to three digits; return an empty text if it is missing."""
    value = curve.values[-1]
    return f"{value:.3g}" if np.isfinite(value) else ""


def choose_curve_sign(curve_number: int, paint: CellPaint) -> str:
    """Choose the character that is drawn in a cell of a plot.

    curve_number: the index of the curve in the plot, MARKED for the line of a mark, or NO_CURVE.
    """
    if curve_number == NO_CURVE:
        return " "
    if curve_number == MARKED:
        return choose_mark_sign(paint)
    signs = ASCII_CURVE_SIGNS if paint.is_ascii else CURVE_SIGNS
    return signs[curve_number % len(signs)]


def choose_mark_sign(paint: CellPaint) -> str:
    """Return the character that marks are drawn with."""
    return ":" if paint.is_ascii else "┊"


def style_curve(curve_number: int, paint: CellPaint) -> Style:
    """Return the colour, as a style, that is drawn in a cell of a plot.

    curve_number: the index of the curve in the plot, MARKED for the line of a mark, or NO_CURVE.
    paint: how many colours the terminal has.
    """
    if curve_number < 0:
        return DIM_STYLE if curve_number == MARKED else PLAIN_STYLE
    if paint.has_colours:
        colour = CURVE_COLOURS[curve_number % len(CURVE_COLOURS)]
        return Style(color=Color.from_rgb(*colour))
    if paint.depth == "16":
        return Style.parse(CURVE_HUES[curve_number % len(CURVE_HUES)])
    return PLAIN_STYLE


def write_for_screen(text: str, paint: CellPaint) -> str:
    """Return a text in characters that the terminal has, with those of uncertain width replaced."""
    return write_ascii(text) if paint.is_ascii else fix_width(text)
