"""Layout, colours and names of matrices and tables that all media share."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from attnviz.drawable import (
    MASKED,
    Axis,
    Grid,
    Heatmap,
    Panel,
    Steps,
    Strip,
    Table,
)

Matrices: TypeAlias = Heatmap | Grid | Strip  # pictures on one colour scale
TOKEN_AXES = "queries", "keys"  # the axes of which labels may be as long as a word


def split_columns(widths: Sequence[float], room: float, group: int = 1) -> Iterator[range]:
    """Split the columns of a table into blocks of columns that fit beside each other.

    A block has at least one group of columns, even if that is wider than the room.

    widths: the width of every column. room: the width that a block may have, in the unit of
    ``widths``. group: how many columns stay together. Yields the indices of each block's columns.
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
    """Choose the colour of each cell of a table, as a number on a scale of colours: (row, column).

    count: the number of colours on the scale. The numbers are from 0 to count - 1, or MASKED for a
    cell without a colour.
    """
    scaled = np.nan_to_num(table.levels) * count
    inside = np.clip(scaled, 0, count - 1)
    has_no_colour = np.isnan(table.levels)
    return np.where(has_no_colour, MASKED, inside).astype(np.int64)


def list_drawn_panels(picture: Matrices) -> list[Panel]:
    """List the matrices of a picture: the one of a heatmap or strip, or all those of a grid."""
    if isinstance(picture, Grid):
        return [panel for row in picture.panels for panel in row if panel]
    return [picture.panel]


def has_masked_cells(panels: Sequence[Panel]) -> bool:
    """Return whether some cell of some matrices is masked."""
    return not all(panel.visible.all() for panel in panels)


def shows_heads(picture: Matrices) -> bool:
    """Return whether a picture is a heatmap of layers and heads, without tokens on either axis."""
    if not isinstance(picture, Heatmap):
        return False
    return picture.rows.name not in TOKEN_AXES and picture.columns.name not in TOKEN_AXES


def describe_axes(picture: Matrices, *, masked: bool) -> str:
    """Tell the user what rows and columns are, and how masked cells look.

    The text is empty for a strip without masked cells. masked: some cells are masked.
    """
    if isinstance(picture, Strip):
        return "dim: masked" if masked else ""
    rows, columns = TOKEN_AXES
    if isinstance(picture, Heatmap):
        rows = picture.rows.name
        columns = picture.columns.name
    axes = f"rows: {rows}, columns: {columns}"
    if not masked:
        return axes
    blank = "no value" if shows_heads(picture) else "masked"
    return f"{axes}, blank: {blank}"


def name_pooled_value(picture: Matrices) -> str:
    """Name the quantity that cells show, for the sentence on pooled cells: "weight", for example.

    A pooled cell stands for several cells and shows the largest of their values. The scale of the
    colours names the quantity. Only a heatmap whose cells are heads, of any measure, has no other
    name for it than "value", unless it shows differences.
    """
    scale = picture.scale
    if shows_heads(picture) and not scale.signed:
        return "value"
    return scale.cell


def name_pooled_unit(picture: Matrices) -> str:
    """Name what pooled rows or columns stand for, in the plural: "tokens", for example.

    If rows and columns differ, the longer axis has its name.
    """
    if isinstance(picture, Grid):
        return picture.unit
    axis = find_longest_axis(picture)
    return axis.unit if axis.name in TOKEN_AXES else axis.name


def find_longest_axis(picture: Heatmap | Strip) -> Axis:
    """Return the axis of a picture that has the most labels."""
    if isinstance(picture, Strip):
        return picture.tokens
    return max(picture.rows, picture.columns, key=len)
