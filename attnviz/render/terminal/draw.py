"""Drawables on a terminal: cells of colour, half blocks or shades, as large as the screen allows.

Matrices are pooled to the screen first, so that a picture costs milliseconds at any length of text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from rich.cells import cell_len
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
        """Return the screen with so many lines less, if it has a limit of lines."""
        if not self.height:
            return self
        return replace(self, height=self.height - lines)


def draw_picture_lines(drawable: Picture, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of a picture: its title, its cells, its colour bar and its caption."""
    if screen.is_ascii:
        drawable = write_in_ascii(drawable)
    yield from draw_title(drawable.title, screen)
    yield from draw_body(drawable, screen)


def draw_title(title: str, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of a title."""
    for line in wrap_columns(title, screen.width):
        yield [Segment(line, BOLD)]


def count_title_lines(title: str, screen: Screen) -> int:
    """Count the lines of a title."""
    return len(list(draw_title(title, screen)))


def write_in_ascii(drawable: Picture) -> Picture:
    """Return a drawable with all its text in ASCII, so that its widths are those that are shown."""

    def write_label(label: str) -> str:
        return shorten_ascii_label(write_ascii(label))

    return map_texts(drawable, write_ascii, write_label)


@singledispatch
def draw_body(drawable: Picture, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of a picture below its title. Each kind of picture has its own function."""
    raise TypeError(f"no way to draw {type(drawable).__name__} on a {screen.paint.depth} terminal")


# Heatmaps


@draw_body.register
def draw_heatmap_lines(drawable: Heatmap, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of a heatmap in the most readable form that fits the screen.

    Cells show their numbers if these fit. Else labels are stacked above the columns, if they fit.
    Else cells are half blocks, or shades, with ticks above them.
    """
    screen = screen.for_scale(drawable.scale)
    gutter = measure_gutter(drawable)
    room = count_lines_left(drawable, screen, gutter)
    if shows_values(drawable, screen, gutter, room):
        yield from draw_value_lines(drawable, screen, gutter)
    elif stacks_labels(drawable, screen, gutter, room):
        yield from draw_stacked_lines(drawable, screen, gutter)
    else:
        yield from draw_pooled_heatmap(drawable, screen, gutter, room)
    yield from draw_closing_lines(drawable, screen, gutter)


def shows_values(drawable: Heatmap, screen: Screen, gutter: int, room: int) -> bool:
    """Return whether a heatmap fits the screen with the number of each cell in it."""
    number_width = measure_numbers(drawable)
    width = gutter + number_width + VALUE_WIDTH * len(drawable.columns)
    fits = width <= screen.width
    return is_unpooled(drawable) and fits_height(drawable, screen, room) and fits


def stacks_labels(drawable: Heatmap, screen: Screen, gutter: int, room: int) -> bool:
    """Return whether a heatmap fits the screen with a label stacked above each column."""
    if not is_unpooled(drawable):
        return False
    width = gutter + STACKED_WIDTH * len(drawable.columns)
    fits = fits_height(drawable, screen, room) and width <= screen.width
    return screen.full or fits


def is_unpooled(drawable: Heatmap) -> bool:
    """Return whether each row and column of a heatmap stands for one token."""
    return drawable.rows.step == 1 and drawable.columns.step == 1


def fits_height(drawable: Heatmap, screen: Screen, room: int) -> bool:
    """Return whether a line for each row, and what stands above them, fit the lines of a screen."""
    heading = 1 if measure_numbers(drawable) else LABEL_HEIGHT
    return screen.full or len(drawable.rows) + heading <= room


def measure_gutter(drawable: Heatmap) -> int:
    """Count the columns of the labels of the rows, and of the space beside them."""
    widest = max(map(count_columns, drawable.rows.labels))
    return min(LABEL_WIDTH, widest) + 1


def measure_numbers(drawable: Heatmap) -> int:
    """Count the columns of the number beside each row, which is the legend of the columns.

    It is 0 where the columns stand for other tokens than the rows, which then have no numbers.
    """
    if drawable.rows.labels != drawable.columns.labels:
        return 0
    largest = max(drawable.rows.numbers)
    return len(str(largest)) + 1


def count_lines_left(drawable: Matrices, screen: Screen, gutter: int) -> int:
    """Count the lines for the cells and the labels above them.

    The title, the closing lines and a prompt take the others.
    """
    if screen.height is None:
        return NO_LIMIT
    closing_lines = list(draw_closing_lines(drawable, screen, gutter))
    around = count_title_lines(drawable.title, screen) + len(closing_lines)
    return screen.height - around - 1


def draw_value_lines(drawable: Heatmap, screen: Screen, gutter: int) -> Iterator[TerminalLine]:
    """Yield the lines of a heatmap whose cells show their numbers to two digits."""
    yield from draw_value_heading(drawable, gutter)
    number_width = measure_numbers(drawable)
    steps = choose_steps(drawable.panel, drawable.scale)
    values = drawable.panel.values
    rows = drawable.rows
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
    """Return the label of a row, and a space, on so many columns."""
    text = fit_columns(label, gutter - 1)
    return Segment(text + " ")


def draw_value_heading(drawable: Heatmap, gutter: int) -> Iterator[TerminalLine]:
    """Yield the lines above cells that show their numbers.

    Columns have the numbers of the rows if they stand for the same tokens. Else they have their
    labels, in one line if all of them are short enough, or stacked.
    """
    number_width = measure_numbers(drawable)
    columns = drawable.columns
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
    """Return whether the labels of columns fit above cells that show their numbers."""
    if columns.name in TOKEN_AXES:
        return False
    widest = max(map(count_columns, columns.labels))
    return widest < VALUE_WIDTH


def draw_column_names(names: Sequence[str], indent: int) -> TerminalLine:
    """Return a line of short names above cells that show their numbers."""
    cells = [name.rjust(VALUE_WIDTH - 1) for name in names]
    heading = " ".join(cells).rstrip()
    return [Segment(" " * indent + heading, DIM)]


def draw_stacked_lines(drawable: Heatmap, screen: Screen, gutter: int) -> Iterator[TerminalLine]:
    """Yield the lines of a heatmap with two columns a cell and stacked labels above them."""
    indent = " " * gutter
    for line in stack_labels(drawable.columns.labels):
        yield [Segment(indent + line)]
    steps = choose_steps(drawable.panel, drawable.scale)
    for label, row in zip(drawable.rows.labels, steps, strict=True):
        cells = paint_row(row, screen.paint, STACKED_WIDTH)
        yield [draw_row_label(label, gutter), *cells]


def draw_pooled_heatmap(
    drawable: Heatmap,
    screen: Screen,
    gutter: int,
    room: int,
) -> Iterator[TerminalLine]:
    """Yield the lines of a heatmap that is pooled to the screen, and how much it is pooled."""
    panel = pool_panel(drawable, screen, gutter, room)
    explanation = explain_heatmap_pooling(drawable, panel, screen, gutter)
    if explanation:  # it takes room
        panel = pool_panel(drawable, screen, gutter, room - len(explanation))
    yield from draw_dense_lines(drawable, panel, screen, gutter)
    yield from explain_heatmap_pooling(drawable, panel, screen, gutter)


def pool_panel(drawable: Heatmap, screen: Screen, gutter: int, room: int) -> Panel:
    """Return the panel with as many cells as the screen has room for, or with all of them."""
    if screen.full:
        return drawable.panel
    lines = max(room - 1, LEAST_LINES)
    columns = screen.width - gutter
    rows = min(lines * screen.rows_a_line, columns)
    return drawable.panel.pool(rows, columns)


def explain_heatmap_pooling(
    drawable: Heatmap,
    panel: Panel,
    screen: Screen,
    gutter: int,
) -> list[TerminalLine]:
    """Return the lines that say how much a heatmap was pooled to a panel."""
    tokens = len(drawable.rows), len(drawable.columns)
    return list(explain_pooling(drawable, tokens, panel.values.shape, screen, gutter))


def draw_dense_lines(
    drawable: Heatmap,
    panel: Panel,
    screen: Screen,
    gutter: int,
) -> Iterator[TerminalLine]:
    """Yield the lines of a heatmap with one column a cell, and two rows a line with colours.

    panel: that of the heatmap, pooled to the screen.
    """
    steps = choose_steps(panel, drawable.scale)
    rows, columns = drawable.panel.values.shape
    pooled_rows, pooled_columns = steps.shape
    first_rows = find_block_starts(rows, pooled_rows) * drawable.rows.step
    first_columns = find_block_starts(columns, pooled_columns) * drawable.columns.step
    numbers = [drawable.columns.numbers[i] for i in first_columns]
    mark = "|" if screen.is_ascii else "╷"
    ticks = draw_tick_line(numbers, mark)
    yield [Segment(" " * gutter + ticks, DIM)]
    line_rows = first_rows[:: screen.rows_a_line]
    lines = paint_matrix(steps, screen.paint)
    for row, line in zip(line_rows, lines, strict=True):
        label = drawable.rows.labels[row]
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
def draw_grid_lines(drawable: Grid, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of thumbnails, as many beside each other as fit.

    The heads of a layer go on below where they do not fit.
    """
    screen = screen.for_scale(drawable.scale)
    layout = lay_out_thumbnails(drawable, screen)
    columns = len(drawable.columns)
    room = screen.width - layout.gutter
    abreast = max(1, room // layout.width)
    for first in range(0, columns, abreast):
        heads = slice(first, first + abreast)
        yield draw_thumbnail_names(drawable.columns[heads], layout)
        for label, row in zip(drawable.rows, drawable.panels, strict=True):
            thumbnails = pool_thumbnails(row[heads], drawable.scale, layout.side)
            yield from draw_thumbnail_lines(label, thumbnails, layout, screen.paint)
    yield from explain_grid_pooling(drawable, layout.side, screen, layout.gutter)
    yield from draw_closing_lines(drawable, screen, layout.gutter)


def lay_out_thumbnails(drawable: Grid, screen: Screen) -> ThumbnailLayout:
    """Choose the room of the thumbnails of a grid on a screen."""
    gutter = max(map(cell_len, drawable.rows)) + 1
    side = choose_thumbnail_side(drawable, screen, gutter)
    widest_name = max(map(cell_len, drawable.columns))
    width = max(side, widest_name) + 1
    return ThumbnailLayout(gutter, side, width)


def choose_thumbnail_side(drawable: Grid, screen: Screen, gutter: int) -> int:
    """Choose the cells of a thumbnail's side.

    They are as many as let all heads stand beside each other and all layers below each other,
    within LEAST_SIDE and MOST_SIDE.
    """
    panels = list_drawn_panels(drawable)
    sides = [max(panel.values.shape) for panel in panels]
    longest: int = max(sides)
    if screen.full:
        return longest
    columns = screen.width - gutter
    fair_width = columns // len(drawable.columns) - 1
    explanation = list(explain_grid_pooling(drawable, 1, screen, gutter))
    room = count_lines_left(drawable, screen, gutter)
    room -= 2 + len(explanation)
    fair_lines = room // len(drawable.rows) - 1
    fair_height = fair_lines * screen.rows_a_line
    side = max(min(fair_width, fair_height), LEAST_SIDE)
    return min(side, MOST_SIDE, longest)


def draw_thumbnail_names(names: Sequence[str], layout: ThumbnailLayout) -> TerminalLine:
    """Return the line of names above thumbnails."""
    line = " " * layout.gutter
    for name in names:
        line += fit_columns(name, layout.width, left=True)
    return [Segment(line, DIM)]


def pool_thumbnails(panels: Sequence[Panel | None], scale: Scale, side: int) -> list[Steps | None]:
    """Return the steps of panels on at most so many cells a side; None where there is no head."""
    thumbnails: list[Steps | None] = []
    for panel in panels:
        if panel is None:
            thumbnails.append(None)
        else:
            pooled = panel.pool(side, side)
            thumbnails.append(choose_steps(pooled, scale))
    return thumbnails


def explain_grid_pooling(
    drawable: Grid, side: int, screen: Screen, gutter: int
) -> Iterator[TerminalLine]:
    """Yield lines that say how much thumbnails were pooled to so many cells a side."""
    yield from explain_pooling(drawable, (drawable.tokens,), (side,), screen, gutter)


def draw_thumbnail_lines(
    label: str,
    thumbnails: Sequence[Steps | None],
    layout: ThumbnailLayout,
    paint: CellPaint,
) -> Iterator[TerminalLine]:
    """Yield the lines of thumbnails beside each other, and the empty line below them.

    label: on the left of the first line. thumbnails: the steps of each, (row, column).
    """
    columns: list[list[TerminalLine]] = []
    for steps in thumbnails:
        columns.append([])
        if steps is not None:
            columns[-1] += paint_matrix(steps, paint)
    height = max(map(len, columns))
    for i in range(height):
        text = label if i == 0 else ""
        name = fit_columns(text, layout.gutter - 1)
        line = [Segment(name + " ", DIM)]
        for lines in columns:
            cells = lines[i] if i < len(lines) else []
            space = " " * (layout.width - measure_line(cells))
            line += [*cells, Segment(space)]
        yield line
    yield [Segment("")]


# Running text


@draw_body.register
def draw_strip_lines(drawable: Strip, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of a text, wrapped, each token on its colour.

    Without colours each token has its weight beside it.
    """
    screen = screen.for_scale(drawable.scale)
    line: TerminalLine = []
    used = 0
    tokens = draw_tokens(drawable, screen)
    for token, has_space in zip(tokens, drawable.tokens.spaced, strict=True):
        length = cell_len(token.text)
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
    yield from draw_closing_lines(drawable, screen, 0)


def draw_tokens(drawable: Strip, screen: Screen) -> Iterator[Segment]:
    """Yield the tokens of a text on their colours."""
    steps = choose_steps(drawable.panel, drawable.scale)[0]
    values = drawable.panel.values[0]
    for i, label in enumerate(drawable.tokens.labels):
        step = int(steps[i])
        text = write_token(label, values[i], step, screen)
        style = DIM if step == MASKED else style_text(step, screen.paint)
        if i == drawable.chosen:
            style += CHOSEN
            if not screen.paint.has_colours:
                text = f">{text}<"
        yield Segment(text, style)


def write_token(label: str, value: float, step: int, screen: Screen) -> str:
    """Return the text of a token, cut to a line, and its weight where there are no colours."""
    text = fix_width(label)
    most = screen.width - VALUE_WIDTH - 4
    if cell_len(text) > most:
        text = fit_columns(text, most)
    paint = screen.paint
    if paint.has_colours or step == MASKED or abs(value) < LEAST_SHOWN:
        return text
    weight = format_cell_difference(value) if paint.signed else format_cell_weight(value)
    return f"{text}({weight.strip()})"


# Series of matrices


@draw_body.register
def draw_series_lines(drawable: Series, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of matrices: beside each other if all labels can be read, else below."""
    caption = list(draw_caption(drawable.caption, screen, 0))
    title_lines = count_title_lines(drawable.title, screen)
    around = len(caption) + title_lines + 2
    room = screen.shorten(around)
    yield [Segment("")]
    heatmaps = drawable.heatmaps
    gaps = HEATMAP_GAP_COLUMNS * (len(heatmaps) - 1)
    share = (screen.width - gaps) // len(heatmaps)
    if all(measure_least_width(heatmap) <= share for heatmap in heatmaps):
        yield from draw_side_by_side(heatmaps, replace(room, width=share))
        yield [Segment("")]
    else:
        yield from draw_below_each_other(heatmaps, room)
    yield from caption


def measure_least_width(heatmap: Heatmap) -> int:
    """Count the columns on which all labels of a heatmap can be read."""
    labelled = measure_gutter(heatmap) + STACKED_WIDTH * heatmap.columns.cells
    return max(LEAST_HEATMAP_COLUMNS, labelled)


def draw_below_each_other(heatmaps: Sequence[Heatmap], screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of heatmaps below each other, with an empty line after each of them."""
    height = screen.height
    if height:
        fair_share = height // len(heatmaps)
        height = max(fair_share, LEAST_SERIES_HEIGHT)
    for heatmap in heatmaps:
        yield from draw_picture_lines(heatmap, replace(screen, height=height))
        yield [Segment("")]


def draw_side_by_side(heatmaps: Sequence[Heatmap], screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of heatmaps from left to right, each as wide as the screen.

    The cells of all of them begin below the longest title.
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
    """Join lines to one, each of them but the last filled up to so many columns."""
    *filled_lines, last = lines
    joined: TerminalLine = []
    for line in filled_lines:
        space = " " * (width - measure_line(line))
        joined += [*line, Segment(space)]
    return joined + last


def measure_line(line: TerminalLine) -> int:
    """Count the columns of a line."""
    return sum(cell_len(segment.text) for segment in line)


# Tables and curves


@draw_body.register
def draw_table_lines(drawable: Table, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of names and numbers in columns, some of them on their colours."""
    width = None if screen.full else screen.width
    yield from draw_table_rows(drawable, width, screen.paint)
    yield from draw_caption(drawable.caption, screen, 0)


@draw_body.register
def draw_curves_lines(drawable: Curves, screen: Screen) -> Iterator[TerminalLine]:
    """Yield the lines of plots below each other, as high as the screen allows."""
    caption = list(draw_caption(drawable.caption, screen, 0))
    title_lines = count_title_lines(drawable.title, screen)
    around = len(caption) + title_lines + 1
    room = screen.shorten(around)
    yield from draw_chart_lines(drawable, screen.width, room.height, screen.paint)
    yield from caption


# Lines below a picture


def draw_closing_lines(drawable: Matrices, screen: Screen, gutter: int) -> Iterator[TerminalLine]:
    """Yield the colour bar with its scale and range, and the caption, wrapped to the screen."""
    width = screen.width - gutter
    draw_bar = draw_signed_bar if drawable.scale.signed else draw_colour_bar
    bar = draw_bar(drawable.scale, screen, width)
    yield [Segment(" " * gutter), *bar]
    masked = has_masked_cells(list_drawn_panels(drawable))
    axes = describe_axes(drawable, masked=masked)
    yield from draw_caption((axes, *drawable.caption), screen, gutter)


def draw_caption(caption: Sequence[str], screen: Screen, gutter: int) -> Iterator[TerminalLine]:
    """Yield the lines of a caption."""
    width = max(screen.width - gutter, LABEL_WIDTH)
    indent = " " * gutter
    for text in caption:
        for line in wrap_columns(text, width):
            yield [Segment(indent + line, DIM)]


def draw_colour_bar(scale: Scale, screen: Screen, room: int) -> TerminalLine:
    """Return a colour bar on so many columns.

    It goes from 0 to the top of the scale. After it come the colour beyond the scale, if there are
    such weights, and the name of the scale.
    """
    beyond: TerminalLine = []
    if scale.has_beyond:
        swatch = paint_row(np.array([BEYOND]), screen.paint, 2)
        beyond = [Segment("  "), *swatch, Segment(" beyond")]
    bottom = Segment("0 ")
    top = Segment(f" {scale.top:.2g}")
    name = Segment(f"  {name_scale(scale, screen)}", DIM)
    taken_width = measure_line([bottom, top, *beyond, name])
    width = max(min(MOST_BAR_COLUMNS, room - taken_width), 1)
    steps = choose_bar_steps(width)
    bar = paint_row(steps, screen.paint, 1)
    return [bottom, *bar, top, *beyond, name]


def draw_signed_bar(scale: Scale, screen: Screen, room: int) -> TerminalLine:
    """Return a colour bar of differences on so many columns.

    It goes from the largest negative difference over 0 to the largest positive one. The name of
    the scale comes after it where there is room.
    """
    top = f"{scale.top:.2g}"
    ends_width = 2 * len(top) + 6  # and zero
    room -= ends_width
    name = name_scale(scale, screen)
    needs_room = len(name) + 4
    name = f"  {name}" if needs_room <= room else ""
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
    """Choose the steps of a colour bar on so many columns, from the lowest to the highest."""
    positions = np.linspace(0, STEPS - 1, width)
    return positions.astype(np.int64)


def name_scale(scale: Scale, screen: Screen) -> str:
    """Return the name of a scale in signs that the screen has."""
    return scale.name.replace("√", "sqrt") if screen.is_ascii else scale.name


def explain_pooling(
    drawable: Heatmap | Grid,
    tokens: Sequence[int],
    cells: Sequence[int],
    screen: Screen,
    gutter: int,
) -> Iterator[TerminalLine]:
    """Yield lines that say how much was pooled to fit the screen; none if nothing was.

    tokens, cells: of each side.
    """
    pairs = zip(tokens, cells, strict=True)
    if not any(tokens_a_side > cells_a_side for tokens_a_side, cells_a_side in pairs):
        return
    size = " x ".join(map(str, cells))
    if len(set(cells)) == 1:
        size = str(cells[0])
    unit = name_pooled_unit(drawable)
    value = name_pooled_value(drawable)
    longest = max(tokens)
    pooled = f"{longest} {unit} on {size} cells"
    text = f"{pooled}: each is the largest {value} that it stands for"
    yield from draw_caption((text,), screen, gutter)
