"""Drawables on a terminal: cells of colour, half blocks or shades, as large as the screen allows.

Matrices are pooled to the screen first, so that a picture costs milliseconds at any length of text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from rich.segment import Segment
from rich.style import Style

from attnviz.drawable import (
    MASKED,
    Axis,
    Curves,
    Grid,
    Heatmap,
    Panel,
    Picture,
    Scale,
    Series,
    Steps,
    Strip,
    Table,
    find_block_starts,
    map_texts,
)
from attnviz.render.colour import STEPS
from attnviz.render.matrices import (
    TOKEN_AXES,
    Matrices,
    describe_axes,
    has_masked_cells,
    list_drawn_panels,
    name_pooled_unit,
    name_pooled_value,
)
from attnviz.render.terminal.cells import (
    BEYOND,
    LEAST_SHOWN,
    VALUE_WIDTH,
    CellPaint,
    TerminalLine,
    choose_steps,
    format_cell_difference,
    format_cell_weight,
    paint_matrix,
    paint_row,
    paint_value,
    style_text,
)
from attnviz.render.terminal.chart import draw_chart_lines
from attnviz.render.terminal.table import draw_table_rows
from attnviz.render.terminal.text_width import (
    LABEL_HEIGHT,
    STACKED_WIDTH,
    count_columns,
    draw_tick_line,
    fit_columns,
    fix_width,
    shorten_ascii_label,
    stack_labels,
    wrap_columns,
    write_ascii,
)

LABEL_WIDTH = 12  # columns of the label of a row, at most
LEAST_SIDE, MOST_SIDE = 5, 16  # cells of the side of a thumbnail
MOST_BAR_COLUMNS = 24  # columns of the colour bar, at most
LEAST_LINES = 6  # of cells, on a screen however low
NO_LIMIT = 1 << 30  # lines, where the height of the screen does not matter
HEATMAP_GAP_COLUMNS = 3  # columns between matrices beside each other
LEAST_HEATMAP_COLUMNS = 32  # columns of each of them with its colour bar
# Lines of a matrix among others below each other: on a screen that has fewer for each, they scroll.
LEAST_SERIES_HEIGHT = 20
VIRIDIS = CellPaint()
DIM = Style(dim=True)
BOLD = Style(bold=True)
CHOSEN = Style(bold=True, underline=True)


@dataclass(frozen=True)
class Screen:
    """A terminal to draw on: columns, lines if they are few, and the way cells are painted."""

    width: int = 80
    height: int | None = None
    paint: CellPaint = VIRIDIS
    full: bool = False
    """Nothing is pooled: a cell for every token, however wide and high that is."""

    def for_scale(self, scale: Scale) -> "Screen":
        """Return the screen with cells painted for a scale, which may be one of differences."""
        paint = self.paint._replace(signed=scale.signed)
        return replace(self, paint=paint)

    @property
    def is_ascii(self) -> bool:
        """True if nothing but ASCII can be shown."""
        return self.paint.is_ascii

    @property
    def rows_a_line(self) -> int:
        """The rows of cells in a line: two where half blocks can show them."""
        return 2 if self.paint.has_colours else 1

    def shorten(self, lines: int) -> "Screen":
        """Return the screen with fewer lines, or as it is if it has no limit of lines.

        lines: how many to take away.
        """
        if not self.height:
            return self
        return replace(self, height=self.height - lines)


def draw_picture_lines(picture: Picture, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of a picture: its title, and all that stands below it.

    screen: the size of the terminal, and how it shows colours. If it has nothing but ASCII, all
    texts are written in ASCII.
    """
    if screen.is_ascii:
        picture = write_in_ascii(picture)
    yield from draw_title(picture.title, screen)
    yield from draw_body(picture, screen)


def draw_title(title: str, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of a title in bold, wrapped to the screen."""
    for line in wrap_columns(title, screen.width):
        yield [Segment(line, BOLD)]


def count_title_lines(title: str, screen: Screen) -> int:
    """Count the lines that a title takes on the screen."""
    return len(list(draw_title(title, screen)))


def write_in_ascii(picture: Picture) -> Picture:
    """Return a picture with all its texts in ASCII, and with labels that need no ellipsis.

    It is done before anything is measured, so that widths are those of the texts that are shown.
    """

    def write_label(label: str) -> str:
        return shorten_ascii_label(write_ascii(label))

    return map_texts(picture, write_ascii, write_label)


@singledispatch
def draw_body(picture: Picture, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of a picture below its title. Each kind of picture has its own function.

    screen: the size of the terminal, and how it shows colours. Raises TypeError if the kind of
    picture has no function.
    """
    raise TypeError(f"no way to draw {type(picture).__name__} on a {screen.paint.depth} terminal")


# Heatmaps


@draw_body.register
def draw_heatmap_lines(heatmap: Heatmap, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of a heatmap in the most readable form that fits the screen.

    Cells show their values if these fit. Else column labels are written downwards above the cells,
    if they fit. Else cells are one column wide, pooled to fit, with some numbers of tokens above.
    """
    screen = screen.for_scale(heatmap.scale)
    gutter = measure_gutter(heatmap)
    room = count_lines_left(heatmap, screen, gutter)
    if shows_values(heatmap, screen, gutter, room):
        yield from draw_value_lines(heatmap, screen, gutter)
    elif stacks_labels(heatmap, screen, gutter, room):
        yield from draw_stacked_lines(heatmap, screen, gutter)
    else:
        yield from draw_pooled_heatmap(heatmap, screen, gutter, room)
    yield from draw_closing_lines(heatmap, screen, gutter)


def shows_values(heatmap: Heatmap, screen: Screen, gutter: int, room: int) -> bool:
    """Return whether a heatmap fits the screen with the value of each cell written into it.

    gutter: the terminal columns of the row labels. room: the lines of the screen for cells and what
    stands above them.
    """
    number_width = measure_row_numbers(heatmap)
    width = gutter + number_width + VALUE_WIDTH * len(heatmap.columns)
    fits = width <= screen.width
    return is_unpooled(heatmap) and fits_height(heatmap, screen, room) and fits


def stacks_labels(heatmap: Heatmap, screen: Screen, gutter: int, room: int) -> bool:
    """Return whether a heatmap is drawn with a label stacked above each column.

    It is if nothing was pooled before, and if it fits the screen or the screen shows everything.

    gutter: the terminal columns of the row labels. room: the lines of the screen for cells and what
    stands above them.
    """
    if not is_unpooled(heatmap):
        return False
    width = gutter + STACKED_WIDTH * len(heatmap.columns)
    fits = fits_height(heatmap, screen, room) and width <= screen.width
    return screen.full or fits


def is_unpooled(heatmap: Heatmap) -> bool:
    """Return whether each row and column of a heatmap stands for one token."""
    return heatmap.rows.step == 1 and heatmap.columns.step == 1


def fits_height(heatmap: Heatmap, screen: Screen, room: int) -> bool:
    """Return whether a heatmap with a line for each row fits the screen, with its headings.

    room: the lines of the screen for them. A screen that shows everything fits any heatmap.
    """
    heading = 1 if measure_row_numbers(heatmap) else LABEL_HEIGHT
    return screen.full or len(heatmap.rows) + heading <= room


def measure_gutter(heatmap: Heatmap) -> int:
    """Count the columns of the terminal that the row labels take, with a space beside them.

    Longer labels than LABEL_WIDTH are cut.
    """
    widest = max(map(count_columns, heatmap.rows.labels))
    return min(LABEL_WIDTH, widest) + 1


def measure_row_numbers(heatmap: Heatmap) -> int:
    """Count the columns of the terminal that the token numbers beside the row labels take.

    Numbers stand there if the columns stand for the same tokens as the rows. The columns then have
    these numbers as their headings. Else there are none, and the result is 0.
    """
    if heatmap.rows.labels != heatmap.columns.labels:
        return 0
    largest = max(heatmap.rows.numbers)
    return len(str(largest)) + 1


def count_lines_left(picture: Matrices, screen: Screen, gutter: int) -> int:
    """Count the lines of the screen that are left for cells and the labels above them.

    The title, the lines below the cells and a prompt take the others. The count is very large for a
    screen without a limit of lines.

    gutter: the columns on the left that lines below the cells leave free.
    """
    if screen.height is None:
        return NO_LIMIT
    closing_lines = list(draw_closing_lines(picture, screen, gutter))
    other_lines = count_title_lines(picture.title, screen) + len(closing_lines)
    return screen.height - other_lines - 1


def draw_value_lines(heatmap: Heatmap, screen: Screen, gutter: int) -> Iterator[TerminalLine]:
    """Yield the lines of headings and cells of a heatmap whose cells show their values.

    gutter: the terminal columns of the row labels, with a space beside them.
    """
    yield from draw_value_heading(heatmap, gutter)
    number_width = measure_row_numbers(heatmap)
    steps = choose_steps(heatmap.panel, heatmap.scale)
    values = heatmap.panel.values
    rows = heatmap.rows
    for i, label in enumerate(rows.labels):
        number = ""
        if number_width:
            number = f"{rows.numbers[i]}".rjust(number_width - 1) + " "
        line = [draw_row_label(label, gutter), Segment(number, DIM)]
        for value, step in zip(values[i], steps[i], strict=True):
            cell = paint_value(value, int(step), screen.paint)
            line.append(cell)
        yield line


def draw_row_label(label: str, gutter: int) -> Segment:
    """Return the label of a row on ``gutter`` columns of the terminal, the last one a space."""
    text = fit_columns(label, gutter - 1)
    return Segment(text + " ")


def draw_value_heading(heatmap: Heatmap, gutter: int) -> Iterator[TerminalLine]:
    """Yield the headings above cells that show their values.

    If the columns stand for the same tokens as the rows, they have the numbers of the tokens. Else
    they have their labels: in one line if all of them are short enough, or stacked, that is,
    written downwards.

    gutter: the terminal columns of the row labels, with a space beside them.
    """
    number_width = measure_row_numbers(heatmap)
    columns = heatmap.columns
    if number_width:
        numbers = list(map(str, columns.numbers))
        yield draw_column_names(numbers, gutter + number_width)
    elif has_short_labels(columns):
        yield draw_column_names(columns.labels, gutter)
    else:
        indent = " " * gutter
        for line in stack_labels(columns.labels, VALUE_WIDTH):
            yield [Segment(f"{indent} {line}")]


def has_short_labels(columns: Axis) -> bool:
    """Return whether the column labels are no tokens, and fit the width of cells with values."""
    if columns.name in TOKEN_AXES:
        return False
    widest = max(map(count_columns, columns.labels))
    return widest < VALUE_WIDTH


def draw_column_names(names: Sequence[str], indent: int) -> TerminalLine:
    """Return the line of short names above cells that show their values.

    indent: the columns on the left of the first cell.
    """
    cells: list[str] = []
    for name in names:
        width = max(VALUE_WIDTH - 1, count_columns(name))
        cells.append(fit_columns(name, width))
    heading = " ".join(cells).rstrip()
    return [Segment(" " * indent + heading, DIM)]


def draw_stacked_lines(heatmap: Heatmap, screen: Screen, gutter: int) -> Iterator[TerminalLine]:
    """Yield the lines of headings and cells of a heatmap whose cells are two columns wide.

    The column labels are stacked above the cells, that is, written downwards.

    gutter: the terminal columns of the row labels, with a space beside them.
    """
    indent = " " * gutter
    for line in stack_labels(heatmap.columns.labels):
        yield [Segment(indent + line)]
    steps = choose_steps(heatmap.panel, heatmap.scale)
    for label, row in zip(heatmap.rows.labels, steps, strict=True):
        cells = paint_row(row, screen.paint, STACKED_WIDTH)
        yield [draw_row_label(label, gutter), *cells]


def draw_pooled_heatmap(
    heatmap: Heatmap,
    screen: Screen,
    gutter: int,
    room: int,
) -> Iterator[TerminalLine]:
    """Yield the lines of a heatmap whose cells are pooled to fit the screen.

    Several cells become one, and lines below say how many. Nothing is pooled if all cells fit.

    gutter: the terminal columns of the row labels. room: the lines of the screen for all of these
    lines.
    """
    panel = pool_panel(heatmap, screen, gutter, room)
    explanation = explain_heatmap_pooling(heatmap, panel, screen, gutter)
    if explanation:  # it takes lines, so that fewer are left for cells
        panel = pool_panel(heatmap, screen, gutter, room - len(explanation))
    yield from draw_dense_lines(heatmap, panel, screen, gutter)
    yield from explain_heatmap_pooling(heatmap, panel, screen, gutter)


def pool_panel(heatmap: Heatmap, screen: Screen, gutter: int, room: int) -> Panel:
    """Return the matrix of a heatmap, pooled to as many cells as the screen has room for.

    It is not pooled if the screen shows everything.

    gutter: the terminal columns of the row labels. room: the lines for cells and a line above them.
    """
    if screen.full:
        return heatmap.panel
    lines = max(room - 1, LEAST_LINES)
    columns = screen.width - gutter
    rows = min(lines * screen.rows_a_line, columns)
    return heatmap.panel.pool(rows, columns)


def explain_heatmap_pooling(
    heatmap: Heatmap,
    panel: Panel,
    screen: Screen,
    gutter: int,
) -> list[TerminalLine]:
    """Return the lines that say how many cells of a heatmap became one; none if all were shown.

    panel: the matrix as it is drawn. gutter: the terminal columns that the lines leave free on the
    left.
    """
    tokens = len(heatmap.rows), len(heatmap.columns)
    return list(explain_pooling(heatmap, tokens, panel.values.shape, screen, gutter))


def draw_dense_lines(
    heatmap: Heatmap,
    panel: Panel,
    screen: Screen,
    gutter: int,
) -> Iterator[TerminalLine]:
    """Yield the lines of a heatmap whose cells are one column wide.

    With colours a line shows two rows. Above the cells is a line of ticks: at every tenth column
    the number of its first token. A line has the label of the first token that it shows.

    panel: the matrix of the heatmap, pooled to the screen: a cell may stand for several tokens.
    gutter: the terminal columns of the row labels.
    """
    colour_steps = choose_steps(panel, heatmap.scale)
    rows, columns = heatmap.panel.values.shape
    pooled_rows, pooled_columns = colour_steps.shape
    # The tokens with which the pooled rows and columns begin.
    first_rows = find_block_starts(rows, pooled_rows) * heatmap.rows.step
    first_columns = find_block_starts(columns, pooled_columns) * heatmap.columns.step
    numbers = [heatmap.columns.numbers[i] for i in first_columns]
    mark = "|" if screen.is_ascii else "╷"
    ticks = draw_tick_line(numbers, mark)
    yield [Segment(" " * gutter + ticks, DIM)]
    line_rows = first_rows[:: screen.rows_a_line]
    lines = paint_matrix(colour_steps, screen.paint)
    for row, line in zip(line_rows, lines, strict=True):
        label = heatmap.rows.labels[row]
        yield [draw_row_label(label, gutter), *line]


# Grids of thumbnails


class ThumbnailLayout(NamedTuple):
    """The room of thumbnails on a terminal."""

    gutter: int
    """Columns of the names of the layers, with the space beside them."""
    side: int
    """Cells of the side of a thumbnail, at most."""
    width: int
    """Columns from one thumbnail to the next."""


@draw_body.register
def draw_grid_lines(grid: Grid, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of a grid: thumbnails, that is, small matrices, in a row for each layer.

    If the heads of a layer do not fit beside each other, blocks of heads stand below each other.
    """
    screen = screen.for_scale(grid.scale)
    layout = lay_out_thumbnails(grid, screen)
    columns = len(grid.columns)
    room = screen.width - layout.gutter
    abreast = max(1, room // layout.width)
    for first in range(0, columns, abreast):
        heads = slice(first, first + abreast)
        yield draw_thumbnail_names(grid.columns[heads], layout)
        for label, row in zip(grid.rows, grid.panels, strict=True):
            thumbnails = pool_thumbnails(row[heads], grid.scale, layout.side)
            yield from draw_thumbnail_lines(label, thumbnails, layout, screen.paint)
    yield from explain_grid_pooling(grid, layout.side, screen, layout.gutter)
    yield from draw_closing_lines(grid, screen, layout.gutter)


def lay_out_thumbnails(grid: Grid, screen: Screen) -> ThumbnailLayout:
    """Choose the cells of a grid's thumbnails, and the terminal columns that they take."""
    gutter = max(map(count_columns, grid.rows)) + 1
    side = choose_thumbnail_side(grid, screen, gutter)
    widest_name = max(map(count_columns, grid.columns))
    width = max(side, widest_name) + 1
    return ThumbnailLayout(gutter, side, width)


def choose_thumbnail_side(grid: Grid, screen: Screen, gutter: int) -> int:
    """Choose how many cells the longer side of a thumbnail has.

    They are as many as let all heads stand beside each other and all layers below each other, but
    within LEAST_SIDE and MOST_SIDE, and no more than the matrices have.

    gutter: the terminal columns of the names of the layers, with a space beside them.
    """
    panels = list_drawn_panels(grid)
    sides = [max(panel.values.shape) for panel in panels]
    longest: int = max(sides)
    if screen.full:
        return longest
    cells_width = screen.width - gutter
    fair_width = cells_width // len(grid.columns) - 1
    # Lines are left for the explanation of pooling, even if none is needed.
    explanation = list(explain_grid_pooling(grid, 1, screen, gutter))
    room = count_lines_left(grid, screen, gutter)
    # Two lines are the names of the heads, and one to spare.
    room -= 2 + len(explanation)
    fair_lines = room // len(grid.rows) - 1
    fair_height = fair_lines * screen.rows_a_line
    side = max(min(fair_width, fair_height), LEAST_SIDE)
    return min(side, MOST_SIDE, longest)


def draw_thumbnail_names(names: Sequence[str], layout: ThumbnailLayout) -> TerminalLine:
    """Return the line with the names of heads above thumbnails, each cut to its width."""
    line = " " * layout.gutter
    for name in names:
        line += fit_columns(name, layout.width, left=True)
    return [Segment(line, DIM)]


def pool_thumbnails(panels: Sequence[Panel | None], scale: Scale, side: int) -> list[Steps | None]:
    """Pool matrices to small ones, and choose the colours of their cells.

    panels: the matrices; None where there is no head. side: the cells of a side, at most. Returns
    for each matrix the number of every cell's colour on the scale, (row, column), or None.
    """
    thumbnails: list[Steps | None] = []
    for panel in panels:
        if panel is None:
            thumbnails.append(None)
        else:
            pooled = panel.pool(side, side)
            thumbnails.append(choose_steps(pooled, scale))
    return thumbnails


def explain_grid_pooling(
    grid: Grid,
    side: int,
    screen: Screen,
    gutter: int,
) -> Iterator[TerminalLine]:
    """Yield the lines that say how much the matrices of a grid were pooled; none if all were shown.

    side: the cells of a thumbnail's side, at most. gutter: the columns that the lines leave free on
    the left.
    """
    yield from explain_pooling(grid, (grid.tokens,), (side,), screen, gutter)


def draw_thumbnail_lines(
    label: str,
    thumbnails: Sequence[Steps | None],
    layout: ThumbnailLayout,
    paint: CellPaint,
) -> Iterator[TerminalLine]:
    """Yield the lines of thumbnails beside each other, and an empty line below them.

    label: the name on the left of the first line. thumbnails: for each the number of every cell's
    colour on the scale, (row, column); None for a blank one.
    """
    painted: list[list[TerminalLine]] = []
    for steps in thumbnails:
        painted.append([])
        if steps is not None:
            painted[-1] += paint_matrix(steps, paint)
    height = max(map(len, painted))
    for i in range(height):
        text = label if i == 0 else ""
        name = fit_columns(text, layout.gutter - 1)
        line = [Segment(name + " ", DIM)]
        for lines in painted:
            cells = lines[i] if i < len(lines) else []
            space = " " * (layout.width - measure_line(cells))
            line += [*cells, Segment(space)]
        yield line
    yield [Segment("")]


# Running text


@draw_body.register
def draw_strip_lines(strip: Strip, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of a strip: its text, wrapped, each token on its colour.

    Without colours each token has its weight beside it. A space stands between two tokens if one
    stands between them in the text.
    """
    screen = screen.for_scale(strip.scale)
    line: TerminalLine = []
    used = 0
    tokens = draw_tokens(strip, screen)
    for token, has_space in zip(tokens, strip.tokens.spaced, strict=True):
        length = count_columns(token.text)
        if used and used + has_space + length > screen.width:
            yield line
            line = []
            used = 0
        if used and has_space:
            line.append(Segment(" "))
            used += 1
        line.append(token)
        used += length
    yield line
    yield [Segment("")]
    yield from draw_closing_lines(strip, screen, 0)


def draw_tokens(strip: Strip, screen: Screen) -> Iterator[Segment]:
    """Yield the tokens of a strip on their colours.

    The token that the weights are about is bold and underlined, or without colours between > and <.
    A masked token is dim.
    """
    steps = choose_steps(strip.panel, strip.scale)[0]
    values = strip.panel.values[0]
    for i, label in enumerate(strip.tokens.labels):
        step = int(steps[i])
        text = write_token(label, values[i], step, screen)
        style = DIM if step == MASKED else style_text(step, screen.paint)
        if i == strip.chosen:
            style += CHOSEN
            if not screen.paint.has_colours:
                text = f">{text}<"
        yield Segment(text, style)


def write_token(label: str, value: float, step: int, screen: Screen) -> str:
    """Return the text of a token, cut to a line, with its weight behind it if there are no colours.

    A masked or very small weight is left out.

    value: the weight. step: the number of its colour on the scale, or MASKED.
    """
    text = fix_width(label)
    # A weight in parentheses may follow, and two marks may enclose the token.
    most_columns = screen.width - VALUE_WIDTH - 4
    if count_columns(text) > most_columns:
        text = fit_columns(text, most_columns)
    paint = screen.paint
    if paint.has_colours or step == MASKED or abs(value) < LEAST_SHOWN:
        return text
    weight = format_cell_difference(value) if paint.signed else format_cell_weight(value)
    return f"{text}({weight.strip()})"


# Series of matrices


@draw_body.register
def draw_series_lines(series: Series, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of a series: heatmaps beside each other if all their labels can be read.

    Else they stand below each other.
    """
    caption = list(draw_caption(series.caption, screen, 0))
    title_lines = count_title_lines(series.title, screen)
    other_lines = len(caption) + title_lines + 2
    low_screen = screen.shorten(other_lines)
    yield [Segment("")]
    heatmaps = series.heatmaps
    gaps = HEATMAP_GAP_COLUMNS * (len(heatmaps) - 1)
    fair_width = (screen.width - gaps) // len(heatmaps)
    if all(measure_least_width(heatmap) <= fair_width for heatmap in heatmaps):
        yield from draw_side_by_side(heatmaps, replace(low_screen, width=fair_width))
        yield [Segment("")]
    else:
        yield from draw_below_each_other(heatmaps, low_screen)
    yield from caption


def measure_least_width(heatmap: Heatmap) -> int:
    """Count the columns of a terminal that a heatmap needs for all its labels, at least."""
    labelled = measure_gutter(heatmap) + STACKED_WIDTH * heatmap.columns.cells
    return max(LEAST_HEATMAP_COLUMNS, labelled)


def draw_below_each_other(heatmaps: Sequence[Heatmap], screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of heatmaps below each other, with an empty line after each of them.

    screen: its lines are shared among the heatmaps, but each has LEAST_SERIES_HEIGHT at least.
    """
    height = screen.height
    if height:
        fair_share = height // len(heatmaps)
        height = max(fair_share, LEAST_SERIES_HEIGHT)
    for heatmap in heatmaps:
        yield from draw_picture_lines(heatmap, replace(screen, height=height))
        yield [Segment("")]


def draw_side_by_side(heatmaps: Sequence[Heatmap], screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of heatmaps that stand beside each other, from left to right.

    The cells of all of them begin below the longest title.

    screen: the columns and lines that each heatmap has.
    """
    titles = [list(draw_title(heatmap.title, screen)) for heatmap in heatmaps]
    highest = max(map(len, titles))
    pictures: list[list[TerminalLine]] = []
    for heatmap, title in zip(heatmaps, titles, strict=True):
        spare = highest - len(title)
        empty_lines: list[TerminalLine] = [[]] * spare
        body = draw_body(heatmap, screen.shorten(spare))
        pictures.append([*title, *empty_lines, *body])
    for lines in zip_longest(*pictures, fillvalue=[]):
        yield join_side_by_side(lines, screen.width + HEATMAP_GAP_COLUMNS)


def join_side_by_side(lines: Sequence[TerminalLine], width: int) -> TerminalLine:
    """Join lines to one line, each but the last filled up to ``width`` columns."""
    *filled_lines, last = lines
    joined: TerminalLine = []
    for line in filled_lines:
        space = " " * (width - measure_line(line))
        joined += [*line, Segment(space)]
    return joined + last


def measure_line(line: TerminalLine) -> int:
    """Count the columns of a terminal that a line takes."""
    return sum(count_columns(segment.text) for segment in line)


# Tables and curves


@draw_body.register
def draw_table_lines(table: Table, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of a table, some of its cells on colours, and of its caption."""
    width = None if screen.full else screen.width
    yield from draw_table_rows(table, width, screen.paint)
    yield from draw_caption(table.caption, screen, 0)


@draw_body.register
def draw_curves_lines(curves: Curves, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of curves: plots below each other, as high as the screen allows."""
    caption = list(draw_caption(curves.caption, screen, 0))
    title_lines = count_title_lines(curves.title, screen)
    other_lines = len(caption) + title_lines + 1
    room = screen.shorten(other_lines).height
    yield from draw_chart_lines(curves, screen.width, room, screen.paint)
    yield from caption


# Lines below a picture


def draw_closing_lines(picture: Matrices, screen: Screen, gutter: int) -> Iterator[TerminalLine]:
    """Yield the lines below the cells of a picture: its colour bar, its axes and its caption.

    gutter: the terminal columns that the lines leave free on the left.
    """
    width = screen.width - gutter
    draw_bar = draw_signed_bar if picture.scale.signed else draw_colour_bar
    bar = draw_bar(picture.scale, screen, width)
    yield [Segment(" " * gutter), *bar]
    masked = has_masked_cells(list_drawn_panels(picture))
    axes = describe_axes(picture, masked=masked)
    yield from draw_caption((axes, *picture.caption), screen, gutter)


def draw_caption(caption: Sequence[str], screen: Screen, gutter: int) -> Iterator[TerminalLine]:
    """Yield the lines of a caption, dim and wrapped to the screen.

    gutter: the terminal columns that the lines leave free on the left.
    """
    width = max(screen.width - gutter, LABEL_WIDTH)
    indent = " " * gutter
    for text in caption:
        for line in wrap_columns(text, width):
            yield [Segment(indent + line, DIM)]


def draw_colour_bar(scale: Scale, screen: Screen, room: int) -> TerminalLine:
    """Return the line of a colour bar from 0 to the top of a scale.

    After it come the colour of weights beyond the scale, if there are any, and the scale's name.

    room: the columns of the line, at most. The bar has the ones that texts leave, up to
    MOST_BAR_COLUMNS.
    """
    beyond: TerminalLine = []
    if scale.has_beyond:
        swatch = paint_row(np.array([BEYOND]), screen.paint, 2)
        beyond = [Segment("  "), *swatch, Segment(" beyond")]
    bottom = Segment("0 ")
    top = Segment(f" {scale.top:.2g}")
    name = Segment(f"  {name_scale(scale, screen)}", DIM)
    texts_width = measure_line([bottom, top, *beyond, name])
    width = max(min(MOST_BAR_COLUMNS, room - texts_width), 1)
    steps = choose_bar_steps(width)
    bar = paint_row(steps, screen.paint, 1)
    return [bottom, *bar, top, *beyond, name]


def draw_signed_bar(scale: Scale, screen: Screen, room: int) -> TerminalLine:
    """Return the line of a colour bar of differences.

    It goes from the largest negative difference over 0 to the largest positive one. The name of
    the scale comes after it where there is room.

    room: the columns of the line, at most.
    """
    top = f"{scale.top:.2g}"
    ends_width = 2 * len(top) + 6  # with sign, spaces and zero
    room -= ends_width
    name = name_scale(scale, screen)
    # The name needs two spaces before it, and a bar of two columns.
    least_room = len(name) + 4
    name = f"  {name}" if least_room <= room else ""
    width = min(MOST_BAR_COLUMNS, room - len(name))
    half = max(width // 2, 1)
    steps = choose_bar_steps(2 * half)
    below = paint_row(steps[:half], screen.paint, 1)
    above = paint_row(steps[half:], screen.paint, 1)
    zero = Segment(" 0 ", style_text(STEPS // 2, screen.paint))
    low = Segment(f"-{top} ")
    high = Segment(f" {top}")
    return [low, *below, zero, *above, high, Segment(name, DIM)]


def choose_bar_steps(width: int) -> Steps:
    """Choose the colours along a colour bar, from the lowest to the highest: (column,).

    width: the columns of the bar. Colours are numbers on the scale, from 0 to STEPS - 1.
    """
    positions = np.linspace(0, STEPS - 1, width)
    return positions.astype(np.int64)


def name_scale(scale: Scale, screen: Screen) -> str:
    """Return the name of a scale in characters that the screen has."""
    return scale.name.replace("√", "sqrt") if screen.is_ascii else scale.name


def explain_pooling(
    picture: Heatmap | Grid,
    tokens: Sequence[int],
    cells: Sequence[int],
    screen: Screen,
    gutter: int,
) -> Iterator[TerminalLine]:
    """Yield the lines that say how much a picture was pooled to fit the screen; none if it was not.

    tokens: how many tokens each side of the matrix stands for. cells: how many cells each side has
    on the screen, in the same order. gutter: the terminal columns that the lines leave free on the
    left.
    """
    pairs = zip(tokens, cells, strict=True)
    if not any(tokens_a_side > cells_a_side for tokens_a_side, cells_a_side in pairs):
        return
    size = " x ".join(map(str, cells))
    if len(set(cells)) == 1:
        size = str(cells[0])
    unit = name_pooled_unit(picture)
    value = name_pooled_value(picture)
    longest = max(tokens)
    pooled = f"{longest} {unit} on {size} cells"
    text = f"{pooled}: each is the largest {value} that it stands for"
    yield from draw_caption((text,), screen, gutter)
