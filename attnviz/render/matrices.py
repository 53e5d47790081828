"""What all media do with matrices and tables, and say of them: what fits where there is little room, what sides are."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from attnviz.drawable import MASKED, Grid, Heatmap, Panel, Steps, Strip, Table

Matrices: TypeAlias = Heatmap | Grid | Strip  # drawables on one colour scale
TOKENS = "queries", "keys"  # the axes of which labels may be as long as a word


def blocks(widths: Sequence[float], room: float, group: int = 1) -> Iterator[range]:
    """The columns of a table that stand beside each other: as many groups as fit, and one at least."""
    first, used = 0, 0.0
    for column in range(0, len(widths), group):
        width = sum(widths[column : column + group])
        if column > first and used + width > room:
            yield range(first, column)
            first, used = column, 0
        used += width
    yield range(first, len(widths))


def level_steps(table: Table, count: int) -> Steps:
    """The colour of each cell of a table (row, column): 0 to count - 1, MASKED for none."""
    inside = np.clip(np.nan_to_num(table.levels) * count, 0, count - 1)
    return np.where(np.isnan(table.levels), MASKED, inside).astype(np.int64)


def panels(drawable: Matrices) -> list[Panel]:
    """The matrices of a drawable."""
    if isinstance(drawable, Grid):
        return [panel for row in drawable.panels for panel in row if panel]
    return [drawable.panel]


def of_heads(drawable: Matrices) -> bool:
    """Whether a cell is a number of a head, rather than what one token gives to another."""
    return isinstance(drawable, Heatmap) and not {drawable.rows.name, drawable.columns.name} & set(
        TOKENS
    )


def axes_line(drawable: Matrices, *, masked: bool) -> str:
    """What rows and columns are, and how what is masked looks; empty if there is nothing to say."""
    if isinstance(drawable, Strip):
        return "dim: masked" if masked else ""
    rows, columns = (
        (drawable.rows.name, drawable.columns.name)
        if isinstance(drawable, Heatmap)
        else ("queries", "keys")
    )
    blank = "no value" if of_heads(drawable) else "masked"
    return f"rows: {rows}, columns: {columns}{f', blank: {blank}' if masked else ''}"


def what(drawable: Matrices) -> str:
    """What a pooled cell shows the largest of."""
    return "value" if of_heads(drawable) and not drawable.scale.signed else drawable.scale.cell


def counted(drawable: Matrices) -> str:
    """What its rows or columns are, the more of them if they differ."""
    if isinstance(drawable, Grid):
        return drawable.unit
    longest = (
        drawable.tokens
        if isinstance(drawable, Strip)
        else max(drawable.rows, drawable.columns, key=len)
    )
    return longest.unit if longest.name in TOKENS else longest.name
