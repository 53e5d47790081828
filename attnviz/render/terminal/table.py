"""Tables on a terminal: columns as wide as their text; those that do not fit go on below."""

from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

from rich.segment import Segment
from rich.style import Style

from attnviz.drawable import MASKED, Table
from attnviz.render.colour import STEPS
from attnviz.render.matrices import choose_level_steps, split_columns
from attnviz.render.terminal.cells import CellPaint, TerminalLine, style_text
from attnviz.render.terminal.text_width import count_columns, fit_columns

# Columns of the name of a row, and of a cell, where room is short.
MOST_NAME_WIDTH, LEAST_NAME_WIDTH, MOST_CELL_WIDTH = 32, 8, 48
HEADING_STYLE = Style(dim=True)


class TableWidths(NamedTuple):
    """The columns of the screen that the parts of a table take."""

    names: int
    """The names of the rows, and a space."""
    cells: list[int]
    """The text of each column, without the spaces on either side."""
    room: float
    """All columns of the table that stand beside each other, with their spaces."""


def draw_table_rows(table: Table, width: int | None, paint: CellPaint) -> Iterator[TerminalLine]:
    """Yield the lines of a table: a line of headings, and a line for each row.

    Columns that do not fit the screen follow in further blocks, after an empty line.

    width: the columns of the screen; None for as many as the table takes. paint: how this terminal
    shows colours.
    """
    widths = measure_table(table, width)
    spaced_widths = [cell_width + 2 for cell_width in widths.cells]
    blocks = split_columns(spaced_widths, widths.room, table.group)
    steps: list[list[int]] = choose_level_steps(table, STEPS).tolist()
    for i, block in enumerate(blocks):
        if i > 0:
            yield []
        yield draw_heading(table, block, widths, paint)
        for row, row_steps in enumerate(steps):
            yield draw_row(table, row, row_steps, block, widths, paint)


def measure_table(table: Table, width: int | None) -> TableWidths:
    """Measure the columns of a table, and make them narrower if it is wider than the screen.

    width: the columns of the screen; None for no limit.
    """
    widest_name = max(map(count_columns, (table.corner, *table.rows)))
    names = widest_name + 1
    columns = range(len(table.columns))
    cells = [measure_text_column(table, column) for column in columns]
    if table.even:
        cells = [max(cells)] * len(cells)
    whole_width = names + sum(cells) + 2 * len(cells)
    if width is None or whole_width <= width:
        return TableWidths(names, cells, inf)
    fair_share = min(MOST_NAME_WIDTH, width // 3)
    most_name_width = max(LEAST_NAME_WIDTH, fair_share)
    names = min(names, most_name_width + 1)
    room = width - names
    cells = [min(MOST_CELL_WIDTH, room - 2, cell_width) for cell_width in cells]
    return TableWidths(names, cells, room)


def measure_text_column(table: Table, column: int) -> int:
    """Count the columns of the widest text of a column of a table."""
    texts = [table.columns[column]]
    texts += [row[column] for row in table.cells]
    return max(map(count_columns, texts))


def draw_heading(table: Table, block: range, widths: TableWidths, paint: CellPaint) -> TerminalLine:
    """Return the line with the headings of the row names and of some columns of a table.

    block: the indices of the columns.
    """
    line = fit_name(table.corner, widths.names, paint)
    for column in block:
        heading = table.columns[column]
        is_left = column in table.texts
        line += fit_cell(heading, widths.cells[column], is_left, paint)
    return [Segment(line.rstrip(), HEADING_STYLE)]


def draw_row(
    table: Table,
    row: int,
    steps: Sequence[int],
    block: range,
    widths: TableWidths,
    paint: CellPaint,
) -> TerminalLine:
    """Return the line of a row of a table: its name, and its cells in some columns.

    row: its index. steps: for every column of the table the number of the cell's colour on the
    scale, 0 to STEPS - 1, or MASKED for no colour. block: the indices of the columns to draw.
    """
    line: TerminalLine = []
    plain = fit_name(table.rows[row], widths.names, paint)
    cells = table.cells[row]
    for column in block:
        is_left = column in table.texts
        text = fit_cell(cells[column], widths.cells[column], is_left, paint)
        step = steps[column]
        if step == MASKED or not paint.has_colours:
            plain += text
            continue
        line.append(Segment(plain))
        line.append(Segment(text, style_text(step, paint)))
        plain = ""
    line.append(Segment(plain.rstrip()))
    return line


def fit_name(name: str, width: int, paint: CellPaint) -> str:
    """Return the name of a row on ``width`` columns of the terminal, the last one a space."""
    text = fit_on_screen(name, width - 1, paint, left=True)
    return f"{text} "


def fit_cell(text: str, width: int, left: bool, paint: CellPaint) -> str:
    """Return the text of a cell on ``width`` columns of the terminal, with a space on either side.

    left: the text begins at the left, as names do; else it ends at the right, as numbers do.
    """
    fitted = fit_on_screen(text, width, paint, left=left)
    return f" {fitted} "


def fit_on_screen(text: str, width: int, paint: CellPaint, *, left: bool) -> str:
    """Return a text padded or cut to ``width`` columns, in ASCII if the terminal has nothing else.

    left: the text begins at the left; else it ends at the right.
    """
    if text.isascii() and len(text) <= width:  # nearly all are, and this is four times as fast
        return text.ljust(width) if left else text.rjust(width)
    fitted = fit_columns(text, width, left=left)
    return fitted.replace("…", "~") if paint.is_ascii else fitted
