"""Drawing a picture on a sheet, below its title: a function for each kind of drawable."""

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
def draw_figure_body(drawable: Picture, sheet: Sheet) -> None:  # noqa: ARG001 - for the others
    """Draw all of a picture below its title. Each kind of picture has its own function."""
    raise TypeError(f"no way to draw {type(drawable).__name__} as a figure")


draw_figure_body.register(draw_table_figure)
draw_figure_body.register(draw_curves_figure)


# Heatmaps


@draw_figure_body.register
def draw_heatmap_figure(drawable: Heatmap, sheet: Sheet) -> None:
    """Draw one matrix with its labels."""
    rows, columns = drawable.rows, drawable.columns
    points = sheet.measure_em(LABEL) * POINTS

    def plan_in(room: float) -> MatrixPlan:
        return plan_matrix(rows, columns, room, points, sheet.ems)

    plan, upright = plan_with_bar(sheet, drawable, plan_in)
    above = max(plan.above, measure_bar_name(sheet, upright=upright))
    left = sheet.x + plan.left
    top = sheet.y + above
    box = (left, top, plan.width, plan.height)
    panel = pool_to_dots(drawable.panel, sheet, box)
    paint_panel(sheet, panel, drawable.scale, box)
    sheet.frame([box])
    if shows_heads(drawable) and panel is drawable.panel:
        write_cell_values(sheet, drawable, box)
    write_row_labels(sheet, plan, box)
    write_column_labels(sheet, plan, box)
    draw_bar(sheet, drawable, box, upright=upright)
    tokens = len(rows), len(columns)
    write_caption(sheet, drawable, [panel], tokens)


def plan_with_bar(
    sheet: Sheet,
    drawable: Matrices,
    plan_in: Callable[[float], PlanT],
) -> tuple[PlanT, bool]:
    """Lay out cells so that a colour bar has room on their right, if they are high enough for one.

    plan_in: lays them out on so many inches. Returns the plan, and whether the bar stands upright
    beside the cells; else it lies below them.
    """
    bar_width = max(measure_upright_bar(sheet, drawable.scale), sheet.aside)
    plan = plan_in(sheet.room - bar_width)
    if plan.height >= LEAST_UPRIGHT_LENGTH * sheet.measure_em(SMALL):
        return plan, True
    return plan_in(sheet.room), False


def measure_bar_name(sheet: Sheet, *, upright: bool) -> float:
    """Return the inches that the name of a scale takes above an upright bar; 0 for a lying one."""
    return 2 * sheet.measure_em(SMALL) if upright else 0.0


def pool_to_dots(panel: Panel, sheet: Sheet, box: Box) -> Panel:
    """Pool a panel by whole numbers, so that each cell has a dot of the device at least."""
    _, _, width, height = box
    rows, columns = panel.values.shape
    pooled_rows = count_pooled_cells(rows, height, sheet.dpi)
    pooled_columns = count_pooled_cells(columns, width, sheet.dpi)
    if (pooled_rows, pooled_columns) == (rows, columns):
        return panel
    return panel.pool(pooled_rows, pooled_columns)


def count_pooled_cells(cells: int, length: float, dpi: float) -> int:
    """Count the cells on a side of so many inches if as few as possible become one."""
    dots = max(1, int(length * dpi))
    cells_a_dot = ceil(cells / dots)
    return ceil(cells / cells_a_dot)


def paint_panel(sheet: Sheet, panel: Panel, scale: Scale, box: Box) -> None:
    """Paint the cells of a panel into a box."""
    steps = scale.steps(panel, COLOURS)
    sheet.paint(steps, scale, box)


def write_cell_values(sheet: Sheet, drawable: Heatmap, box: Box) -> None:
    """Write the value of each cell into it, if there is room for all of them."""
    x, y, width, height = box
    values = drawable.panel.values
    rows, columns = values.shape
    texts = format_cell_values(drawable)
    text_widths = [sheet.ems(text) for row in texts for text in row]
    widest = max(text_widths) + PAD
    usual_points = sheet.measure_em(LABEL) * POINTS
    fitting_width = width / columns * POINTS / widest
    fitting_height = height / rows * POINTS / LINE_HEIGHT
    points = min(usual_points, fitting_width, fitting_height)
    if points < LEAST_POINTS:
        return
    steps = drawable.scale.steps(drawable.panel, COLOURS)
    colours = sheet.choose_palette(drawable.scale)
    look = {"va": "center", "ha": "center", "fontsize": points}
    for i, j in np.argwhere(drawable.panel.visible):
        middle = x + (j + 0.5) * width / columns
        centre = y + (i + 0.5) * height / rows
        step = steps[i, j]
        ink = choose_ink(colours[step])
        text = texts[i][j]
        sheet.write(middle, centre, text, LABEL, color=ink, **look)


def format_cell_values(drawable: Heatmap) -> list[list[str]]:
    """Format the values of the cells of a heatmap to two digits: (row, column)."""
    sign = "+" if drawable.scale.signed else ""
    kind = "g" if drawable.scale.small else "f"
    digits = f"{sign}.2{kind}"
    return [[f"{value:{digits}}" for value in row] for row in drawable.panel.values]


def write_row_labels(sheet: Sheet, plan: MatrixPlan, box: Box) -> None:
    """Write the labels of the rows on the left of a box, with marks where they are sparse."""
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
    """Write the labels of the columns above a box, with marks where they are sparse."""
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


def draw_bar(sheet: Sheet, drawable: Matrices, box: Box, *, upright: bool) -> None:
    """Draw a colour bar beside a box or below it, and fill the sheet down to there."""
    x, y, width, height = box
    bottom = y + height
    sheet.y = bottom + sheet.measure_em(LABEL) * 0.8
    if upright:
        right = x + width
        draw_upright_bar(sheet, drawable.scale, right, y, height)
    else:
        draw_lying_bar(sheet, drawable.scale)


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
        """List the row and the column of each thumbnail that is there."""
        positions: list[tuple[int, int]] = []
        for i, row in enumerate(self.panels):
            positions += [(i, j) for j, panel in enumerate(row) if panel]
        return positions


@draw_figure_body.register
def draw_grid_figure(drawable: Grid, sheet: Sheet) -> None:
    """Draw thumbnails, with a row for each layer."""
    grid = arrange_thumbnails(drawable)
    panels = list_drawn_panels(drawable)
    rows, columns = measure_largest(panels)
    em = sheet.measure_em(LABEL)
    left = 0.0
    between = LINE_HEIGHT * em
    if grid.row_names:
        left = measure_widest(grid.row_names, em * POINTS, sheet.ems)
        between = 0.0

    def plan_in(room: float) -> ThumbnailGrid:
        return plan_thumbnails(grid.shape, room - left, rows / columns, between)

    plan, upright = plan_with_bar(sheet, drawable, plan_in)
    above = max(LINE_HEIGHT * em, measure_bar_name(sheet, upright=upright))
    corner = (sheet.x + left, sheet.y + above)
    positions = grid.list_positions()
    boxes = [plan.locate_box(corner, row, column) for row, column in positions]
    pooled: list[Panel] = []
    for panel, box in zip(panels, boxes, strict=True):
        pooled_panel = pool_to_dots(panel, sheet, box)
        paint_panel(sheet, pooled_panel, drawable.scale, box)
        pooled.append(pooled_panel)
    sheet.frame(boxes)
    write_thumbnail_names(sheet, plan, grid, corner)
    whole = (*corner, plan.width, plan.height)
    draw_bar(sheet, drawable, whole, upright=upright)
    tile = ceil(drawable.tokens / max(rows, columns))
    tokens = rows * tile, columns * tile
    write_caption(sheet, drawable, pooled, tokens)


def measure_largest(panels: Sequence[Panel]) -> tuple[int, int]:
    """Return the most rows, and the most columns, that any of some panels has."""
    shapes = [panel.values.shape for panel in panels]
    heights, widths = zip(*shapes, strict=True)
    return max(heights), max(widths)


def arrange_thumbnails(grid: Grid) -> NamedGrid:
    """Arrange the thumbnails of a grid in rows: a layer each, unless that would be a tower.

    Layers of a tower stand beside each other, with the name of layer and head above each thumbnail.
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
    """Write the names of the rows and columns of thumbnails, or of every so many of them.

    They are as large as there is room.

    corner: left and top of the first thumbnail.
    """
    usual_points = sheet.measure_em(LABEL) * POINTS
    names = [name for row in grid.column_names for name in row]
    widest = max(map(sheet.ems, names)) + PAD
    across = plan.across * POINTS
    down = plan.down * POINTS
    fitting = min(usual_points, across / widest, down / LINE_HEIGHT)
    points = max(fitting, min(usual_points, LEAST_POINTS))
    every_column = divide_up(points * widest, across)
    every_row = divide_up(points * LINE_HEIGHT, down)
    look = {"va": "center", "fontsize": points}
    right = corner[0] - PAD * points / POINTS
    for i, name in enumerate(grid.row_names):
        if i % every_row == 0:
            _, y, _, height = plan.locate_box(corner, i, 0)
            centre = y + height / 2
            sheet.write(right, centre, name, LABEL, ha="right", **look)
    for i, row in enumerate(grid.column_names):
        for j, name in enumerate(row):
            if j % every_column == 0:
                x, y, width, _ = plan.locate_box(corner, i, j)
                above = y - LINE_HEIGHT * points / (2 * POINTS)
                middle = x + width / 2
                sheet.write(middle, above, name, LABEL, ha="center", **look)


def divide_up(length: float, size: float) -> float:
    """Divide a length by a size, and round up to a whole number.

    Rounding up a quotient gives another number where the quotient is nearly whole, because division
    has rounded it already.
    """
    return -(-length // size)


# Running text


@draw_figure_body.register
def draw_strip_figure(drawable: Strip, sheet: Sheet) -> None:
    """Draw a text that runs from margin to margin, each token on its colour.

    A masked token is dim and has no colour.
    """
    em = sheet.measure_em(LABEL)
    sheet.y += em / 4
    tokens = list(lay_out_tokens(drawable.tokens, sheet))
    boxes = [box for _, box in tokens]
    steps = choose_token_steps(drawable)
    colours = sheet.choose_palette(drawable.scale)[steps]
    is_visible = steps != MASKED
    visible_boxes = [boxes[i] for i in np.flatnonzero(is_visible)]
    sheet.fill(visible_boxes, facecolors=colours[is_visible] / 255, linewidths=0)
    for i, (text, box) in enumerate(tokens):
        x, y, width, height = box
        middle = x + width / 2
        centre = y + height / 2
        ink = choose_ink(colours[i]) if is_visible[i] else sheet.mix_dim_colour()
        sheet.write(middle, centre, text, LABEL, va="center", ha="center", color=ink)
    if drawable.chosen is not None:
        chosen_box = boxes[drawable.chosen]
        stroke = em * POINTS / 6
        sheet.frame([chosen_box], edgecolors=RC["text.color"], linewidths=stroke)
    last_top = boxes[-1][1]
    sheet.y = last_top + LINE_PITCH * em
    draw_lying_bar(sheet, drawable.scale)
    tokens_a_side = 1, len(drawable.tokens)
    write_caption(sheet, drawable, [drawable.panel], tokens_a_side)


def choose_token_steps(drawable: Strip) -> Steps:
    """Choose the step of each token of a text, where a cell may stand for several: (token,)."""
    tokens = drawable.tokens
    cells = drawable.scale.steps(drawable.panel, COLOURS)[0]
    steps: Steps = cells.repeat(tokens.step)
    return steps[: len(tokens)]


def lay_out_tokens(tokens: Axis, sheet: Sheet) -> Iterator[tuple[str, Box]]:
    """Yield the text of each token and its box, line below line."""
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
def draw_series_figure(drawable: Series, sheet: Sheet) -> None:
    """Draw matrices beside each other if each has room enough, else below each other."""
    em = sheet.measure_em(LABEL)
    gap = HEATMAP_GAP_EMS * em
    heatmaps = drawable.heatmaps
    count = len(heatmaps)
    gaps = gap * (count - 1)
    share = (sheet.room - gaps) / count
    if share >= LEAST_HEATMAP_EMS * em:
        lefts = [sheet.x + i * (share + gap) for i in range(count)]
        draw_side_by_side_figures(heatmaps, lefts, share, sheet)
    else:
        for heatmap in heatmaps:
            draw_side_by_side_figures([heatmap], [sheet.x], sheet.room, sheet)
            sheet.y += em / 2
    sheet.y += em / 2
    for line in drawable.caption:
        sheet.write_lines(line, SMALL)


def draw_side_by_side_figures(
    heatmaps: Sequence[Heatmap],
    lefts: Sequence[float],
    room: float,
    sheet: Sheet,
) -> None:
    """Draw matrices with their titles beside each other, the cells of all of them at one height.

    lefts: inches from the left of the sheet to each. room: inches that each may be wide.
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
    drawable: Matrices,
    panels: Sequence[Panel],
    tokens: Sequence[int],
) -> None:
    """Write what rows and columns are, how much was pooled, and the caption of a drawable.

    drawn: the panels as they are drawn. tokens: of each side, rows and columns.
    """
    cells = measure_largest(panels)
    tokens_a_cell = [ceil(n / m) for n, m in zip(tokens, cells, strict=True)]
    axes = describe_axes(drawable, masked=has_masked_cells(panels))
    pooling = describe_pooling(drawable, tokens_a_cell)
    for line in (axes, pooling, *drawable.caption):
        sheet.write_lines(line, SMALL)


def describe_pooling(drawable: Matrices, tokens_a_cell: Sequence[int]) -> str:
    """Say what a cell is that stands for several rows or columns; nothing if it stands for one.

    tokens_a_cell: of each side.
    """
    if max(tokens_a_cell) == 1:
        return ""
    unit = name_pooled_unit(drawable)
    value = name_pooled_value(drawable)
    sizes = [str(size) for size in tokens_a_cell if size > 1]
    tile = " x ".join(sizes)
    return f"each cell is the largest {value} of up to {tile} {unit}"
