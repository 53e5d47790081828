"""Curves as a figure: plots below each other over the same steps, curves named at their ends."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.collections import LineCollection

from attnviz.drawable import Curve, Curves, Plot
from attnviz.render.figure.layout import (
    LINE_HEIGHT,
    PAD,
    POINTS,
    cut_text,
    spread_positions,
)
from attnviz.render.figure.sheet import LABEL, SMALL, Box, Sheet, Stroke
from attnviz.render.terminal.chart import (
    CURVE_COLOURS,
    choose_round_numbers,
    choose_round_steps,
    measure_step_range,
)

DASHES: tuple[Any, ...] = (  # of each curve, in widths of its line: drawn, left out, and so on
    "solid",
    (0, (4, 1.5)),
    (0, (1, 1)),
    (0, (4, 1, 1, 1)),
    (0, (7, 1.5)),
    (0, (2, 2)),
)
MARK_DASHES = (0, (3, 3))
HEIGHT_BY_WIDTH = 0.42  # of a plot
MOST_NAMES_WIDTH = 0.4  # of the sheet's, for the names of curves
LEADER = 1.2  # ems from where a curve ends to its name
NUMBER_TICK = 0.3  # ems of a mark beside a number
STROKE = 1 / 6  # ems across a curve
PLOT_GAP = 0.7  # ems between plots
LEAST_LINE_PITCH, LEAST_COLUMN_PITCH = 2.5, 5.0  # ems from a number on an axis to the next
MOST_TICKS = 9  # of which the widest decides how far from the left plots begin
CURVE_ZORDER = 3  # above everything else but text


def draw_curves_figure(curves: Curves, sheet: Sheet) -> None:
    """Draw plots below each other on a sheet, with the caption below them.

    The sheet is a figure that is filled downwards. The plots share the axis of steps, which stands
    below the last one. Names of curves stand on the right of each plot.
    """
    names_width = measure_curve_names(curves, sheet)
    boxes = lay_out_plots(curves, names_width, sheet)
    write_step_axis(curves, boxes[-1], sheet)
    draw_marks(curves, boxes, sheet)
    for plot, box in zip(curves.plots, boxes, strict=True):
        draw_plot(curves.steps, plot, box, names_width, sheet)
    for line in curves.caption:
        sheet.write_lines(line, SMALL)


def measure_curve_names(curves: Curves, sheet: Sheet) -> float:
    """Return the inches that the names of all curves take on the right of the plots.

    They are no more than a share of the sheet's width, MOST_NAMES_WIDTH; longer names are cut.
    """
    names = [curve.name for plot in curves.plots for curve in plot.curves]
    widest = max(map(sheet.ems, names))
    needed = (widest + LEADER) * sheet.measure_em(LABEL)
    return min(needed, MOST_NAMES_WIDTH * sheet.room)


def measure_tick_names(curves: Curves, sheet: Sheet) -> float:
    """Return the inches that numbers on the axes take, with their marks, on the left of plots."""
    names: list[str] = []
    for plot in curves.plots:
        ticks = choose_round_numbers(plot.low, plot.high, MOST_TICKS)
        names += [f"{tick:g}" for tick in ticks]
    widest = max(map(sheet.ems, names))
    return (widest + PAD + NUMBER_TICK) * sheet.measure_em(LABEL)


def lay_out_plots(curves: Curves, names_width: float, sheet: Sheet) -> list[Box]:
    """Write the names of plots, and reserve a box for each plot below its name.

    Above the first box there is also room for the names of marks. A box is high enough for the
    names of its curves below each other.

    names_width: inches that are left free for these names on the right of the boxes. Returns left,
    top, width and height of each box, in inches.
    """
    em = sheet.measure_em(LABEL)
    left = measure_tick_names(curves, sheet)
    x = sheet.x + left
    width = sheet.room - left - names_width
    marks_height = LINE_HEIGHT * len(curves.marks)  # ems above the first plot
    boxes: list[Box] = []
    for plot in curves.plots:
        sheet.write_lines(plot.name, SMALL)
        above = 2 * PAD + marks_height
        sheet.y += sheet.measure_em(SMALL) * above
        names_height = (len(plot.curves) + 1) * LINE_HEIGHT * em
        height = max(HEIGHT_BY_WIDTH * width, names_height)
        boxes.append((x, sheet.y, width, height))
        sheet.y += height + PLOT_GAP * em
        marks_height = 0
    return boxes


def draw_plot(steps: Sequence[int], plot: Plot, box: Box, names_width: float, sheet: Sheet) -> None:
    """Draw a plot: a box with its curves, round numbers on its left, and names on its right.

    The first curve lies above the others. Names stand at the heights of the ends of their curves,
    moved apart where they would touch.

    steps: the steps of the values, rising. box: left, top, width and height in inches. names_width:
    inches that there are for the names of the curves on the right of the box.
    """
    _, top, _, height = box
    em = sheet.measure_em(LABEL)
    sheet.frame([box])
    write_value_axis(plot, box, sheet)
    curves = [locate_curve(steps, curve, plot, box) for curve in plot.curves]
    ends = [find_curve_end(points, box) for points in curves]
    ends_below_top = [y - top for _, y in ends]
    names_below_top = spread_positions(ends_below_top, LINE_HEIGHT * em, height)
    stroke = STROKE * em
    for i in reversed(range(len(curves))):
        lines = list(split_at_gaps(curves[i], stroke))
        dashes = DASHES[i % len(DASHES)]
        draw_curve_lines(sheet, lines, i, stroke, linestyles=[dashes], zorder=CURVE_ZORDER)
        name_y = top + names_below_top[i]
        draw_leader(sheet, box, i, ends[i], name_y)
        write_curve_name(sheet, box, plot.curves[i].name, name_y, names_width)


def write_value_axis(plot: Plot, box: Box, sheet: Sheet) -> None:
    """Write round numbers on the left of a plot, with a mark at each.

    box: left, top, width and height of the plot in inches.
    """
    x, y, _, height = box
    em = sheet.measure_em(LABEL)
    most = int(height / (LEAST_LINE_PITCH * em))
    left = x - NUMBER_TICK * em
    right_of_number = x - (NUMBER_TICK + PAD / 2) * em
    span = plot.high - plot.low
    for tick in choose_round_numbers(plot.low, plot.high, most):
        tick_y = y + height * (plot.high - tick) / span
        number = f"{tick:g}"
        sheet.draw_strokes([((left, tick_y), (x, tick_y))])
        sheet.write(right_of_number, tick_y, number, LABEL, va="center", ha="right")


def draw_leader(
    sheet: Sheet,
    box: Box,
    curve_number: int,
    end: tuple[float, float],
    name_y: float,
) -> None:
    """Draw a faint line from the end of a curve to its name on the right of the plot.

    box: the plot. curve_number: the index of the curve in it, which has a colour. end: (x, y) of
    the last value of the curve. name_y: the height of the name. All lengths are in inches.
    """
    x, _, width, _ = box
    em = sheet.measure_em(LABEL)
    near_name = x + width + LEADER * em * 0.8
    line = np.array([end, (near_name, name_y)])
    stroke = STROKE * em / 2
    draw_curve_lines(sheet, [line], curve_number, stroke, alpha=0.5)


def write_curve_name(sheet: Sheet, box: Box, name: str, name_y: float, names_width: float) -> None:
    """Write the name of a curve on the right of its plot, cut where it is too long.

    box: left, top, width and height of the plot. name_y: the height of the middle of the name.
    names_width: the room on the right of the plot, with the line that leads to the name. All of
    them are in inches.
    """
    x, _, width, _ = box
    em = sheet.measure_em(LABEL)
    text = cut_text(name, names_width / em - LEADER, sheet.ems)
    left = x + width + LEADER * em
    sheet.write(left, name_y, text, LABEL, va="center")


def draw_curve_lines(
    sheet: Sheet,
    lines: Sequence[npt.NDArray[np.float64]],
    curve_number: int,
    stroke: float,
    **look: Any,
) -> None:
    """Draw lines in the colour of a curve.

    lines: an array of points for each, (point, x y) in inches. curve_number: the index of the curve
    in its plot, which chooses the colour. stroke: the width of the lines in inches. look: further
    settings of matplotlib's LineCollection.
    """
    channels = CURVE_COLOURS[curve_number % len(CURVE_COLOURS)]
    colour = [channel / 255 for channel in channels]
    width = stroke * POINTS
    collection = LineCollection(lines, colors=[colour], linewidths=width, clip_on=False, **look)
    sheet.axes.add_collection(collection, autolim=False)


def locate_curve(
    steps: Sequence[int],
    curve: Curve,
    plot: Plot,
    box: Box,
) -> npt.NDArray[np.float64]:
    """Return the point on the sheet of each value of a curve: (step, x y) in inches.

    Values outside the plot's range are moved to its edge. y is NaN where the curve has no value.

    steps: the step of each value, rising. box: left, top, width and height of the plot in inches.
    """
    left, top, width, height = box
    steps_from_first = np.array(steps, np.float64) - steps[0]
    across = steps_from_first / measure_step_range(steps)
    distance = plot.high - np.asarray(curve.values, np.float64)
    share = distance / (plot.high - plot.low)
    down = np.clip(share, 0, 1)
    x = left + across * width
    y = top + down * height
    return np.stack([x, y], axis=1)


def split_at_gaps(points: npt.NDArray[np.float64], dot: float) -> Iterator[npt.NDArray[np.float64]]:
    """Split a curve where values are missing, and yield each part: (point, x y).

    A part of one point becomes a short lying line, so that it can be seen.

    points: (step, x y), y NaN where there is no value. dot: the length of that short line, in the
    unit of the points.
    """
    is_known = np.isfinite(points[:, 1])
    changes = np.flatnonzero(np.diff(is_known)) + 1
    indices = np.arange(len(points))
    for segment in np.split(indices, changes):
        if not is_known[segment[0]]:
            continue
        if len(segment) == 1:
            ends = [[-dot / 2, 0], [dot / 2, 0]]
            yield points[segment] + ends
        else:
            yield points[segment]


def find_curve_end(points: npt.NDArray[np.float64], box: Box) -> tuple[float, float]:
    """Return (x, y) of a curve's last value, or the lower right corner of its box if it has none.

    points: (step, x y), y NaN where there is no value. box: left, top, width and height of the
    plot, in the unit of the points.
    """
    known = points[np.isfinite(points[:, 1])]
    if len(known):
        x, y = known[-1].tolist()
        return x, y
    left, top, width, height = box
    return left + width, top + height


def write_step_axis(curves: Curves, box: Box, sheet: Sheet) -> None:
    """Write round steps below a plot, the name of the axis below them, and fill the sheet so far.

    box: left, top, width and height of the plot in inches.
    """
    x, y, width, height = box
    em = sheet.measure_em(LABEL)
    bottom = y + height
    tick_end = bottom + NUMBER_TICK * em
    sheet.y = bottom + (NUMBER_TICK + PAD / 2) * em
    most = int(width / (LEAST_COLUMN_PITCH * em))
    for step in choose_round_steps(curves.steps, most):
        tick_x = find_step(curves.steps, step, box)
        sheet.draw_strokes([((tick_x, bottom), (tick_x, tick_end))])
        number = f"{step:,}"
        sheet.write(tick_x, sheet.y, number, LABEL, va="top", ha="center")
    sheet.y += LINE_HEIGHT * em
    middle = x + width / 2
    sheet.write(middle, sheet.y, curves.name, SMALL, va="top", ha="center")
    sheet.y += (LINE_HEIGHT + PAD) * sheet.measure_em(SMALL)


def find_step(steps: Sequence[int], step: int, box: Box) -> float:
    """Return the inches from the left of the sheet to a step on the axis of a plot.

    steps: all steps of the plot, rising; its axis goes from the first to the last. box: left, top,
    width and height of the plot in inches.
    """
    x, _, width, _ = box
    steps_from_first = step - steps[0]
    return x + width * steps_from_first / measure_step_range(steps)


def draw_marks(curves: Curves, boxes: Sequence[Box], sheet: Sheet) -> None:
    """Draw a line for each mark through all plots, with its name above the first plot.

    A mark is a step at which something happens. The later it is, the higher its name stands, so
    that names do not touch.

    boxes: left, top, width and height of each plot in inches.
    """
    em = sheet.measure_em(SMALL)
    top = boxes[0][1]
    for i, mark in enumerate(sorted(curves.marks)):
        mark_x = find_step(curves.steps, mark.step, boxes[0])
        above = PAD + LINE_HEIGHT * (i + 0.5)
        name_y = top - above * em
        draw_mark_line(mark_x, name_y, boxes, sheet)
        name_width = sheet.ems(mark.name) * em
        fits = mark_x - name_width >= sheet.x
        alignment = "right" if fits else "left"
        sheet.write(mark_x, name_y, mark.name, SMALL, va="center", ha=alignment)


def draw_mark_line(mark_x: float, name_y: float, boxes: Sequence[Box], sheet: Sheet) -> None:
    """Draw a dashed upright line from below the name of a mark through all plots.

    mark_x: inches from the left of the sheet to the line. name_y: inches from its top to the middle
    of the name. boxes: left, top, width and height of each plot in inches.
    """
    em = sheet.measure_em(SMALL)
    top = boxes[0][1]
    name_bottom = name_y + 0.6 * em
    strokes: list[Stroke] = [((mark_x, name_bottom), (mark_x, top))]
    for _, y, _, height in boxes:
        bottom = y + height
        strokes.append(((mark_x, y), (mark_x, bottom)))
    colour = sheet.mix_dim_colour()
    width = em * POINTS / 12
    dashed = LineCollection(
        strokes,
        colors=[colour],
        linewidths=width,
        linestyles=[MARK_DASHES],
        clip_on=False,
    )
    sheet.axes.add_collection(dashed, autolim=False)
