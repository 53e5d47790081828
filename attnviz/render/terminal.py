"""Drawables on a terminal: cells of colour, half blocks or shades, as wide as the screen allows.

Neighbouring cells of one colour become one segment, and matrices are pooled to the screen first, so that a picture
costs milliseconds at any length of text.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, singledispatch
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.segment import Segment
from rich.style import Style

from attnviz.render.colour import RAMP_256, STEPS, is_light, step, viridis
from attnviz.views.drawable import Drawable, Grid, Heatmap, Panel, levels, starting

Line: TypeAlias = list[Segment]
Steps: TypeAlias = npt.NDArray[np.int64]
Paint: TypeAlias = Literal["truecolor", "256", "shades", "ascii"]

MASKED = -1  # the step of a cell where a query may not attend: blank, which no weight is
SHADES = {"shades": "·░▒▓█", "ascii": ".:-=+*#%@"}
LABEL_WIDTH = 12
LABEL_HEIGHT = 9
VALUE_WIDTH = 4  # columns of a cell that shows its number
STACKED_WIDTH = 2  # columns of a cell below a stacked label
TICKS = 10  # tokens between two ticks
THUMBNAIL = range(5, 17)  # sides of a thumbnail, in cells
BAR = 24  # columns of the colour bar
PLAIN, DIM, BOLD = Style(), Style(dim=True), Style(bold=True)


@dataclass(frozen=True)
class Screen:
    """What is drawn on: columns, and how cells are painted."""

    width: int = 80
    paint: Paint = "truecolor"

    @property
    def coloured(self) -> bool:
        """Whether cells have colours, so that half blocks can show two in one place."""
        return self.paint in ("truecolor", "256")

    @property
    def root(self) -> str:
        """The name of the colour scale."""
        return "sqrt scale" if self.paint == "ascii" else "√ scale"


def draw(drawable: Drawable, screen: Screen) -> Iterator[Line]:
    """The lines of a drawable's picture: its title, its cells, its colour bar and caption."""
    if screen.paint == "ascii":
        drawable = in_ascii(drawable)
    for line in textwrap.wrap(drawable.title, screen.width):
        yield [Segment(line, BOLD)]
    yield from body(drawable, screen)


def in_ascii(drawable: Drawable) -> Drawable:
    """The same with all its text in ASCII, so that what is measured is what is shown."""
    rows, columns, caption = (
        tuple(map(ascii_of, part)) for part in (drawable.rows, drawable.columns, drawable.caption)
    )
    rows, columns = (tuple(cut(label) for label in labels) for labels in (rows, columns))
    return replace(drawable, title=ascii_of(drawable.title), rows=rows, columns=columns, caption=caption)


def cut(label: str) -> str:
    """A label short enough that no ellipsis is needed, which ASCII has not."""
    return label if len(label) <= LABEL_HEIGHT else label[: LABEL_HEIGHT - 1] + "~"


def ascii_of(text: str) -> str:
    """A text with what is not ASCII written as an escape sequence."""
    return text.replace("·", "-").replace("…", "...").encode("ascii", "backslashreplace").decode()


@singledispatch
def body(drawable: Drawable, screen: Screen) -> Iterator[Line]:
    """What stands below the title."""
    raise TypeError(f"no way to draw {type(drawable).__name__} on a {screen.paint} terminal")


@body.register
def draw_heatmap(drawable: Heatmap, screen: Screen) -> Iterator[Line]:
    """Numbers in the cells if they fit, else labels stacked above the columns, else half blocks with ticks."""
    gutter = min(LABEL_WIDTH, max(map(cell_len, drawable.rows))) + 1
    n_columns = len(drawable.columns)
    numbered = gutter + len(str(len(drawable.rows))) + 1  # the number of each row is the legend of the columns
    if drawable.step != (1, 1):
        yield from dense_lines(drawable, screen, gutter)
    elif numbered + VALUE_WIDTH * n_columns <= screen.width and drawable.rows == drawable.columns:
        yield from value_lines(drawable, screen, gutter, numbered)
    elif gutter + STACKED_WIDTH * n_columns <= screen.width:
        yield from stacked_lines(drawable, screen, gutter)
    else:
        yield from dense_lines(drawable, screen, gutter)
    yield from closing_lines(drawable, screen, gutter)


def value_lines(drawable: Heatmap, screen: Screen, gutter: int, numbered: int) -> Iterator[Line]:
    """Each cell with its weight to two digits, columns and rows numbered alike."""
    header = "".join(f"{i:>{VALUE_WIDTH - 1}} " for i in range(len(drawable.columns)))
    yield [Segment(" " * numbered + header.rstrip(), DIM)]
    cells = steps_of(drawable.panel, drawable.top)
    for i, (values, row) in enumerate(zip(drawable.panel.values, cells, strict=True)):
        start = [Segment(fit(drawable.rows[i], gutter - 1) + " "), Segment(f"{i:>{numbered - gutter - 1}} ", DIM)]
        yield start + [value_cell(value, int(at), screen.paint) for value, at in zip(values, row, strict=True)]


def stacked_lines(drawable: Heatmap, screen: Screen, gutter: int) -> Iterator[Line]:
    """Two columns a cell, the label of each column written downwards above it."""
    for line in stack(drawable.columns):
        yield [Segment(" " * gutter + line)]
    for label, row in zip(drawable.rows, steps_of(drawable.panel, drawable.top), strict=True):
        yield [Segment(fit(label, gutter - 1) + " "), *full_cells(row, screen.paint, STACKED_WIDTH)]


def dense_lines(drawable: Heatmap, screen: Screen, gutter: int) -> Iterator[Line]:
    """One column a cell, two rows a line where there is colour; a text longer than the screen is wide is pooled."""
    side = screen.width - gutter
    (n_rows, n_columns), (height, width) = drawable.panel.values.shape, drawable.step
    panel = drawable.panel.pooled(side, side)
    cells = steps_of(panel, drawable.top)
    mark = "|" if screen.paint == "ascii" else "╷"
    yield [Segment(" " * gutter + ticks(starting(n_columns, cells.shape[1]) * width, mark), DIM)]
    firsts = starting(n_rows, side) * height
    high = 2 if screen.coloured else 1
    for top, line in zip(range(0, len(cells), high), cell_lines(cells, screen), strict=True):
        yield [Segment(fit(drawable.rows[firsts[top]], gutter - 1) + " "), *line]


@body.register
def draw_grid(drawable: Grid, screen: Screen) -> Iterator[Line]:
    """Thumbnails, as many beside each other as fit; a layer's heads go on below where they do not."""
    gutter = max(map(cell_len, drawable.rows)) + 1
    side = thumbnail_side(drawable, screen, gutter)
    wide = max(side, max(map(cell_len, drawable.columns))) + 1
    abreast = max(1, (screen.width - gutter) // wide)
    for first in range(0, len(drawable.columns), abreast):
        heads = slice(first, first + abreast)
        yield [Segment(" " * gutter + "".join(fit(name, wide, left=True) for name in drawable.columns[heads]), DIM)]
        for label, row in zip(drawable.rows, drawable.panels, strict=True):
            yield from thumbnail_lines(label, row[heads], drawable.top, screen, gutter, side, wide)
    yield from closing_lines(drawable, screen, gutter)


def thumbnail_side(drawable: Grid, screen: Screen, gutter: int) -> int:
    """Cells of a thumbnail's side: as many as let all heads stand abreast, within bounds."""
    fair = (screen.width - gutter) // len(drawable.columns) - 1
    longest: int = max(max(panel.values.shape) for panel in panels(drawable))
    return min(max(fair, THUMBNAIL.start), THUMBNAIL.stop - 1, longest)


def thumbnail_lines(
    label: str, row: Sequence[Panel | None], top: float, screen: Screen, gutter: int, side: int, wide: int
) -> Iterator[Line]:
    """One row of thumbnails, and the empty line below it."""
    columns = [list(cell_lines(steps_of(panel.pooled(side, side), top), screen)) if panel else [] for panel in row]
    for i in range(max(map(len, columns))):
        line = [Segment(fit(label if i == 0 else "", gutter - 1) + " ", DIM)]
        for column in columns:
            cells = column[i] if i < len(column) else []
            line += [*cells, Segment(" " * (wide - sum(cell_len(cell.text) for cell in cells)))]
        yield line
    yield [Segment("")]


def closing_lines(drawable: Drawable, screen: Screen, gutter: int) -> Iterator[Line]:
    """The colour bar with its scale and range, and the caption, wrapped to the screen."""
    length = min(BAR, screen.width - gutter - len(f"0  0.00  {screen.root}"))
    bar = full_cells(np.linspace(0, STEPS - 1, length).astype(int), screen.paint, 1)
    yield [Segment(" " * gutter + "0 "), *bar, Segment(f" {drawable.top:.2g}  "), Segment(screen.root, DIM)]
    masked = "rows: queries, columns: keys, blank: masked" if has_masked(drawable) else "rows: queries, columns: keys"
    for text in (masked, pooling_line(drawable, screen, gutter), *drawable.caption):
        for line in textwrap.wrap(text, max(screen.width - gutter, LABEL_WIDTH)):
            yield [Segment(" " * gutter + line, DIM)]


def pooling_line(drawable: Drawable, screen: Screen, gutter: int) -> str:
    """What was pooled to fit the screen; empty if nothing was."""
    side = thumbnail_side(drawable, screen, gutter) if isinstance(drawable, Grid) else screen.width - gutter
    cells = min(side, max(max(panel.values.shape) for panel in panels(drawable)))
    told = f"{drawable.tokens} tokens on {cells} cells: each is the largest weight that it stands for"
    return told if drawable.tokens > cells else ""


def has_masked(drawable: Drawable) -> bool:
    """Whether any cell is masked."""
    return not all(panel.visible.all() for panel in panels(drawable))


def panels(drawable: Drawable) -> list[Panel]:
    """The matrices of a drawable."""
    return [drawable.panel] if isinstance(drawable, Heatmap) else [p for row in drawable.panels for p in row if p]


def steps_of(panel: Panel, top: float) -> Steps:
    """The steps of a panel's cells on the colour scale, MASKED where nothing is visible."""
    found: Steps = np.where(panel.visible, step(levels(panel.values, top)), MASKED)
    return found


def cell_lines(cells: Steps, screen: Screen) -> Iterator[Line]:
    """Cells one column wide: two rows a line with colour, one without."""
    if not screen.coloured:
        yield from (full_cells(row, screen.paint, 1) for row in cells)
        return
    if len(cells) % 2:
        cells = np.vstack([cells, np.full((1, cells.shape[1]), MASKED)])
    for upper, lower in zip(cells[0::2], cells[1::2], strict=True):
        yield [half_cells(int(upper[i]), int(lower[i]), j - i, screen.paint) for i, j in runs(upper * 1000 + lower)]


def full_cells(row: Steps, paint: Paint, width: int) -> Line:
    """A row of cells so many columns wide, runs of one step as one segment."""
    return [full_cell(int(row[i]), (j - i) * width, paint) for i, j in runs(row)]


def full_cell(at: int, width: int, paint: Paint) -> Segment:
    """Cells of one step."""
    if at == MASKED:
        return Segment(" " * width)
    if paint in SHADES:
        shades = SHADES[paint]
        return Segment(shades[at * len(shades) // STEPS] * width)
    return Segment(" " * width, Style(bgcolor=colour(at, paint)))


def value_cell(value: float, at: int, paint: Paint) -> Segment:
    """A cell with its weight to two digits."""
    if at == MASKED:
        return Segment(" " * VALUE_WIDTH)
    shown = number(value).replace("·", "-") if paint == "ascii" else number(value)
    return Segment(shown, PLAIN if paint in SHADES else number_style(at, paint))


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
def number_style(at: int, paint: Paint) -> Style:
    """The style of a cell with its weight written in it."""
    light = is_light(*map(int, viridis()[at]))
    return Style(bgcolor=colour(at, paint), color=Color.from_ansi(16 if light else 231))


@cache
def colour(at: int, paint: Paint) -> Color:
    """The colour of a step."""
    if paint == "256":
        return Color.from_ansi(RAMP_256[at * len(RAMP_256) // STEPS])
    return Color.from_rgb(*map(int, viridis()[at]))


def runs(row: Steps) -> Iterator[tuple[int, int]]:
    """Start and end of each run of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    yield from pairwise(edges)


def number(value: float) -> str:
    """A weight in a cell of four columns: .31, 1.0, or a dot below .005."""
    if value < 0.005:
        return " ·  "
    return f"{value:.2f}"[1:].center(VALUE_WIDTH) if value < 0.995 else "1.0 "


def ticks(places: npt.NDArray[np.int64], mark: str = "╷") -> str:
    """A line of token numbers, given that of the first token of each column; one every ten columns."""
    line, columns = "", len(places)
    for column in range(0, columns, TICKS):
        tick = f"{mark}{places[column]}"
        if column + len(tick) <= columns:
            line = line.ljust(column) + tick
    return line


def stack(labels: Sequence[str]) -> list[str]:
    """Labels written downwards, ending at the line below, two columns each."""
    columns = [signs(label) for label in labels]
    columns = [column if len(column) <= LABEL_HEIGHT else [*column[: LABEL_HEIGHT - 1], "…"] for column in columns]
    height = max(map(len, columns))
    padded = [[""] * (height - len(column)) + column for column in columns]
    return [
        "".join(fit(sign, STACKED_WIDTH, left=True) for sign in line).rstrip() for line in zip(*padded, strict=True)
    ]


def signs(label: str) -> list[str]:
    """The signs of a label, marks that take no room of their own kept with the sign before."""
    found: list[str] = []
    for char in label:
        if found and cell_len(char) == 0:
            found[-1] += char
        else:
            found.append(char)
    return found


def fit(text: str, width: int, *, left: bool = False) -> str:
    """Text on exactly so many columns, cut with an ellipsis; to the right unless left."""
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    space = " " * (width - cell_len(text))
    return text + space if left else space + text
