"""Drawing a picture on a sheet, below its title: a function for each kind of picture."""

from collections.abc import Callable, Iterator, Sequence
from functools import singledispatch
from math import ceil
from typing import Any, NamedTuple, TypeVar

import numpy as np

from attnviz.drawable import (
    MASKED,
    Axis,
    Grid,
    Heatmap,
    Panel,
    Picture,
    Scale,
    Series,
    Steps,
    Strip,
)
from attnviz.render.figure.curves import draw_curves_figure
from attnviz.render.figure.layout import (
    LEAST_POINTS,
    LINE_HEIGHT,
    PAD,
    POINTS,
    MatrixPlan,
    ThumbnailGrid,
    cut_text,
    measure_widest,
    plan_matrix,
    plan_thumbnails,
)
from attnviz.render.figure.sheet import (
    COLOURS,
    LABEL,
    LEAST_UPRIGHT_LENGTH,
    RC,
    SMALL,
    Box,
    Sheet,
    choose_ink,
    draw_lying_bar,
    draw_upright_bar,
    measure_upright_bar,
)
from attnviz.render.figure.table import draw_table_figure
from attnviz.render.matrices import (
    Matrices,
    describe_axes,
    has_masked_cells,
    list_drawn_panels,
    name_pooled_unit,
    name_pooled_value,
    shows_heads,
)

MOST_LAYERS_A_HEAD = 4  # of a grid with a row a layer, the first head left out
THUMBNAILS_A_ROW = 6  # where layers stand beside each other
TICK_LENGTH = 0.3  # ems of a mark beside a label, where not every token has one
TOKEN_PAD = 0.2  # ems in running text, beside a token in its box
WORD_GAP, TOKEN_GAP = 0.35, 0.06  # ems in running text, between words and between their tokens
BOX_HEIGHT, LINE_PITCH = 1.45, 1.75  # ems of the box of a token, and from one line to the next
HEATMAP_GAP_EMS = 1.5  # ems between matrices beside each other
LEAST_HEATMAP_EMS = 15  # ems of each of them with its labels
PlanT = TypeVar("PlanT", MatrixPlan, ThumbnailGrid)


@singledispatch
def draw_figure_body(picture: Picture, sheet: Sheet) -> None:  # noqa: ARG001 - for the others
    """Draw all of a picture below its title. Each kind of picture has its own function.

    sheet: the figure, which is filled downwards; ``sheet.y`` is how far it is filled, in inches.
    Raises TypeError if the kind of picture has no function.
    """
    raise TypeError(f"no way to draw {type(picture).__name__} as a figure")


draw_figure_body.register(draw_table_figure)
draw_figure_body.register(draw_curves_figure)


# Heatmaps


@draw_figure_body.register
def draw_heatmap_figure(heatmap: Heatmap, sheet: Sheet) -> None:
    """Draw a heatmap on a sheet: labels, cells, the colour bar, and the caption below them.

    The sheet is a figure that is filled downwards. Cells show their values if they are numbers of
    heads, are not pooled, and have the room.
    """
    rows, columns = heatmap.rows, heatmap.columns
    points = sheet.measure_em(LABEL) * POINTS

    def lay_out_cells(room: float) -> MatrixPlan:
        return plan_matrix(rows, columns, room, points, sheet.ems)

    plan, upright = plan_with_bar(sheet, heatmap, lay_out_cells)
    above = max(plan.above, measure_bar_name(sheet, upright=upright))
    left = sheet.x + plan.left
    top = sheet.y + above
    box = (left, top, plan.width, plan.height)
    panel = pool_to_dots(heatmap.panel, sheet, box)
    paint_panel(sheet, panel, heatmap.scale, box)
    sheet.frame([box])
    is_unpooled = panel is heatmap.panel
    if shows_heads(heatmap) and is_unpooled:
        write_cell_values(sheet, heatmap, box)
    write_row_labels(sheet, plan, box)
    write_column_labels(sheet, plan, box)
    draw_bar(sheet, heatmap, box, upright=upright)
    tokens = len(rows), len(columns)
    write_caption(sheet, heatmap, [panel], tokens)


def plan_with_bar(
    sheet: Sheet,
    picture: Matrices,
    lay_out_cells: Callable[[float], PlanT],
) -> tuple[PlanT, bool]:
    """Lay out cells so that a colour bar has room on their right, if they are high enough for one.

    Else the cells have the whole width of the sheet, and the bar lies below them.

    sheet: the figure; it may reserve more room for bars. lay_out_cells: makes the layout of the
    cells for a width in inches. Returns the layout, and whether the bar stands upright beside the
    cells.
    """
    bar_width = max(measure_upright_bar(sheet, picture.scale), sheet.aside)
    plan = lay_out_cells(sheet.room - bar_width)
    if plan.height >= LEAST_UPRIGHT_LENGTH * sheet.measure_em(SMALL):
        return plan, True
    return lay_out_cells(sheet.room), False


def measure_bar_name(sheet: Sheet, *, upright: bool) -> float:
    """Return the inches that the name of a scale takes above an upright bar; 0 for a lying one."""
    return 2 * sheet.measure_em(SMALL) if upright else 0.0


def pool_to_dots(panel: Panel, sheet: Sheet, box: Box) -> Panel:
    """Pool the cells of a matrix where a box has fewer dots than cells.

    Pooled cells show the largest of the numbers that they stand for. Each has at least one dot of
    the device. A panel that has dots enough is returned itself.

    box: left, top, width and height of the drawn matrix in inches.
    """
    _, _, width, height = box
    rows, columns = panel.values.shape
    pooled_rows = count_pooled_cells(rows, height, sheet.dpi)
    pooled_columns = count_pooled_cells(columns, width, sheet.dpi)
    if (pooled_rows, pooled_columns) == (rows, columns):
        return panel
    return panel.pool(pooled_rows, pooled_columns)


def count_pooled_cells(cells: int, length: float, dpi: float) -> int:
    """Count the cells on a side of a matrix after pooling, so that each has at least one dot.

    As few cells as possible become one. cells: the number before pooling. length: the side in
    inches. dpi: dots per inch.
    """
    dots = max(1, int(length * dpi))
    cells_a_dot = ceil(cells / dots)
    return ceil(cells / cells_a_dot)


def paint_panel(sheet: Sheet, panel: Panel, scale: Scale, box: Box) -> None:
    """Paint the cells of a panel into a box."""
    steps = scale.steps(panel, COLOURS)
    sheet.paint(steps, scale, box)


def write_cell_values(sheet: Sheet, heatmap: Heatmap, box: Box) -> None:
    """Write the value of each visible cell of a heatmap into the cell, if all values fit.

    The font is as large as the widest value allows. Nothing is written if it would be smaller than
    LEAST_POINTS.

    box: left, top, width and height of the cells together, in inches.
    """
    x, y, width, height = box
    values = heatmap.panel.values
    rows, columns = values.shape
    texts = format_cell_values(heatmap)
    text_widths = [sheet.ems(text) for row in texts for text in row]
    widest = max(text_widths) + PAD
    usual_points = sheet.measure_em(LABEL) * POINTS
    fitting_width = width / columns * POINTS / widest
    fitting_height = height / rows * POINTS / LINE_HEIGHT
    points = min(usual_points, fitting_width, fitting_height)
    if points < LEAST_POINTS:
        return
    steps = heatmap.scale.steps(heatmap.panel, COLOURS)
    colours = sheet.choose_palette(heatmap.scale)
    look = {"va": "center", "ha": "center", "fontsize": points}
    for i, j in np.argwhere(heatmap.panel.visible):
        middle_x = x + (j + 0.5) * width / columns
        middle_y = y + (i + 0.5) * height / rows
        step = steps[i, j]
        ink = choose_ink(colours[step])
        text = texts[i][j]
        sheet.write(middle_x, middle_y, text, LABEL, color=ink, **look)


def format_cell_values(heatmap: Heatmap) -> list[list[str]]:
    """Format the values of the cells of a heatmap to two digits: (row, column).

    Differences have a sign. Small values have two significant digits, all others two digits after
    the point.
    """
    sign = "+" if heatmap.scale.signed else ""
    kind = "g" if heatmap.scale.small else "f"
    digits = f"{sign}.2{kind}"
    return [[f"{value:{digits}}" for value in row] for row in heatmap.panel.values]


def write_row_labels(sheet: Sheet, plan: MatrixPlan, box: Box) -> None:
    """Write the labels of the rows on the left of a matrix, cut where they are too long.

    If only some rows have a label, a short stroke leads to each of these.

    plan: the layout, with the labels. box: left, top, width and height of the cells in inches.
    """
    x, y, _, height = box
    em = plan.points / POINTS
    right = x - PAD * em
    room = plan.left / em - PAD
    look = {"va": "center", "ha": "right", "fontsize": plan.points}
    label_heights = [y + position * height for position in plan.rows.positions]
    for label, label_y in zip(plan.rows.texts, label_heights, strict=True):
        text = cut_text(label, room, sheet.ems)
        sheet.write(right, label_y, text, LABEL, **look)
    if plan.rows.sparse:
        left = x - TICK_LENGTH * em
        sheet.draw_strokes([((left, label_y), (x, label_y)) for label_y in label_heights])


def write_column_labels(sheet: Sheet, plan: MatrixPlan, box: Box) -> None:
    """Write the labels of the columns above a matrix: upwards, or level if they are short.

    Labels that run upwards are cut where they are too long. If only some columns have a label, a
    short stroke leads to each of these.

    plan: the layout, with the labels. box: left, top, width and height of the cells in inches.
    """
    x, y, width, _ = box
    em = plan.points / POINTS
    bottom = y - PAD * em
    texts = list(plan.columns.texts)
    look: dict[str, Any] = {"va": "bottom", "ha": "center"}
    if not plan.level:
        room = plan.above / em - PAD
        texts = [cut_text(label, room, sheet.ems) for label in texts]
        look = {"va": "center", "rotation": 90, "rotation_mode": "anchor"}
    look["fontsize"] = plan.points
    middles = [x + position * width for position in plan.columns.positions]
    for text, label_x in zip(texts, middles, strict=True):
        sheet.write(label_x, bottom, text, LABEL, **look)
    if plan.columns.sparse:
        top = y - TICK_LENGTH * em
        sheet.draw_strokes([((label_x, top), (label_x, y)) for label_x in middles])


def draw_bar(sheet: Sheet, picture: Matrices, box: Box, *, upright: bool) -> None:
    """Draw the colour bar of a picture, and fill the sheet down to below cells and bar.

    box: left, top, width and height of the cells in inches. upright: the bar stands on the right of
    the cells; else it lies below them.
    """
    x, y, width, height = box
    bottom = y + height
    sheet.y = bottom + sheet.measure_em(LABEL) * 0.8
    if upright:
        right = x + width
        draw_upright_bar(sheet, picture.scale, right, y, height)
    else:
        draw_lying_bar(sheet, picture.scale)


# Grids of thumbnails


class NamedGrid(NamedTuple):
    """The thumbnails of a grid in the rows in which they stand, with their names."""

    row_names: Sequence[str]
    """On the left of each row; empty where rows are not layers."""
    column_names: Sequence[Sequence[str]]
    """Above the thumbnails of each row, or of the first row alone."""
    panels: Sequence[Sequence[Panel | None]]
    """(row, column), None where there is no head."""

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows, and of columns."""
        rows = len(self.panels)
        columns = max(map(len, self.panels))
        return rows, columns

    def list_positions(self) -> list[tuple[int, int]]:
        """List the row and the column of each thumbnail; a place without a head has none."""
        positions: list[tuple[int, int]] = []
        for i, row in enumerate(self.panels):
            positions += [(i, j) for j, panel in enumerate(row) if panel]
        return positions


@draw_figure_body.register
def draw_grid_figure(grid: Grid, sheet: Sheet) -> None:
    """Draw a grid of thumbnails on a sheet: names, cells, the colour bar and the caption.

    The sheet is a figure that is filled downwards. Rows are layers, unless there are many layers of
    few heads, which then stand beside each other.
    """
    thumbnails = arrange_thumbnails(grid)
    panels = list_drawn_panels(grid)
    rows, columns = measure_largest(panels)
    em = sheet.measure_em(LABEL)
    left = 0.0
    between = LINE_HEIGHT * em  # a line of names above each row
    if thumbnails.row_names:
        left = measure_widest(thumbnails.row_names, em * POINTS, sheet.ems)
        between = 0.0

    def lay_out_cells(room: float) -> ThumbnailGrid:
        ratio = rows / columns
        return plan_thumbnails(thumbnails.shape, room - left, ratio, between)

    plan, upright = plan_with_bar(sheet, grid, lay_out_cells)
    above = max(LINE_HEIGHT * em, measure_bar_name(sheet, upright=upright))
    corner = (sheet.x + left, sheet.y + above)
    positions = thumbnails.list_positions()
    boxes = [plan.locate_box(corner, row, column) for row, column in positions]
    pooled: list[Panel] = []
    for panel, box in zip(panels, boxes, strict=True):
        pooled_panel = pool_to_dots(panel, sheet, box)
        paint_panel(sheet, pooled_panel, grid.scale, box)
        pooled.append(pooled_panel)
    sheet.frame(boxes)
    write_thumbnail_names(sheet, plan, thumbnails, corner)
    whole = (*corner, plan.width, plan.height)
    draw_bar(sheet, grid, whole, upright=upright)
    tokens_a_cell = ceil(grid.tokens / max(rows, columns))
    tokens = rows * tokens_a_cell, columns * tokens_a_cell
    write_caption(sheet, grid, pooled, tokens)


def measure_largest(panels: Sequence[Panel]) -> tuple[int, int]:
    """Return the largest number of rows, and of columns, that any of some matrices has."""
    shapes = [panel.values.shape for panel in panels]
    heights, widths = zip(*shapes, strict=True)
    return max(heights), max(widths)


def arrange_thumbnails(grid: Grid) -> NamedGrid:
    """Arrange the thumbnails of a grid in rows: one for each layer, unless there are too many.

    A grid with far more layers than heads would be a tower. Its thumbnails stand in rows of
    THUMBNAILS_A_ROW, each with the name of its layer and head above it.
    """
    layers = len(grid.rows)
    most_layers = MOST_LAYERS_A_HEAD * (len(grid.columns) - 1)
    if layers == 1 or layers <= most_layers:
        return NamedGrid(grid.rows, [grid.columns], grid.panels)
    names: list[str] = []
    for layer, row in zip(grid.rows, grid.panels, strict=True):
        heads = zip(grid.columns, row, strict=True)
        names += [name_thumbnail(layer, head) for head, panel in heads if panel]
    panels = list_drawn_panels(grid)
    starts = range(0, len(names), THUMBNAILS_A_ROW)
    rows = [slice(start, start + THUMBNAILS_A_ROW) for start in starts]
    names_by_row = [names[row] for row in rows]
    panels_by_row = [panels[row] for row in rows]
    return NamedGrid((), names_by_row, panels_by_row)


def name_thumbnail(layer: str, head: str) -> str:
    """Return the name of a thumbnail of a layer and a head: L0H3, or L0 mean."""
    space = "" if head.startswith("H") else " "
    return f"{layer}{space}{head}"


def write_thumbnail_names(
    sheet: Sheet,
    plan: ThumbnailGrid,
    grid: NamedGrid,
    corner: tuple[float, float],
) -> None:
    """Write the names of the rows and columns of thumbnails, as large as there is room.

    Where names would touch even in the smallest font, only one in every few is written.

    plan: the places of the thumbnails. grid: the names. corner: left and top of the first thumbnail
    in inches.
    """
    usual_points = sheet.measure_em(LABEL) * POINTS
    names = [name for row in grid.column_names for name in row]
    widest = max(map(sheet.ems, names)) + PAD
    across = plan.across * POINTS
    down = plan.down * POINTS
    fitting = min(usual_points, across / widest, down / LINE_HEIGHT)
    points = max(fitting, min(usual_points, LEAST_POINTS))
    columns_a_name = divide_up(points * widest, across)
    rows_a_name = divide_up(points * LINE_HEIGHT, down)
    look = {"va": "center", "fontsize": points}
    right = corner[0] - PAD * points / POINTS
    for i, name in enumerate(grid.row_names):
        if i % rows_a_name == 0:
            _, y, _, height = plan.locate_box(corner, i, 0)
            centre = y + height / 2
            sheet.write(right, centre, name, LABEL, ha="right", **look)
    for i, row in enumerate(grid.column_names):
        for j, name in enumerate(row):
            if j % columns_a_name == 0:
                x, y, width, _ = plan.locate_box(corner, i, j)
                above = y - LINE_HEIGHT * points / (2 * POINTS)
                middle = x + width / 2
                sheet.write(middle, above, name, LABEL, ha="center", **look)


def divide_up(length: float, size: float) -> float:
    """Divide a length by a size, and round up to a whole number.

    ``ceil(length / size)`` may differ by one where the quotient is nearly whole, because the
    division has already rounded it.
    """
    return -(-length // size)


# Running text


@draw_figure_body.register
def draw_strip_figure(strip: Strip, sheet: Sheet) -> None:
    """Draw a strip on a sheet: wrapped text with each token on its colour, a bar, and the caption.

    The sheet is a figure that is filled downwards. A masked token is dim and has no colour. The
    token that the colours are about has a frame.
    """
    em = sheet.measure_em(LABEL)
    sheet.y += em / 4
    tokens = list(lay_out_tokens(strip.tokens, sheet))
    boxes = [box for _, box in tokens]
    steps = choose_token_steps(strip)
    colours = sheet.choose_palette(strip.scale)[steps]
    is_visible = steps != MASKED
    visible_boxes = [boxes[i] for i in np.flatnonzero(is_visible)]
    sheet.fill(visible_boxes, facecolors=colours[is_visible] / 255, linewidths=0)
    for i, (text, box) in enumerate(tokens):
        x, y, width, height = box
        middle_x = x + width / 2
        middle_y = y + height / 2
        ink = choose_ink(colours[i]) if is_visible[i] else sheet.mix_dim_colour()
        sheet.write(middle_x, middle_y, text, LABEL, va="center", ha="center", color=ink)
    if strip.chosen is not None:
        chosen_box = boxes[strip.chosen]
        stroke = em * POINTS / 6
        sheet.frame([chosen_box], edgecolors=RC["text.color"], linewidths=stroke)
    last_top = boxes[-1][1]
    sheet.y = last_top + LINE_PITCH * em
    draw_lying_bar(sheet, strip.scale)
    tokens_a_side = 1, len(strip.tokens)
    write_caption(sheet, strip, [strip.panel], tokens_a_side)


def choose_token_steps(strip: Strip) -> Steps:
    """Choose the colour of each token of a strip, by its number in the palette: (token,).

    All tokens of a cell that stands for several have the colour of that cell. A masked token has
    MASKED.
    """
    tokens = strip.tokens
    cells = strip.scale.steps(strip.panel, COLOURS)[0]
    steps: Steps = cells.repeat(tokens.step)
    return steps[: len(tokens)]


def lay_out_tokens(tokens: Axis, sheet: Sheet) -> Iterator[tuple[str, Box]]:
    """Lay out tokens as wrapped text, and yield the text and the box of each.

    A token that is longer than a line is cut. The first line begins at ``sheet.y``, the first free
    height of the figure. Boxes are left, top, width and height in inches.
    """
    em = sheet.measure_em(LABEL)
    right = sheet.x + sheet.room
    most_ems = sheet.room / em - 2 * TOKEN_PAD
    y = sheet.y
    end = 0.0
    for label, has_space in zip(tokens.labels, tokens.spaced, strict=True):
        text = cut_text(label, most_ems, sheet.ems)
        width = (sheet.ems(text) + 2 * TOKEN_PAD) * em
        x = sheet.x
        if end:
            gap = WORD_GAP if has_space else TOKEN_GAP
            x = end + gap * em
        if end and x + width > right:
            x = sheet.x
            y += LINE_PITCH * em
        end = x + width
        yield text, (x, y, width, BOX_HEIGHT * em)


# Series of matrices


@draw_figure_body.register
def draw_series_figure(series: Series, sheet: Sheet) -> None:
    """Draw the heatmaps of a series beside each other if they have the room, else below each other.

    The sheet is a figure that is filled downwards. The caption of the series stands below all of
    them.
    """
    em = sheet.measure_em(LABEL)
    gap = HEATMAP_GAP_EMS * em
    heatmaps = series.heatmaps
    count = len(heatmaps)
    gaps = gap * (count - 1)
    fair_width = (sheet.room - gaps) / count
    if fair_width >= LEAST_HEATMAP_EMS * em:
        lefts = [sheet.x + i * (fair_width + gap) for i in range(count)]
        draw_side_by_side_figures(heatmaps, lefts, fair_width, sheet)
    else:
        for heatmap in heatmaps:
            draw_side_by_side_figures([heatmap], [sheet.x], sheet.room, sheet)
            sheet.y += em / 2
    sheet.y += em / 2
    for line in series.caption:
        sheet.write_lines(line, SMALL)


def draw_side_by_side_figures(
    heatmaps: Sequence[Heatmap],
    lefts: Sequence[float],
    room: float,
    sheet: Sheet,
) -> None:
    """Draw heatmaps beside each other, with all their cells beginning below the longest title.

    The sheet is filled down to the end of the longest of them.

    lefts: the inches from the left of the sheet to each heatmap. room: the width of each in inches,
    with its labels and colour bar.
    """
    sheet_x, sheet_room = sheet.x, sheet.room
    top = sheet.y
    # All leave room for the widest bar, so that all cells are of one size.
    bar_widths = [measure_upright_bar(sheet, heatmap.scale) for heatmap in heatmaps]
    sheet.aside = max(bar_widths)
    sheet.room = room
    ends: list[float] = []
    for heatmap, left in zip(heatmaps, lefts, strict=True):
        sheet.x, sheet.y = left, top
        sheet.write_lines(heatmap.title, LABEL)
        ends.append(sheet.y)
    top = max(ends) + sheet.measure_em(LABEL) / 4
    for i, (heatmap, left) in enumerate(zip(heatmaps, lefts, strict=True)):
        sheet.x, sheet.y = left, top
        draw_figure_body(heatmap, sheet)
        ends[i] = sheet.y
    sheet.x, sheet.room = sheet_x, sheet_room
    sheet.y = max(ends)
    sheet.aside = 0.0


# Captions


def write_caption(
    sheet: Sheet,
    picture: Matrices,
    panels: Sequence[Panel],
    tokens: Sequence[int],
) -> None:
    """Write what rows and columns are, how much was pooled, and the caption of a picture.

    panels: the matrices as they are drawn, that is, pooled. tokens: how many tokens the rows stand
    for, and the columns.
    """
    cells = measure_largest(panels)
    pairs = zip(tokens, cells, strict=True)
    tokens_a_cell = [ceil(token_count / cell_count) for token_count, cell_count in pairs]
    axes = describe_axes(picture, masked=has_masked_cells(panels))
    pooling = describe_pooling(picture, tokens_a_cell)
    for line in (axes, pooling, *picture.caption):
        sheet.write_lines(line, SMALL)


def describe_pooling(picture: Matrices, tokens_a_cell: Sequence[int]) -> str:
    """Tell the user what a pooled cell shows; return an empty text if no cells were pooled.

    tokens_a_cell: how many rows, and how many columns, a cell stands for.
    """
    if max(tokens_a_cell) == 1:
        return ""
    unit = name_pooled_unit(picture)
    value = name_pooled_value(picture)
    sizes = [str(size) for size in tokens_a_cell if size > 1]
    tile = " x ".join(sizes)
    return f"each cell is the largest {value} of up to {tile} {unit}"
