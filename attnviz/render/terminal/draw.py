"""Drawables on a terminal: cells of colour, half blocks or shades, as wide and as high as the screen allows.

Matrices are pooled to the screen first, so that a picture costs milliseconds at any length of text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from itertools import zip_longest

import numpy as np
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from attnviz.drawable import (
    MASKED,
    Curves,
    Grid,
    Heatmap,
    Panel,
    Picture,
    Scale,
    Series,
    Strip,
    Table,
    map_texts,
    starting,
)
from attnviz.render.colour import STEPS
from attnviz.render.matrices import TOKENS, Matrices, axes_line, counted, panels, what
from attnviz.render.terminal.cells import (
    BEYOND,
    VALUE_WIDTH,
    Line,
    Paint,
    cell_lines,
    full_cells,
    number,
    signed_number,
    steps_of,
    text_style,
    value_cell,
)
from attnviz.render.terminal.chart import chart_lines
from attnviz.render.terminal.table import table_lines
from attnviz.render.terminal.text_width import (
    LABEL_HEIGHT,
    STACKED_WIDTH,
    ascii_of,
    columns_of,
    cut,
    fit,
    stack,
    steady,
    ticks,
    wrap,
)

LABEL_WIDTH = 12
THUMBNAIL = range(5, 17)  # sides of a thumbnail, in cells
BAR = 24  # columns of the colour bar
LEAST = 6  # lines of cells, on a screen however low
APART, BESIDE = (
    3,
    32,
)  # columns between matrices beside each other, and of each with its colour bar, at least
LOW = 20  # lines of a matrix among others below each other: on a screen that has fewer for each, they scroll
VIRIDIS = Paint()
DIM, BOLD, CHOSEN = Style(dim=True), Style(bold=True), Style(bold=True, underline=True)


@dataclass(frozen=True)
class Screen:
    """What is drawn on: columns, lines if they are few, and how cells are painted."""

    width: int = 80
    height: int | None = None
    paint: Paint = VIRIDIS
    full: bool = False
    """Nothing is pooled: a cell for every token, however wide and high that is."""

    def of(self, scale: Scale) -> "Screen":
        """The same for cells on a scale, which may be one of differences."""
        return replace(self, paint=self.paint._replace(signed=scale.signed))

    @property
    def ascii(self) -> bool:
        """Whether nothing but ASCII can be shown."""
        return self.paint.depth == "ascii"


def draw(drawable: Picture, screen: Screen) -> Iterator[Line]:
    """The lines of a drawable's picture: its title, its cells, its colour bar and caption."""
    if screen.ascii:
        drawable = in_ascii(drawable)
    for line in wrap(drawable.title, screen.width):
        yield [Segment(line, BOLD)]
    yield from body(drawable, screen)


def in_ascii(drawable: Picture) -> Picture:
    """Return a drawable with all its text in ASCII, so that what is measured is what is shown."""

    def short_ascii(label: str) -> str:
        return cut(ascii_of(label))

    return map_texts(drawable, ascii_of, short_ascii)


@singledispatch
def body(drawable: Picture, screen: Screen) -> Iterator[Line]:
    """What stands below the title."""
    raise TypeError(f"no way to draw {type(drawable).__name__} on a {screen.paint.depth} terminal")


@body.register
def draw_heatmap(drawable: Heatmap, screen: Screen) -> Iterator[Line]:
    """Numbers in the cells if they fit, else labels stacked above the columns, else half blocks with ticks."""
    screen = screen.of(drawable.scale)
    gutter = gutter_of(drawable)
    room = lines_left(drawable, screen, gutter)
    numbered = number_width(drawable)
    fits = screen.full or len(drawable.rows) + (1 if numbered else LABEL_HEIGHT) <= room
    single = (drawable.rows.step, drawable.columns.step) == (1, 1)
    if single and fits and gutter + numbered + VALUE_WIDTH * len(drawable.columns) <= screen.width:
        yield from value_lines(drawable, screen, gutter, numbered)
    elif single and (
        screen.full or (fits and gutter + STACKED_WIDTH * len(drawable.columns) <= screen.width)
    ):
        yield from stacked_lines(drawable, screen, gutter)
    else:
        sides = len(drawable.rows), len(drawable.columns)
        shown = pool_to(drawable, screen, gutter, room)
        told = list(pooling_lines(drawable, sides, shown.values.shape, screen, gutter))
        if told:  # which takes room
            shown = pool_to(drawable, screen, gutter, room - len(told))
        yield from dense_lines(drawable, shown, screen, gutter)
        yield from pooling_lines(drawable, sides, shown.values.shape, screen, gutter)
    yield from closing_lines(drawable, screen, gutter)


def gutter_of(drawable: Heatmap) -> int:
    """Columns of the labels of the rows, and of the space beside them."""
    return min(LABEL_WIDTH, max(map(columns_of, drawable.rows.labels))) + 1


def number_width(drawable: Heatmap) -> int:
    """Columns of the number beside each row, which is the legend of the columns; 0 if these are other tokens."""
    if drawable.rows.labels != drawable.columns.labels:
        return 0
    return len(str(max(drawable.rows.numbers))) + 1


def lines_left(drawable: Matrices, screen: Screen, gutter: int) -> int:
    """Lines for the cells and what stands above them, where title and closing lines and a prompt take theirs."""
    if screen.height is None:
        return 1 << 30
    around = sum(
        1 for _ in (*wrap(drawable.title, screen.width), *closing_lines(drawable, screen, gutter))
    )
    return screen.height - around - 1


def value_lines(drawable: Heatmap, screen: Screen, gutter: int, numbered: int) -> Iterator[Line]:
    """Each cell with its weight to two digits; columns numbered as the rows are, or their labels stacked."""
    if numbered:
        header = "".join(f"{i:>{VALUE_WIDTH - 1}} " for i in drawable.columns.numbers)
        yield [Segment(" " * (gutter + numbered) + header.rstrip(), DIM)]
    elif (
        drawable.columns.name not in TOKENS
        and max(map(columns_of, drawable.columns.labels)) < VALUE_WIDTH
    ):
        header = "".join(f"{name:>{VALUE_WIDTH - 1}} " for name in drawable.columns.labels)
        yield [Segment(" " * gutter + header.rstrip(), DIM)]
    else:
        for line in stack(drawable.columns.labels, VALUE_WIDTH):
            yield [Segment(f"{' ' * gutter} {line}")]
    cells, rows = steps_of(drawable.panel, drawable.scale), drawable.rows
    for label, at, values, row in zip(
        rows.labels, rows.numbers, drawable.panel.values, cells, strict=True
    ):
        start = [
            Segment(fit(label, gutter - 1) + " "),
            Segment(f"{at:>{numbered - 1}} " if numbered else "", DIM),
        ]
        yield start + [
            value_cell(value, int(step), screen.paint)
            for value, step in zip(values, row, strict=True)
        ]


def stacked_lines(drawable: Heatmap, screen: Screen, gutter: int) -> Iterator[Line]:
    """Two columns a cell, the label of each column written downwards above it."""
    for line in stack(drawable.columns.labels):
        yield [Segment(" " * gutter + line)]
    for label, row in zip(
        drawable.rows.labels, steps_of(drawable.panel, drawable.scale), strict=True
    ):
        yield [Segment(fit(label, gutter - 1) + " "), *full_cells(row, screen.paint, STACKED_WIDTH)]


def pool_to(drawable: Heatmap, screen: Screen, gutter: int, room: int) -> Panel:
    """The panel with as many cells as the screen has room for, or all of them."""
    if screen.full:
        return drawable.panel
    high = max(room - 1, LEAST) * (2 if screen.paint.coloured else 1)
    return drawable.panel.pooled(min(high, screen.width - gutter), screen.width - gutter)


def dense_lines(drawable: Heatmap, shown: Panel, screen: Screen, gutter: int) -> Iterator[Line]:
    """One column a cell, two rows a line where there is colour."""
    cells = steps_of(shown, drawable.scale)
    firsts, starts = (
        starting(count, len_) * axis.step
        for count, len_, axis in zip(
            drawable.panel.values.shape, cells.shape, (drawable.rows, drawable.columns), strict=True
        )
    )
    numbers = [drawable.columns.numbers[i] for i in starts]
    yield [Segment(" " * gutter + ticks(numbers, "|" if screen.ascii else "╷"), DIM)]
    high = 2 if screen.paint.coloured else 1
    for top, line in zip(range(0, len(cells), high), cell_lines(cells, screen.paint), strict=True):
        yield [Segment(fit(drawable.rows.labels[firsts[top]], gutter - 1) + " "), *line]


@body.register
def draw_grid(drawable: Grid, screen: Screen) -> Iterator[Line]:
    """Thumbnails, as many beside each other as fit; a layer's heads go on below where they do not."""
    screen = screen.of(drawable.scale)
    gutter = max(map(cell_len, drawable.rows)) + 1
    side = thumbnail_side(drawable, screen, gutter, lines_left(drawable, screen, gutter))
    wide = max(side, max(map(cell_len, drawable.columns))) + 1
    abreast = max(1, (screen.width - gutter) // wide)
    for first in range(0, len(drawable.columns), abreast):
        heads = slice(first, first + abreast)
        yield [
            Segment(
                " " * gutter
                + "".join(fit(name, wide, left=True) for name in drawable.columns[heads]),
                DIM,
            )
        ]
        for label, row in zip(drawable.rows, drawable.panels, strict=True):
            yield from thumbnail_lines(label, row[heads], drawable, screen, gutter, side, wide)
    yield from pooling_lines(drawable, (drawable.tokens,), (side,), screen, gutter)
    yield from closing_lines(drawable, screen, gutter)


def thumbnail_side(drawable: Grid, screen: Screen, gutter: int, room: int) -> int:
    """Cells of a thumbnail's side: as many as let all heads stand abreast and all layers below, within bounds."""
    longest: int = max(max(panel.values.shape) for panel in panels(drawable))
    if screen.full:
        return longest
    fair = (screen.width - gutter) // len(drawable.columns) - 1
    room -= 2 + len(list(pooling_lines(drawable, (drawable.tokens,), (1,), screen, gutter)))
    low = (room // len(drawable.rows) - 1) * (2 if screen.paint.coloured else 1)
    return min(max(min(fair, low), THUMBNAIL.start), THUMBNAIL.stop - 1, longest)


def thumbnail_lines(
    label: str,
    row: Sequence[Panel | None],
    drawable: Grid,
    screen: Screen,
    gutter: int,
    side: int,
    wide: int,
) -> Iterator[Line]:
    """One row of thumbnails, and the empty line below it."""
    columns = [
        list(cell_lines(steps_of(panel.pooled(side, side), drawable.scale), screen.paint))
        if panel
        else []
        for panel in row
    ]
    for i in range(max(map(len, columns))):
        line = [Segment(fit(label if i == 0 else "", gutter - 1) + " ", DIM)]
        for column in columns:
            cells = column[i] if i < len(column) else []
            line += [*cells, Segment(" " * (wide - sum(cell_len(cell.text) for cell in cells)))]
        yield line
    yield [Segment("")]


@body.register
def draw_strip(drawable: Strip, screen: Screen) -> Iterator[Line]:
    """The text, wrapped, each token on its colour; without colours each with its weight."""
    screen = screen.of(drawable.scale)
    line, used = Line(), 0
    for token, spaced in zip(strip_tokens(drawable, screen), drawable.tokens.spaced, strict=True):
        length = cell_len(token.text)
        if used and used + spaced + length > screen.width:
            yield line
            line, used = Line(), 0
        if used and spaced:
            line.append(Segment(" "))
        line.append(token)
        used += length + bool(used and spaced)
    yield line
    yield [Segment("")]
    yield from closing_lines(drawable, screen, 0)


def strip_tokens(drawable: Strip, screen: Screen) -> Iterator[Segment]:
    """The tokens of a text on their colours."""
    cells = steps_of(drawable.panel, drawable.scale)[0]
    widest = screen.width - VALUE_WIDTH - 4
    for i, (label, value, at) in enumerate(
        zip(drawable.tokens.labels, drawable.panel.values[0], cells, strict=True)
    ):
        text = steady(label)
        text = fit(text, widest) if cell_len(text) > widest else text
        style = DIM if at == MASKED else text_style(int(at), screen.paint)
        if not screen.paint.coloured and at != MASKED and abs(value) >= 0.005:
            text = f"{text}({(signed_number if drawable.scale.signed else number)(value).strip()})"
        if i == drawable.chosen:
            style = style + CHOSEN
            text = text if screen.paint.coloured else f">{text}<"
        yield Segment(text, style)


@body.register
def draw_series(drawable: Series, screen: Screen) -> Iterator[Line]:
    """Matrices beside each other if all their labels can be read so, else below each other."""
    many = len(drawable.heatmaps)
    share = (screen.width - APART * (many - 1)) // many
    caption = list(caption_lines(drawable.caption, screen, 0))
    around = len(caption) + len(list(wrap(drawable.title, screen.width))) + 2
    left = screen.height and screen.height - around
    yield [Segment("")]
    if all(
        max(BESIDE, gutter_of(one) + STACKED_WIDTH * one.columns.cells) <= share
        for one in drawable.heatmaps
    ):
        yield from beside(drawable.heatmaps, replace(screen, width=share, height=left))
        yield [Segment("")] * bool(caption)
    else:
        each = left and max(left // many, LOW)
        for one in drawable.heatmaps:
            yield from draw(one, replace(screen, height=each))
            yield [Segment("")]
    yield from caption


def beside(heatmaps: Sequence[Heatmap], screen: Screen) -> Iterator[Line]:
    """Pictures from left to right, each as wide as the screen, the cells of all of them below the longest title."""
    titles = [list(wrap(one.title, screen.width)) for one in heatmaps]
    deepest = max(map(len, titles))
    pictures = []
    for one, title in zip(heatmaps, titles, strict=True):
        spare = deepest - len(title)
        low = replace(screen, height=screen.height and screen.height - spare)
        pictures.append(
            [*([Segment(line, BOLD)] for line in title), *[[]] * spare, *body(one, low)]
        )
    for lines in zip_longest(*pictures, fillvalue=[]):
        *before, last = lines
        apart = (Segment(" " * (screen.width + APART - length(line))) for line in before)
        yield [
            part for line, space in zip(before, apart, strict=True) for part in (*line, space)
        ] + last


def length(line: Line) -> int:
    """Columns of a line."""
    return sum(cell_len(part.text) for part in line)


@body.register
def draw_table(drawable: Table, screen: Screen) -> Iterator[Line]:
    """Names and numbers in columns, some of them on their colours."""
    yield from table_lines(drawable, None if screen.full else screen.width, screen.paint)
    yield from caption_lines(drawable.caption, screen, 0)


@body.register
def draw_curves(drawable: Curves, screen: Screen) -> Iterator[Line]:
    """Plots below each other, as high as the screen allows."""
    caption = list(caption_lines(drawable.caption, screen, 0))
    around = len(caption) + len(list(wrap(drawable.title, screen.width))) + 1
    yield from chart_lines(
        drawable, screen.width, screen.height and screen.height - around, screen.paint
    )
    yield from caption


def closing_lines(drawable: Matrices, screen: Screen, gutter: int) -> Iterator[Line]:
    """The colour bar with its scale and range, and the caption, wrapped to the screen."""
    bar = signed_bar if drawable.scale.signed else colour_bar
    yield [Segment(" " * gutter), *bar(drawable.scale, screen, screen.width - gutter)]
    masked = not all(panel.visible.all() for panel in panels(drawable))
    yield from caption_lines(
        (axes_line(drawable, masked=masked), *drawable.caption), screen, gutter
    )


def caption_lines(caption: Sequence[str], screen: Screen, gutter: int) -> Iterator[Line]:
    """What is said below a picture."""
    for text in caption:
        for line in wrap(text, max(screen.width - gutter, LABEL_WIDTH)):
            yield [Segment(" " * gutter + line, DIM)]


def colour_bar(scale: Scale, screen: Screen, room: int) -> Line:
    """From 0 to the top of the scale, what is beyond it, and the name of the scale."""
    paint, name = screen.paint, scale_name(scale, screen)
    beyond = (
        [Segment("  "), *full_cells(np.array([BEYOND]), paint, 2), Segment(" beyond")]
        if scale.has_beyond
        else []
    )
    told = f" {scale.top:.2g}", f"  {name}"
    taken = cell_len("0 " + "".join(told)) + sum(cell_len(part.text) for part in beyond)
    steps = np.linspace(0, STEPS - 1, max(min(BAR, room - taken), 1)).astype(int)
    return [
        Segment("0 "),
        *full_cells(steps, paint, 1),
        Segment(told[0]),
        *beyond,
        Segment(told[1], DIM),
    ]


def signed_bar(scale: Scale, screen: Screen, room: int) -> Line:
    """From the largest negative difference over 0 to the largest positive one, and the name of the scale."""
    top, name = f"{scale.top:.2g}", scale_name(scale, screen)
    room -= 2 * len(top) + 6  # for the ends and zero
    name = f"  {name}" if len(name) + 4 <= room else ""
    half = max(min(BAR, room - len(name)) // 2, 1)
    steps = np.linspace(0, STEPS - 1, 2 * half).astype(int)
    below, above = (full_cells(part, screen.paint, 1) for part in (steps[:half], steps[half:]))
    zero = Segment(" 0 ", text_style(STEPS // 2, screen.paint))
    return [Segment(f"-{top} "), *below, zero, *above, Segment(f" {top}"), Segment(name, DIM)]


def scale_name(scale: Scale, screen: Screen) -> str:
    """The name of a scale in the signs of the screen."""
    return scale.name.replace("√", "sqrt") if screen.ascii else scale.name


def pooling_lines(
    drawable: Heatmap | Grid,
    sides: Sequence[int],
    cells: Sequence[int],
    screen: Screen,
    gutter: int,
) -> Iterator[Line]:
    """What was pooled to fit the screen, by the tokens and the cells of each side; nothing if nothing was."""
    if any(count > left for count, left in zip(sides, cells, strict=True)):
        told = " x ".join(map(str, cells)) if len(set(cells)) > 1 else cells[0]
        named = counted(drawable)
        text = f"{max(sides)} {named} on {told} cells: each is the largest {what(drawable)} that it stands for"
        yield from caption_lines((text,), screen, gutter)
