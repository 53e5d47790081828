"""A table as a figure: text in columns, on the colours of its levels.

Columns that do not fit the width go on below.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attnviz.drawable import MASKED, Steps, Table
from attnviz.render.figure.layout import (
    LEAST_POINTS,
    POINTS,
    SLACK,
    Ems,
    cut_text,
)
from attnviz.render.figure.sheet import (
    COLOURS,
    LABEL,
    SMALL,
    Box,
    Sheet,
    choose_ink,
)
from attnviz.render.matrices import choose_level_steps, split_columns

CELL_PAD = 0.45  # ems on either side of the text of a cell
ROW_HEIGHT = 1.5  # ems from one line to the next
MOST_NAME_SHARE, MOST_CELL_SHARE = 0.4, 0.6  # of the width, for a row's name and for a cell


class TablePlan(NamedTuple):
    """The layout of a table, in ems of its font."""

    points: float
    """The size of the font."""
    names: float
    """The width of the names of the rows."""
    widths: tuple[float, ...]
    """The width of each column."""
    blocks: tuple[range, ...]
    """The columns that stand beside each other."""

    @property
    def em(self) -> float:
        """The size of the font in inches."""
        return self.points / POINTS

    @property
    def row_height(self) -> float:
        """Inches from one line to the next."""
        return ROW_HEIGHT * self.em


def draw_table_figure(table: Table, sheet: Sheet) -> None:
    """Draw a table on a sheet, some of its cells on colours, and its caption below it.

    The sheet is a figure that is filled downwards. Columns that do not fit the width of the sheet
    stand in further blocks below.
    """
    plan = plan_table(table, sheet)
    for i, block in enumerate(plan.blocks):
        if i > 0:
            sheet.y += plan.row_height
        draw_block(table, plan, block, sheet)
    sheet.y += plan.em / 2
    for line in table.caption:
        sheet.write_lines(line, SMALL)


def measure_uncut_table(table: Table, ems: Ems) -> tuple[float, list[float]]:
    """Return the width of the row names, and of each column, if no text is cut.

    Widths are in ems, multiples of the font's size, with the space beside the text. ems: measures
    the width of a text in ems.
    """
    widest_name = max(map(ems, (table.corner, *table.rows)))
    names = widest_name + 2 * CELL_PAD
    widths: list[float] = []
    for column, heading in enumerate(table.columns):
        texts = [heading, *(row[column] for row in table.cells)]
        widest = max(map(ems, texts))
        widths.append(widest + 2 * CELL_PAD)
    if table.even:
        widths = [max(widths)] * len(widths)
    return names, widths


def plan_table(table: Table, sheet: Sheet) -> TablePlan:
    """Lay out a table on a sheet, with columns as wide as their text.

    If the columns do not fit beside each other, the font becomes smaller. If they do not fit in the
    smallest font either, wide columns are narrowed, and columns stand in blocks below each other.
    """
    usual_points = sheet.measure_em(LABEL) * POINTS
    names, widths = measure_uncut_table(table, sheet.ems)
    fitting_points = sheet.room * POINTS / (names + sum(widths))
    points = max(min(usual_points, fitting_points), min(usual_points, LEAST_POINTS))
    room = sheet.room * POINTS / points + SLACK  # in ems
    if names + sum(widths) > room:
        names = min(names, MOST_NAME_SHARE * room)
        widths = [min(width, MOST_CELL_SHARE * room) for width in widths]
    blocks = split_columns(widths, room - names, table.group)
    return TablePlan(points, names, tuple(widths), tuple(blocks))


def draw_block(table: Table, plan: TablePlan, block: range, sheet: Sheet) -> None:
    """Draw some columns of a table, with the names of all rows and a line below the headings.

    The sheet is filled down to the last row.

    block: the indices of the columns.
    """
    top = sheet.y
    widths = [plan.widths[column] for column in block]
    edges = plan.names + np.cumsum([0.0, *widths])  # ems from the left of the table
    starts = dict(zip(block, edges[:-1], strict=True))
    steps = choose_level_steps(table, COLOURS)
    fill_cells(plan, starts, steps, sheet)
    write_heading(table, plan, starts, sheet)
    for row in range(len(table.rows)):
        write_row(table, plan, row, starts, steps[row], sheet)
    lines = len(table.rows) + 1
    sheet.y = top + lines * ROW_HEIGHT * plan.em
    under_heading = top + plan.row_height
    right = sheet.x + edges[-1] * plan.em
    sheet.draw_strokes([((sheet.x, under_heading), (right, under_heading))])


def fill_cells(plan: TablePlan, starts: Mapping[int, float], steps: Steps, sheet: Sheet) -> None:
    """Fill the cells of some columns of a table with their colours.

    starts: the columns by index, with the ems from the left of the table to each. steps: the number
    of the colour of every cell of the table in the sheet's palette, or MASKED for none: (row,
    column).
    """
    palette = sheet.choose_palette()
    boxes: list[Box] = []
    colours: list[npt.NDArray[np.float64]] = []
    for row, row_steps in enumerate(steps.tolist()):
        top = sheet.y + (row + 1) * ROW_HEIGHT * plan.em
        for column, start in starts.items():
            step = row_steps[column]
            if step == MASKED:
                continue
            left = sheet.x + start * plan.em
            width = plan.widths[column] * plan.em
            boxes.append((left, top, width, plan.row_height))
            colours.append(palette[step] / 255)
    sheet.fill(boxes, facecolors=colours, linewidths=0)


def write_heading(table: Table, plan: TablePlan, starts: Mapping[int, float], sheet: Sheet) -> None:
    """Write the names of some columns, and the heading of the row names, on the first line.

    starts: the columns by index, with the ems from the left of the table to each.
    """
    y = find_line(0, plan, sheet)
    ink = sheet.mix_dim_colour()
    write_name(table.corner, plan, y, sheet, color=ink)
    for column, start in starts.items():
        is_left = column in table.texts
        cell = CellPosition(start, plan.widths[column], y, is_left)
        write_cell(table.columns[column], cell, plan, sheet, color=ink)


def write_row(
    table: Table,
    plan: TablePlan,
    row: int,
    starts: Mapping[int, float],
    steps: Steps,
    sheet: Sheet,
) -> None:
    """Write the name of a row of a table, and its cells in some columns.

    row: its index. starts: the columns by index, with the ems from the left of the table to each.
    steps: the number of the colour of each cell of the row in the sheet's palette, or MASKED for
    none: (column,). It decides whether black or white text can be read there.
    """
    palette = sheet.choose_palette()
    y = find_line(row + 1, plan, sheet)
    write_name(table.rows[row], plan, y, sheet)
    for column, start in starts.items():
        step = steps[column]
        look: dict[str, Any] = {}
        if step != MASKED:
            look["color"] = choose_ink(palette[step])
        is_left = column in table.texts
        cell = CellPosition(start, plan.widths[column], y, is_left)
        text = table.cells[row][column]
        write_cell(text, cell, plan, sheet, **look)


def find_line(line: int, plan: TablePlan, sheet: Sheet) -> float:
    """Return the inches from the top of the sheet to the middle of a line of a table.

    line: counts from the headings, which are line 0. ``sheet.y`` is the top of the headings.
    """
    return sheet.y + (line + 0.5) * ROW_HEIGHT * plan.em


def write_name(name: str, plan: TablePlan, y: float, sheet: Sheet, **look: Any) -> None:
    """Write the name of a row, or the heading of these names, at the left of a table.

    y: inches from the top of the sheet to the middle of the line. look: settings of matplotlib's
    Text, such as a colour.
    """
    cell = CellPosition(0, plan.names, y, left=True)
    write_cell(name, cell, plan, sheet, **look)


class CellPosition(NamedTuple):
    """The place of a text in a table."""

    start: float
    """Ems from the left of the table to the column."""
    width: float
    """Ems of the column."""
    y: float
    """Inches from the top of the sheet to the middle of the line."""
    left: bool
    """The text begins at the left of the column; else it ends at its right."""


def write_cell(text: str, cell: CellPosition, plan: TablePlan, sheet: Sheet, **look: Any) -> None:
    """Write a text into a cell of a table, cut with an ellipsis where it is wider.

    cell: where it stands, and on which side of its column. plan: the layout, with the font's size.
    look: further settings of matplotlib's Text.
    """
    if not text:
        return
    room = cell.width - 2 * CELL_PAD
    text = cut_text(text, room, sheet.ems)
    if cell.left:
        alignment = "left"
        offset = cell.start + CELL_PAD
    else:
        alignment = "right"
        offset = cell.start + cell.width - CELL_PAD
    x = sheet.x + offset * plan.points / POINTS
    settings = {"va": "center", "ha": alignment, "fontsize": plan.points}
    sheet.write(x, cell.y, text, LABEL, **(settings | look))
