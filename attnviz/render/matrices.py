"""Layout, colours and names of matrices and tables that all media share."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from attnviz.drawable import MASKED, Axis, Grid, Heatmap, Panel, Steps, Strip, Table

Matrices: TypeAlias = Heatmap | Grid | Strip  # drawables on one colour scale
TOKEN_AXES = "queries", "keys"  # the axes of which labels may be as long as a word


def split_columns(widths: Sequence[float], room: float, group: int = 1) -> Iterator[range]:
    """Split the columns of a table into blocks, each of as many groups as fit, and one at least.

    widths: of every column, in the unit of the room. group: columns that stay together.
    """
    first = 0
    used = 0.0
    for column in range(0, len(widths), group):
        width = sum(widths[column : column + group])
        if column > first and used + width > room:
            yield range(first, column)
            first = column
            used = 0.0
        used += width
    yield range(first, len(widths))


def choose_level_steps(table: Table, count: int) -> Steps:
    """Choose the colour of each cell of a table: (row, column), 0 to count - 1, MASKED for none."""
    scaled = np.nan_to_num(table.levels) * count
    inside = np.clip(scaled, 0, count - 1)
    has_no_colour = np.isnan(table.levels)
    return np.where(has_no_colour, MASKED, inside).astype(np.int64)


def list_drawn_panels(drawable: Matrices) -> list[Panel]:
    """List the matrices of a drawable."""
    if isinstance(drawable, Grid):
        return [panel for row in drawable.panels for panel in row if panel]
    return [drawable.panel]


def has_masked_cells(panels: Sequence[Panel]) -> bool:
    """Return whether some cell of some matrices is masked."""
    return not all(panel.visible.all() for panel in panels)


def shows_heads(drawable: Matrices) -> bool:
    """Return whether a cell is a number of a head, not what one token gives to another."""
    if not isinstance(drawable, Heatmap):
        return False
    return drawable.rows.name not in TOKEN_AXES and drawable.columns.name not in TOKEN_AXES


def describe_axes(drawable: Matrices, *, masked: bool) -> str:
    """Say what rows and columns are, and how masked cells look; nothing if there is nothing to say.

    masked: some cells are.
    """
    if isinstance(drawable, Strip):
        return "dim: masked" if masked else ""
    rows, columns = TOKEN_AXES
    if isinstance(drawable, Heatmap):
        rows = drawable.rows.name
        columns = drawable.columns.name
    axes = f"rows: {rows}, columns: {columns}"
    if not masked:
        return axes
    blank = "no value" if shows_heads(drawable) else "masked"
    return f"{axes}, blank: {blank}"


def name_pooled_value(drawable: Matrices) -> str:
    """Name the quantity of which a pooled cell shows the largest."""
    scale = drawable.scale
    if shows_heads(drawable) and not scale.signed:
        return "value"
    return scale.cell


def name_pooled_unit(drawable: Matrices) -> str:
    """Name what is pooled: what the rows or the columns are, the more of them if they differ."""
    if isinstance(drawable, Grid):
        return drawable.unit
    axis = find_longest_axis(drawable)
    return axis.unit if axis.name in TOKEN_AXES else axis.name


def find_longest_axis(drawable: Heatmap | Strip) -> Axis:
    """Return the axis of a drawable that has the most labels."""
    if isinstance(drawable, Strip):
        return drawable.tokens
    return max(drawable.rows, drawable.columns, key=len)
