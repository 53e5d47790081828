"""Curves as charts: colours and round numbers for all media, and the lines of a terminal.

The colours are told apart by every eye (Okabe & Ito 2008). On a terminal each curve has a sign of its own besides, on a
figure dashes of its own, so that no curve is known by its colour alone.
"""

from collections.abc import Iterator, Sequence
from math import ceil, floor, log10

import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.segment import Segment
from rich.style import Style

from attnviz.drawable import Curve, Curves, Plot
from attnviz.render.colour import RGB
from attnviz.render.terminal.cells import Line, Paint, runs
from attnviz.render.terminal.table import fitted
from attnviz.render.terminal.text_width import ascii_of, columns_of, steady, wrap

LINES: tuple[RGB, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
)
HUES = "blue", "red", "green", "magenta", "cyan", "yellow"  # where there are 16 colours
SIGNS, ASCII_SIGNS = "●○▲△■□", "*o+x#@"
NOTHING, MARKED = -1, -2
HEIGHT = range(4, 13)  # lines of a plot
TICKS, ROWS = 10, 3  # columns, and lines, that a number on an axis has at least
APART = "   "  # between the names of curves
DIM, PLAIN = Style(dim=True), Style()


def round_places(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, 1, 2 or 5 times a power of ten apart: so many at most, or two.

    >>> round_places(0, 1, 6)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        return [low]
    power = 10.0 ** floor(log10((high - low) / max(most, 2)))
    for apart in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        places = range(ceil(low / apart - 1e-9), floor(high / apart + 1e-9) + 1)
        if len(places) <= max(most, 2):
            break
    return [round(place * apart, 12) for place in places]


def round_steps(steps: Sequence[int], most: int) -> list[int]:
    """The same for steps, which are whole."""
    return [int(place) for place in round_places(steps[0], steps[-1], most) if place == int(place)]


def chart_lines(drawable: Curves, width: int, room: int | None, paint: Paint) -> Iterator[Line]:
    """Plots below each other, the names of their curves above each, the steps below the last, on so many lines."""
    legends = [list(legend_lines(plot, width, paint)) for plot in drawable.plots]
    height = HEIGHT.stop - 1
    if room is not None:
        room -= sum(map(len, legends)) + 2 + len(drawable.marks)
        height = min(max(room // len(legends), HEIGHT.start), height)
    named = [
        {tick: f"{tick:g}" for tick in round_places(plot.low, plot.high, height // ROWS)}
        for plot in drawable.plots
    ]
    gutter = max((len(name) for names in named for name in names.values()), default=0) + 1
    for plot, legend, names in zip(drawable.plots, legends, named, strict=True):
        yield from legend
        yield from plot_lines(drawable, plot, names, (gutter, width - gutter - 1, height), paint)
    yield step_line(drawable, gutter, width - gutter - 1, paint)
    yield [Segment(fitted(told(drawable.name, paint), width, paint, left=False), DIM)]
    for mark in drawable.marks:
        for text in wrap(
            f"{mark_sign(paint)} {told(mark.name, paint)}: step {mark.step:,}", width - gutter
        ):
            yield [Segment(" " * gutter + text, DIM)]


def legend_lines(plot: Plot, width: int, paint: Paint) -> Iterator[Line]:
    """What the numbers are, and each curve with its sign and its last value, as many in a line as fit."""
    for text in wrap(told(plot.name, paint), width):
        yield [Segment(text)]
    line, used = Line(), 0
    for i, curve in enumerate(plot.curves):
        text = f" {told(curve.name, paint)} {last(curve)}".rstrip()
        text = text if columns_of(text) < width else fitted(text, width - 1, paint, left=True)
        if used and used + len(APART) + 1 + columns_of(text) > width:
            yield line
            line, used = Line(), 0
        if used:
            line.append(Segment(APART))
        line += [Segment(sign_of(i, paint), style_of(i, paint)), Segment(text)]
        used += len(APART) * (used > 0) + 1 + columns_of(text)
    yield line


def plot_lines(
    drawable: Curves, plot: Plot, names: dict[float, str], room: tuple[int, int, int], paint: Paint
) -> Iterator[Line]:
    """The curves of a plot, the first above the others, beside its round numbers: (gutter, columns, lines) of room."""
    gutter, wide, high = room
    cells = np.full((high, wide), NOTHING)
    for mark in drawable.marks:
        cells[:, int(column_of(drawable.steps, mark.step, wide))] = MARKED
    for i, curve in reversed([*enumerate(plot.curves)]):
        cells[points(drawable.steps, curve, plot, wide, high)] = i
    ticks = {int(row_of(plot, tick, high)): name for tick, name in names.items()}
    bar, notch = "|+" if paint.depth == "ascii" else "│┤"
    for row, line in enumerate(cells):
        axis = Segment(f"{ticks.get(row, ''):>{gutter - 1}} {notch if row in ticks else bar}", DIM)
        yield [
            axis,
            *(
                Segment(sign_of(line[i], paint) * (j - i), style_of(line[i], paint))
                for i, j in runs(line)
            ),
        ]


def points(
    steps: Sequence[int], curve: Curve, plot: Plot, wide: int, high: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The cells of a curve, as rows and columns: of its numbers, and between two that follow each other."""
    x = np.asarray(column_of(steps, np.array(steps), wide))
    y = np.asarray(row_of(plot, np.asarray(curve.values, np.float64), high))
    known = np.isfinite(y)
    across, down = [x[known]], [y[known]]
    for i in np.flatnonzero(known[:-1] & known[1:]):
        count = int(max(abs(x[i + 1] - x[i]), abs(y[i + 1] - y[i]))) + 1
        across.append(np.linspace(x[i], x[i + 1], count))
        down.append(np.linspace(y[i], y[i + 1], count))
    return np.rint(np.concatenate(down)).astype(np.int64), np.rint(np.concatenate(across)).astype(
        np.int64
    )


def column_of(steps: Sequence[int], step: npt.ArrayLike, wide: int) -> npt.NDArray[np.float64]:
    """Where a step stands on so many columns."""
    span = max(steps[-1] - steps[0], 1)
    return np.rint((np.asarray(step, np.float64) - steps[0]) / span * (wide - 1))


def row_of(plot: Plot, value: npt.ArrayLike, high: int) -> npt.NDArray[np.float64]:
    """Where a number stands on so many lines, the highest on the first."""
    share = (plot.high - np.asarray(value, np.float64)) / (plot.high - plot.low)
    return np.rint(np.clip(share, 0, 1) * (high - 1))


def step_line(drawable: Curves, gutter: int, wide: int, paint: Paint) -> Line:
    """Round numbers of steps, each at its column."""
    line, mark = "", "|" if paint.depth == "ascii" else "╵"
    for step in round_steps(drawable.steps, wide // TICKS):
        column, tick = int(column_of(drawable.steps, step, wide)), f"{mark}{step:,}"
        if len(line) <= column <= wide - len(tick):
            line = line.ljust(column) + tick
    return [Segment(" " * (gutter + 1) + line, DIM)]


def last(curve: Curve) -> str:
    """The last value of a curve, nothing for none."""
    value = curve.values[-1]
    return f"{value:.3g}" if np.isfinite(value) else ""


def sign_of(place: int, paint: Paint) -> str:
    """The sign of a curve by its place in the plot, of a mark, or of nothing."""
    if place == NOTHING:
        return " "
    if place == MARKED:
        return mark_sign(paint)
    signs = ASCII_SIGNS if paint.depth == "ascii" else SIGNS
    return signs[place % len(signs)]


def mark_sign(paint: Paint) -> str:
    """What a mark is drawn with."""
    return ":" if paint.depth == "ascii" else "┊"


def style_of(place: int, paint: Paint) -> Style:
    """The colour of a curve, where there are colours; marks are dim."""
    if place < 0:
        return DIM if place == MARKED else PLAIN
    if paint.coloured:
        return Style(color=Color.from_rgb(*LINES[place % len(LINES)]))
    return Style.parse(HUES[place % len(HUES)]) if paint.depth == "16" else PLAIN


def told(text: str, paint: Paint) -> str:
    """A text in the signs of the screen."""
    return ascii_of(text) if paint.depth == "ascii" else steady(text)
