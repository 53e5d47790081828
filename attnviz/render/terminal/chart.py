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
from attnviz.render.terminal.text_width import count_columns, fix_width, wrap_columns, write_ascii

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
    """Choose round numbers from low to high, 1, 2 or 5 times a power of ten apart.

    most: how many they may be; two are allowed in any case.

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
    """Choose round whole numbers between the first and the last of some steps.

    most: how many they may be; two are allowed in any case.
    """
    numbers = choose_round_numbers(steps[0], steps[-1], most)
    return [int(number) for number in numbers if number == int(number)]


def draw_chart_lines(
    drawable: Curves,
    width: int,
    room: int | None,
    paint: CellPaint,
) -> Iterator[TerminalLine]:
    """Yield the lines of plots below each other.

    The names of the curves stand above each plot, the steps below the last one.

    room: lines of the screen for all of it; None for as many as it takes.
    """
    legends = [list(draw_legend(plot, width, paint)) for plot in drawable.plots]
    height = choose_plot_height(drawable, legends, room)
    ticks = [name_ticks(plot, height) for plot in drawable.plots]
    tick_widths = [len(name) for names in ticks for name in names.values()]
    gutter = max(tick_widths, default=0) + 1
    size = PlotSize(gutter, width - gutter - 1, height)
    for plot, legend, names in zip(drawable.plots, legends, ticks, strict=True):
        yield from legend
        yield from draw_plot_lines(drawable, plot, names, size, paint)
    yield draw_step_axis(drawable, size, paint)
    axis_name = write_for_screen(drawable.name, paint)
    yield [Segment(fit_on_screen(axis_name, width, paint, left=False), DIM_STYLE)]
    for mark in drawable.marks:
        yield from draw_mark_lines(mark, gutter, width, paint)


def choose_plot_height(
    drawable: Curves, legends: Sequence[list[TerminalLine]], room: int | None
) -> int:
    """Choose the lines that each plot has, so that all of them fit the room if they can.

    legends: the lines above each plot. room: lines of the screen; None for no limit.
    """
    if room is None:
        return MOST_HEIGHT
    legend_lines = sum(map(len, legends))
    axis_lines = 2
    left = room - legend_lines - axis_lines - len(drawable.marks)
    share = left // len(legends)
    return min(max(share, LEAST_HEIGHT), MOST_HEIGHT)


def name_ticks(plot: Plot, height: int) -> dict[float, str]:
    """Return the round numbers on the axis of a plot of so many lines, with their texts."""
    ticks = choose_round_numbers(plot.low, plot.high, height // LINES_A_NUMBER)
    return {tick: f"{tick:g}" for tick in ticks}


def draw_mark_lines(
    mark: Mark, gutter: int, width: int, paint: CellPaint
) -> Iterator[TerminalLine]:
    """Yield the lines below a chart that say what a mark is, and at which step it stands."""
    name = write_for_screen(mark.name, paint)
    sign = choose_mark_sign(paint)
    text = f"{sign} {name}: step {mark.step:,}"
    indent = " " * gutter
    for line in wrap_columns(text, width - gutter):
        yield [Segment(indent + line, DIM_STYLE)]


def draw_legend(plot: Plot, width: int, paint: CellPaint) -> Iterator[TerminalLine]:
    """Yield the lines above a plot: the name of its numbers, and its curves, as many as fit a line.

    A curve has its sign, its name and its last value.
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
    """Return the name of a curve and its last value, cut where they are wider than a line."""
    name = write_for_screen(curve.name, paint)
    value = format_last_value(curve)
    text = f" {name} {value}".rstrip()
    if count_columns(text) < width:
        return text
    return fit_on_screen(text, width - 1, paint, left=True)


def draw_plot_lines(
    drawable: Curves,
    plot: Plot,
    names: dict[float, str],
    size: PlotSize,
    paint: CellPaint,
) -> Iterator[TerminalLine]:
    """Yield the lines of a plot: its curves, the first above the others, beside round numbers.

    names: the texts of the round numbers.
    """
    cells = fill_plot(drawable, plot, size)
    ticks: dict[int, str] = {}
    for tick, name in names.items():
        row = int(find_rows(plot, tick, size.height))
        ticks[row] = name
    label_width = size.gutter - 1
    bar, notch = "|+" if paint.is_ascii else "│┤"
    for row, curve_numbers in enumerate(cells):
        name = ticks.get(row, "")
        edge = notch if row in ticks else bar
        label = f"{name:>{label_width}} {edge}"
        yield [Segment(label, DIM_STYLE), *draw_plot_row(curve_numbers, paint)]


def fill_plot(drawable: Curves, plot: Plot, size: PlotSize) -> npt.NDArray[np.int64]:
    """Return what stands in each cell of a plot: (row, column).

    That is the number of a curve in the plot, NO_CURVE, or MARKED on the line of a mark.
    """
    cells = np.full((size.height, size.width), NO_CURVE)
    for mark in drawable.marks:
        column = int(find_columns(drawable.steps, mark.step, size.width))
        cells[:, column] = MARKED
    for i in reversed(range(len(plot.curves))):
        cells[find_curve_cells(drawable.steps, plot, i, size)] = i
    return cells


def draw_plot_row(curve_numbers: npt.NDArray[np.int64], paint: CellPaint) -> TerminalLine:
    """Return the line of a row of cells: (column,) of the numbers of curves, marks, or nothing."""
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
    """Find the cells of a curve, as their rows and columns.

    They are the cells of its numbers, and those on the line between two numbers that follow each
    other.
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
    """Return the whole numbers nearest to all of some places."""
    rounded = np.rint(np.concatenate(positions))
    return rounded.astype(np.int64)


def find_columns(steps: Sequence[int], step: npt.ArrayLike, width: int) -> npt.NDArray[np.float64]:
    """Find the column of a step, or of each of some steps, on so many columns.

    steps: of the whole plot, rising.
    """
    distance = np.asarray(step, np.float64) - steps[0]
    share = distance / measure_step_range(steps)
    return np.rint(share * (width - 1))


def measure_step_range(steps: Sequence[int]) -> int:
    """Return the steps from the first to the last of some steps, 1 at least."""
    span = steps[-1] - steps[0]
    return max(span, 1)


def find_rows(plot: Plot, value: npt.ArrayLike, height: int) -> npt.NDArray[np.float64]:
    """Find the row of a number, or of each of some numbers; the highest are on the first row."""
    distance = plot.high - np.asarray(value, np.float64)
    share = distance / (plot.high - plot.low)
    inside = np.clip(share, 0, 1)
    return np.rint(inside * (height - 1))


def draw_step_axis(drawable: Curves, size: PlotSize, paint: CellPaint) -> TerminalLine:
    """Return the line below the plots with round steps, each at its column."""
    line = ""
    mark = "|" if paint.is_ascii else "╵"
    most = size.width // COLUMNS_A_NUMBER
    for step in choose_round_steps(drawable.steps, most):
        column = int(find_columns(drawable.steps, step, size.width))
        tick = f"{mark}{step:,}"
        if len(line) <= column <= size.width - len(tick):
            line = line.ljust(column) + tick
    indent = " " * (size.gutter + 1)
    return [Segment(indent + line, DIM_STYLE)]


def format_last_value(curve: Curve) -> str:
    """Format the last value of a curve; nothing if there is none."""
    value = curve.values[-1]
    return f"{value:.3g}" if np.isfinite(value) else ""


def choose_curve_sign(curve_number: int, paint: CellPaint) -> str:
    """Choose the sign of a curve by its number in the plot, of a mark, or of an empty cell."""
    if curve_number == NO_CURVE:
        return " "
    if curve_number == MARKED:
        return choose_mark_sign(paint)
    signs = ASCII_CURVE_SIGNS if paint.is_ascii else CURVE_SIGNS
    return signs[curve_number % len(signs)]


def choose_mark_sign(paint: CellPaint) -> str:
    """Return the sign that a mark is drawn with."""
    return ":" if paint.is_ascii else "┊"


def style_curve(curve_number: int, paint: CellPaint) -> Style:
    """Return the style of a curve by its number in the plot, of a mark, or of an empty cell."""
    if curve_number < 0:
        return DIM_STYLE if curve_number == MARKED else PLAIN_STYLE
    if paint.has_colours:
        colour = CURVE_COLOURS[curve_number % len(CURVE_COLOURS)]
        return Style(color=Color.from_rgb(*colour))
    if paint.depth == "16":
        return Style.parse(CURVE_HUES[curve_number % len(CURVE_HUES)])
    return PLAIN_STYLE


def write_for_screen(text: str, paint: CellPaint) -> str:
    """Return a text in signs that the screen has, as wide on every terminal."""
    return write_ascii(text) if paint.is_ascii else fix_width(text)
