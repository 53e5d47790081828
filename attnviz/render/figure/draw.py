"""What stands on a figure below its title, for each kind of drawable."""

from collections.abc import Callable, Iterator, Sequence
from functools import singledispatch
from typing import TypeVar

import numpy as np

from attnviz.drawable import MASKED, Axis, Grid, Heatmap, Panel, Picture, Series, Strip
from attnviz.render.figure.curves import draw_curves
from attnviz.render.figure.layout import LEAST, LINE, PAD, Lattice, Plan, cut, lattice, plan, wide
from attnviz.render.figure.sheet import (
    COLOURS,
    LABEL,
    RC,
    SMALL,
    STANDING,
    Box,
    Sheet,
    draw_lying_bar,
    draw_upright_bar,
    ink_on,
    upright_room,
)
from attnviz.render.figure.table import draw_table
from attnviz.render.matrices import Matrices, axes_line, counted, of_heads, what

STEEP = 4  # layers by heads, less one, at most, in a row a layer
ABREAST = 6  # thumbnails in a row where layers stand beside each other
TICK = 0.3  # ems of a mark beside a label, where not every token has one
SIDE, SPACE, TOUCH = (
    0.2,
    0.35,
    0.06,
)  # ems in running text: beside a token in its box, between words, within them
BOX, PITCH = 1.45, 1.75  # ems that the box of a token is high, and from one line to the next
BETWEEN, ROOM = (
    1.5,
    15,
)  # ems between matrices beside each other, and of each with its labels, at least
Planned = TypeVar("Planned", Plan, Lattice)


@singledispatch
def draw(drawable: Picture, sheet: Sheet) -> None:  # noqa: ARG001 - those below use it
    """Everything below the title."""
    raise TypeError(f"no way to draw {type(drawable).__name__} as a figure")


@draw.register
def draw_heatmap(drawable: Heatmap, sheet: Sheet) -> None:
    """One matrix with its labels."""
    axes, points = (drawable.rows, drawable.columns), sheet.em(LABEL) * 72
    found, upright = planned(sheet, drawable, lambda room: plan(*axes, room, points, sheet.ems))
    top = max(found.above, 2 * sheet.em(SMALL) * upright)  # the name of the scale stands above it
    box = (sheet.x + found.left, sheet.y + top, found.width, found.height)
    panel = fitted(drawable.panel, sheet, box)
    sheet.paint(drawable.scale.steps(panel, COLOURS), drawable.scale, box)
    sheet.frame([box])
    if of_heads(drawable) and panel is drawable.panel:
        write_numbers(sheet, drawable, box)
    write_labels(sheet, found, box)
    put_bar(sheet, drawable, box, upright=upright)
    close(sheet, drawable, [panel], (len(drawable.rows), len(drawable.columns)))


def planned(
    sheet: Sheet, drawable: Matrices, make: Callable[[float], Planned]
) -> tuple[Planned, bool]:
    """A plan that leaves room on the right for a colour bar, if it is high enough for one, and whether it does."""
    found = make(sheet.room - max(upright_room(sheet, drawable.scale), sheet.aside))
    if found.height >= STANDING * sheet.em(SMALL):
        return found, True
    return make(sheet.room), False


def fitted(panel: Panel, sheet: Sheet, box: Box) -> Panel:
    """A panel pooled by whole numbers, so that each cell has a dot at least."""
    dots = [max(1, int(side * sheet.dpi)) for side in (box[3], box[2])]
    rows, columns = (
        -(-n // -(-n // most)) for n, most in zip(panel.values.shape, dots, strict=True)
    )
    return panel if (rows, columns) == panel.values.shape else panel.pooled(rows, columns)


def write_numbers(sheet: Sheet, drawable: Heatmap, box: Box) -> None:
    """The value of each cell in it, if there is room for all of them."""
    x, y, width, height = box
    rows, columns = drawable.panel.values.shape
    digits = f"{'+' * drawable.scale.signed}.2{'g' if drawable.scale.small else 'f'}"
    found = [[f"{value:{digits}}" for value in row] for row in drawable.panel.values]
    widest = max(sheet.ems(text) for row in found for text in row) + PAD
    points = min(sheet.em(LABEL) * 72, width / columns * 72 / widest, height / rows * 72 / LINE)
    if points < LEAST:
        return
    steps, colours = drawable.scale.steps(drawable.panel, COLOURS), sheet.palette(drawable.scale)
    for i, j in np.argwhere(drawable.panel.visible):
        place = x + (j + 0.5) * width / columns, y + (i + 0.5) * height / rows
        ink = ink_on(colours[steps[i, j]])
        sheet.write(
            *place, found[i][j], LABEL, va="center", ha="center", fontsize=points, color=ink
        )


def write_labels(sheet: Sheet, found: Plan, box: Box) -> None:
    """Those of the rows on the left of a box, those of the columns above it, and marks where they are sparse."""
    x, y, width, height = box
    em, points = found.points / 72, found.points
    for label, place in zip(found.rows.labels, found.rows.places, strict=True):
        text = cut(label, found.left / em - PAD, sheet.ems)
        sheet.write(
            x - PAD * em, y + place * height, text, LABEL, va="center", ha="right", fontsize=points
        )
    look = {"va": "center", "rotation": 90, "rotation_mode": "anchor", "fontsize": points}
    if found.level:
        look = {"va": "bottom", "ha": "center", "fontsize": points}
    for label, place in zip(found.columns.labels, found.columns.places, strict=True):
        text = cut(label, found.above / em - PAD, sheet.ems) if not found.level else label
        sheet.write(x + place * width, y - PAD * em, text, LABEL, **look)
    if found.rows.sparse:
        sheet.strokes(
            [((x - TICK * em, y + at * height), (x, y + at * height)) for at in found.rows.places]
        )
    if found.columns.sparse:
        sheet.strokes(
            [((x + at * width, y - TICK * em), (x + at * width, y)) for at in found.columns.places]
        )


def put_bar(sheet: Sheet, drawable: Matrices, box: Box, *, upright: bool) -> None:
    """A colour bar beside a box or below it; the sheet is then filled down to there."""
    x, y, width, height = box
    sheet.y = y + height + sheet.em(LABEL) * 0.8
    if upright:
        draw_upright_bar(sheet, drawable.scale, x + width, y, height)
    else:
        draw_lying_bar(sheet, drawable.scale)


@draw.register
def draw_grid(drawable: Grid, sheet: Sheet) -> None:
    """Thumbnails, a row a layer."""
    rows, columns, table = arranged(drawable)
    panels = [panel for row in table for panel in row if panel]
    high, long = (max(panel.values.shape[side] for panel in panels) for side in (0, 1))
    left = wide(rows, sheet.em(LABEL) * 72, sheet.ems) if rows else 0.0
    between = 0.0 if rows else LINE * sheet.em(LABEL)
    shape = len(table), max(map(len, table))
    found, upright = planned(
        sheet, drawable, lambda room: lattice(shape, room - left, high / long, between)
    )
    x, y = sheet.x + left, sheet.y + max(LINE * sheet.em(LABEL), 2 * sheet.em(SMALL) * upright)
    boxes = [
        found.box(x, y, i, j) for i, row in enumerate(table) for j, panel in enumerate(row) if panel
    ]
    drawn = [fitted(panel, sheet, box) for panel, box in zip(panels, boxes, strict=True)]
    for panel, box in zip(drawn, boxes, strict=True):
        sheet.paint(drawable.scale.steps(panel, COLOURS), drawable.scale, box)
    sheet.frame(boxes)
    write_names(sheet, found, (x, y), rows, columns)
    put_bar(sheet, drawable, (x, y, found.width, found.height), upright=upright)
    tile = -(-drawable.tokens // max(high, long))
    close(sheet, drawable, drawn, (high * tile, long * tile))


def arranged(
    grid: Grid,
) -> tuple[Sequence[str], Sequence[Sequence[str]], Sequence[Sequence[Panel | None]]]:
    """Names on the left, names above each row or the first, and panels; what would be a tower goes on beside itself."""
    if len(grid.rows) == 1 or len(grid.rows) <= STEEP * (len(grid.columns) - 1):
        return grid.rows, [grid.columns], grid.panels
    named = [
        (f"{name}{'' if column.startswith('H') else ' '}{column}", panel)  # L0H3, L0 mean
        for name, row in zip(grid.rows, grid.panels, strict=True)
        for column, panel in zip(grid.columns, row, strict=True)
        if panel
    ]
    rows = [named[i : i + ABREAST] for i in range(0, len(named), ABREAST)]
    return (
        (),
        [[name for name, _ in row] for row in rows],
        [[panel for _, panel in row] for row in rows],
    )


def write_names(
    sheet: Sheet,
    found: Lattice,
    corner: tuple[float, float],
    rows: Sequence[str],
    columns: Sequence[Sequence[str]],
) -> None:
    """What the rows and the columns of thumbnails are, as large as there is room, or every so many of them."""
    usual = sheet.em(LABEL) * 72
    widest = max(sheet.ems(name) for names in columns for name in names) + PAD
    points = max(min(usual, found.across * 72 / widest, found.down * 72 / LINE), min(usual, LEAST))
    every = -(-points * widest // (found.across * 72)), -(-points * LINE // (found.down * 72))
    look = {"va": "center", "fontsize": points}
    for i, name in enumerate(rows):
        if i % every[1] == 0:
            _, y, _, high = found.box(*corner, i, 0)
            sheet.write(
                corner[0] - PAD * points / 72, y + high / 2, name, LABEL, ha="right", **look
            )
    for i, names in enumerate(columns):
        for j, name in enumerate(names):
            if j % every[0] == 0:
                x, y, long, _ = found.box(*corner, i, j)
                sheet.write(x + long / 2, y - LINE * points / 144, name, LABEL, ha="center", **look)


@draw.register
def draw_strip(drawable: Strip, sheet: Sheet) -> None:
    """A text that runs from margin to margin, each token on its colour, a masked one on none and dim."""
    tokens, em = drawable.tokens, sheet.em(LABEL)
    steps = drawable.scale.steps(drawable.panel, COLOURS)[0].repeat(tokens.step)[: len(tokens)]
    colours = sheet.palette(drawable.scale)[steps]
    sheet.y += em / 4
    placed = list(running(tokens, sheet))
    boxes = [box for _, box in placed]
    seen = [box for box, step in zip(boxes, steps, strict=True) if step != MASKED]
    sheet.fill(seen, facecolors=colours[steps != MASKED] / 255, linewidths=0)
    for (text, (x, y, long, high)), step, colour in zip(placed, steps, colours, strict=True):
        on = ink_on(colour) if step != MASKED else sheet.dim()
        sheet.write(x + long / 2, y + high / 2, text, LABEL, va="center", ha="center", color=on)
    if drawable.chosen is not None:
        sheet.frame([boxes[drawable.chosen]], edgecolors=RC["text.color"], linewidths=em * 72 / 6)
    sheet.y = boxes[-1][1] + PITCH * em
    draw_lying_bar(sheet, drawable.scale)
    close(sheet, drawable, [drawable.panel], (1, len(tokens)))


def running(tokens: Axis, sheet: Sheet) -> Iterator[tuple[str, Box]]:
    """What each token shows and its box, line below line."""
    em, y, end = sheet.em(LABEL), sheet.y, 0.0
    for label, spaced in zip(tokens.labels, tokens.spaced, strict=True):
        text = cut(label, sheet.room / em - 2 * SIDE, sheet.ems)
        long = (sheet.ems(text) + 2 * SIDE) * em
        x = end + (SPACE if spaced else TOUCH) * em if end else sheet.x
        if end and x + long > sheet.x + sheet.room:
            x, y = sheet.x, y + PITCH * em
        end = x + long
        yield text, (x, y, long, BOX * em)


@draw.register
def draw_series(drawable: Series, sheet: Sheet) -> None:
    """Matrices beside each other if each has room enough, else below each other."""
    em = sheet.em(LABEL)
    many = len(drawable.heatmaps)
    share = (sheet.room - BETWEEN * em * (many - 1)) / many
    if share >= ROOM * em:
        columns = [(sheet.x + i * (share + BETWEEN * em), share) for i in range(many)]
        draw_abreast(drawable.heatmaps, columns, sheet)
    else:
        for one in drawable.heatmaps:
            draw_abreast([one], [(sheet.x, sheet.room)], sheet)
            sheet.y += em / 2
    sheet.y += em / 2
    for line in drawable.caption:
        sheet.lines(line, SMALL)


def draw_abreast(
    heatmaps: Sequence[Heatmap], columns: Sequence[tuple[float, float]], sheet: Sheet
) -> None:
    """Matrices with their titles, each from an x on so many inches, the cells of all of them at one height."""
    whole, top, ends = (sheet.x, sheet.room), sheet.y, []
    sheet.aside = max(
        upright_room(sheet, one.scale) for one in heatmaps
    )  # so that all are of one size
    for one, column in zip(heatmaps, columns, strict=True):
        (sheet.x, sheet.room), sheet.y = column, top
        sheet.lines(one.title, LABEL)
        ends.append(sheet.y)
    top = max(ends) + sheet.em(LABEL) / 4
    for i, (one, column) in enumerate(zip(heatmaps, columns, strict=True)):
        (sheet.x, sheet.room), sheet.y = column, top
        draw(one, sheet)
        ends[i] = sheet.y
    (sheet.x, sheet.room), sheet.y, sheet.aside = whole, max(ends), 0.0


draw.register(draw_table)
draw.register(draw_curves)


def close(
    sheet: Sheet, drawable: Matrices, drawn: Sequence[Panel], tokens: tuple[int, ...]
) -> None:
    """The caption: what rows and columns are, what was pooled of so many tokens a side, what else there is to say."""
    cells = (max(panel.values.shape[side] for panel in drawn) for side in (0, 1))
    each = [-(-n // m) for n, m in zip(tokens, cells, strict=True)]
    masked = not all(panel.visible.all() for panel in drawn)
    for line in (
        axes_line(drawable, masked=masked),
        pooling_line(drawable, each),
        *drawable.caption,
    ):
        sheet.lines(line, SMALL)


def pooling_line(drawable: Matrices, each: Sequence[int]) -> str:
    """What a cell is, which stands for so many rows and columns; empty if it stands for one."""
    if max(each) == 1:
        return ""
    named = counted(drawable)
    return f"each cell is the largest {what(drawable)} of up to {' x '.join(str(n) for n in each if n > 1)} {named}"
