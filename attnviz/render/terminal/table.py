"""Tables on a terminal: columns as wide as what stands in them, those that do not fit in blocks below."""

from collections.abc import Iterator, Sequence
from math import inf

from rich.segment import Segment
from rich.style import Style

from attnviz.drawable import MASKED, Steps, Table
from attnviz.render.colour import STEPS
from attnviz.render.matrices import blocks, level_steps
from attnviz.render.terminal.cells import Line, Paint, text_style
from attnviz.render.terminal.text_width import columns_of, fit

NAME_WIDTH, LEAST_NAME, TEXT_WIDTH = (
    32,
    8,
    48,
)  # columns of a row's name, and of a cell, at most, where room is short
PLAIN, DIM = Style(), Style(dim=True)


def table_lines(table: Table, width: int | None, paint: Paint) -> Iterator[Line]:
    """A heading and a line a row, on so many columns, or as many as it takes; an empty line between blocks."""
    names = max(map(columns_of, (table.corner, *table.rows))) + 1
    widths = [
        max(columns_of(text) for text in (name, *(row[j] for row in table.cells)))
        for j, name in enumerate(table.columns)
    ]
    widths = [max(widths)] * len(widths) if table.even else widths
    room = inf
    if width is not None and names + sum(widths) + 2 * len(widths) > width:
        names = min(names, max(LEAST_NAME, min(NAME_WIDTH, width // 3)) + 1)
        room = width - names
        widths = [min(TEXT_WIDTH, room - 2, each) for each in widths]
    steps = level_steps(table, STEPS)
    for i, block in enumerate(blocks([each + 2 for each in widths], room, table.group)):
        if i:
            yield []
        yield from block_lines(table, block, names, widths, steps, paint)


def block_lines(
    table: Table, block: range, names: int, widths: Sequence[int], steps: Steps, paint: Paint
) -> Iterator[Line]:
    """The names of the rows and some of the columns."""
    heading = "".join(
        cell_text(table.columns[j], widths[j], j in table.texts, paint) for j in block
    )
    yield [Segment((named(table.corner, names, paint) + heading).rstrip(), DIM)]
    for name, row, at in zip(table.rows, table.cells, steps.tolist(), strict=True):
        line, plain = [], named(name, names, paint)
        for j in block:
            text = cell_text(row[j], widths[j], j in table.texts, paint)
            if at[j] == MASKED or not paint.coloured:
                plain += text
                continue
            line += [Segment(plain), Segment(text, text_style(at[j], paint))]
            plain = ""
        yield [*line, Segment(plain.rstrip())]


def named(name: str, width: int, paint: Paint) -> str:
    """The name of a row, and a space."""
    return f"{fitted(name, width - 1, paint, left=True)} "


def cell_text(text: str, width: int, left: bool, paint: Paint) -> str:
    """What stands in a cell, a space on either side: names begin at the left, numbers end at the right."""
    return f" {fitted(text, width, paint, left=left)} "


def fitted(text: str, width: int, paint: Paint, *, left: bool) -> str:
    """Text on exactly so many columns, with nothing but ASCII where that is all there is."""
    if text.isascii() and len(text) <= width:  # nearly all are, and this is four times as fast
        return text.ljust(width) if left else text.rjust(width)
    found = fit(text, width, left=left)
    return found.replace("…", "~") if paint.depth == "ascii" else found
