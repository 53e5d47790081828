"""A table as a figure: text in columns, on the colours of its levels; what does not fit the width goes on below."""

from typing import Any, NamedTuple

import numpy as np

from attnviz.drawable import MASKED, Table
from attnviz.render.figure.layout import LEAST, Ems, cut
from attnviz.render.figure.sheet import COLOURS, LABEL, SMALL, Sheet, ink_on
from attnviz.render.matrices import blocks, level_steps

SIDE = 0.45  # ems on either side of the text of a cell
ROW = 1.5  # ems from one line to the next
NAME, TEXT = 0.4, 0.6  # of the width that a row's name, and a cell, may have


class Columns(NamedTuple):
    """How a table is laid out, in ems of its font."""

    points: float
    """The size of the font."""
    names: float
    """The width of the names of the rows."""
    widths: tuple[float, ...]
    blocks: tuple[range, ...]
    """The columns that stand beside each other."""


def draw_table(table: Table, sheet: Sheet) -> None:
    """Names and numbers in columns, some of them on their colours, and the caption."""
    found = columns(table, sheet)
    em = found.points / 72
    for i, block in enumerate(found.blocks):
        sheet.y += ROW * em * (i > 0)
        draw_block(table, found, block, sheet)
    sheet.y += em / 2
    for line in table.caption:
        sheet.lines(line, SMALL)


def natural(table: Table, ems: Ems) -> tuple[float, list[float]]:
    """The width of the names of the rows and those of the columns, in ems, where nothing is cut."""
    names = max(map(ems, (table.corner, *table.rows))) + 2 * SIDE
    cells = ((name, *(row[j] for row in table.cells)) for j, name in enumerate(table.columns))
    widths = [max(map(ems, texts)) + 2 * SIDE for texts in cells]
    return names, [max(widths)] * len(widths) if table.even else widths


def columns(table: Table, sheet: Sheet) -> Columns:
    """Columns as wide as what stands in them: in a smaller font if they do not fit, and then in blocks."""
    usual = sheet.em(LABEL) * 72
    names, widths = natural(table, sheet.ems)
    points = max(min(usual, sheet.room * 72 / (names + sum(widths))), min(usual, LEAST))
    room = sheet.room * 72 / points + 1e-6
    if names + sum(widths) > room:
        names = min(names, NAME * room)
        widths = [min(width, TEXT * room) for width in widths]
    return Columns(points, names, tuple(widths), tuple(blocks(widths, room - names, table.group)))


def draw_block(table: Table, found: Columns, block: range, sheet: Sheet) -> None:
    """The names of the rows and some of the columns, a line under the heading."""
    em, top = found.points / 72, sheet.y
    starts = found.names + np.cumsum([0.0, *(found.widths[j] for j in block)])
    steps, colours = level_steps(table, COLOURS), sheet.palette()
    filled = [
        (i, k) for i in range(len(table.rows)) for k, j in enumerate(block) if steps[i, j] != MASKED
    ]
    boxes = [
        (sheet.x + starts[k] * em, top + (i + 1) * ROW * em, found.widths[block[k]] * em, ROW * em)
        for i, k in filled
    ]
    sheet.fill(
        boxes, facecolors=[colours[steps[i, block[k]]] / 255 for i, k in filled], linewidths=0
    )
    lines = [(table.corner, table.columns), *zip(table.rows, table.cells, strict=True)]
    for i, (name, cells) in enumerate(lines):
        y, usual = top + (i + 0.5) * ROW * em, {} if i else {"color": sheet.dim()}
        write(sheet, found, name, 0, found.names, y, left=True, **usual)
        for start, j in zip(starts, block, strict=False):  # the last is where the block ends
            coloured = i and steps[i - 1, j] != MASKED
            look = {"color": ink_on(colours[steps[i - 1, j]])} if coloured else usual
            write(sheet, found, cells[j], start, found.widths[j], y, left=j in table.texts, **look)
    sheet.y, line = top + len(lines) * ROW * em, top + ROW * em
    sheet.strokes([((sheet.x, line), (sheet.x + starts[-1] * em, line))])


def write(
    sheet: Sheet,
    found: Columns,
    text: str,
    start: float,
    width: float,
    y: float,
    *,
    left: bool,
    **look: Any,
) -> None:
    """A text in its column: it begins at the left, or ends at the right, of which it is never outside."""
    if not text:
        return
    text = cut(text, width - 2 * SIDE, sheet.ems)
    x = sheet.x + (start + SIDE if left else start + width - SIDE) * found.points / 72
    look = {"va": "center", "ha": "left" if left else "right", "fontsize": found.points} | look
    sheet.write(x, y, text, LABEL, **look)
