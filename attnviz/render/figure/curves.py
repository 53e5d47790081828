"""Curves as a figure: plots below each other over the same steps, each curve with its name where it ends."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.collections import LineCollection

from attnviz.drawable import Curve, Curves, Plot
from attnviz.render.figure.layout import LINE, PAD, cut, spread
from attnviz.render.figure.sheet import LABEL, SMALL, Box, Sheet
from attnviz.render.terminal.chart import LINES, round_places, round_steps

DASHES: tuple[Any, ...] = (
    "solid",
    *((0, dashes) for dashes in ((4, 1.5), (1, 1), (4, 1, 1, 1), (7, 1.5), (2, 2))),
)
FLAT = 0.42  # heights of a plot by its width
NAMES = 0.4  # of the width for the names of curves, at most
LEADER = 1.2  # ems from where a curve ends to its name
TICK = 0.3  # ems of a mark beside a number
STROKE = 1 / 6  # ems across a curve
BETWEEN = 0.7  # ems between plots
ROWS, COLUMNS = 2.5, 5.0  # ems that a number on an axis has at least, above and beside others
CURVES = 3  # above what else is drawn


def draw_curves(drawable: Curves, sheet: Sheet) -> None:
    """Plots below each other, their curves named on the right, the steps below the last."""
    em = sheet.em(LABEL)
    ticks = [
        f"{tick:g}" for plot in drawable.plots for tick in round_places(plot.low, plot.high, 9)
    ]
    left = (max(map(sheet.ems, ticks)) + PAD + TICK) * em
    named = max(sheet.ems(curve.name) for plot in drawable.plots for curve in plot.curves)
    right = min((named + LEADER) * em, NAMES * sheet.room)
    x, width = sheet.x + left, sheet.room - left - right
    boxes = []
    for i, plot in enumerate(drawable.plots):
        sheet.lines(plot.name, SMALL)
        sheet.y += sheet.em(SMALL) * (2 * PAD + LINE * len(drawable.marks) * (i == 0))
        high = max(FLAT * width, (len(plot.curves) + 1) * LINE * em)
        boxes.append((x, sheet.y, width, high))
        sheet.y += high + BETWEEN * em
    write_steps(drawable, boxes[-1], sheet)
    write_marks(drawable, boxes, sheet)
    for plot, box in zip(drawable.plots, boxes, strict=True):
        draw_plot(drawable.steps, plot, box, right, sheet)
    for line in drawable.caption:
        sheet.lines(line, SMALL)


def draw_plot(steps: Sequence[int], plot: Plot, box: Box, right: float, sheet: Sheet) -> None:
    """The curves of a plot in their box, round numbers on its left, names on its right, the first above the others."""
    x, y, width, height = box
    em = sheet.em(LABEL)
    sheet.frame([box])
    for tick in round_places(plot.low, plot.high, int(height / (ROWS * em))):
        at = y + height * (plot.high - tick) / (plot.high - plot.low)
        sheet.strokes([((x - TICK * em, at), (x, at))])
        sheet.write(x - (TICK + PAD / 2) * em, at, f"{tick:g}", LABEL, va="center", ha="right")
    ends = [end(places(steps, curve, plot, box), box) for curve in plot.curves]
    spots = spread([at - y for _, at in ends], LINE * em, height)
    for i, (curve, last, spot) in reversed(
        [*enumerate(zip(plot.curves, ends, spots, strict=True))]
    ):
        parts = [*unbroken(places(steps, curve, plot, box), STROKE * em)]
        stroke(sheet, parts, i, STROKE * em, linestyles=[DASHES[i % len(DASHES)]], zorder=CURVES)
        stroke(
            sheet,
            [np.array([last, (x + width + LEADER * em * 0.8, y + spot)])],
            i,
            STROKE * em / 2,
            alpha=0.5,
        )
        name = cut(curve.name, right / em - LEADER, sheet.ems)
        sheet.write(x + width + LEADER * em, y + spot, name, LABEL, va="center")


def stroke(
    sheet: Sheet, parts: Sequence[npt.NDArray[np.float64]], place: int, wide: float, **look: Any
) -> None:
    """Lines of so many inches across in the colour of a curve."""
    colour = [part / 255 for part in LINES[place % len(LINES)]]
    drawn = LineCollection(parts, colors=[colour], linewidths=wide * 72, clip_on=False, **look)
    sheet.axes.add_collection(drawn, autolim=False)


def places(steps: Sequence[int], curve: Curve, plot: Plot, box: Box) -> npt.NDArray[np.float64]:
    """Where the numbers of a curve stand, (step, 2) in inches from the left and the top; NaN for none."""
    x, y, width, height = box
    across = (np.array(steps, np.float64) - steps[0]) / max(steps[-1] - steps[0], 1)
    down = np.clip(
        (plot.high - np.asarray(curve.values, np.float64)) / (plot.high - plot.low), 0, 1
    )
    return np.stack([x + across * width, y + down * height], axis=1)


def unbroken(found: npt.NDArray[np.float64], dot: float) -> Iterator[npt.NDArray[np.float64]]:
    """The parts of a curve between its gaps; a number between two gaps is a dot of so many inches."""
    known = np.isfinite(found[:, 1])
    for part in np.split(np.arange(len(found)), np.flatnonzero(np.diff(known)) + 1):
        if known[part[0]]:
            yield found[part] if len(part) > 1 else found[part] + [[-dot / 2, 0], [dot / 2, 0]]


def end(found: npt.NDArray[np.float64], box: Box) -> tuple[float, float]:
    """Where a curve ends: its last number, or where there is none the lower right corner of its box."""
    known = found[np.isfinite(found[:, 1])]
    return (
        (float(known[-1, 0]), float(known[-1, 1]))
        if len(known)
        else (box[0] + box[2], box[1] + box[3])
    )


def write_steps(drawable: Curves, box: Box, sheet: Sheet) -> None:
    """Round steps below a box, and what they are below these."""
    x, y, width, height = box
    em = sheet.em(LABEL)
    sheet.y = y + height + (TICK + PAD / 2) * em
    for step in round_steps(drawable.steps, int(width / (COLUMNS * em))):
        at = x + width * (step - drawable.steps[0]) / max(drawable.steps[-1] - drawable.steps[0], 1)
        sheet.strokes([((at, y + height), (at, y + height + TICK * em))])
        sheet.write(at, sheet.y, f"{step:,}", LABEL, va="top", ha="center")
    sheet.y += LINE * em
    sheet.write(x + width / 2, sheet.y, drawable.name, SMALL, va="top", ha="center")
    sheet.y += (LINE + PAD) * sheet.em(SMALL)


def write_marks(drawable: Curves, boxes: Sequence[Box], sheet: Sheet) -> None:
    """A line through all boxes for each mark, its name above the first of them: the later the higher, to the left."""
    em, steps = sheet.em(SMALL), drawable.steps
    x, top, width, _ = boxes[0]
    for i, mark in enumerate(sorted(drawable.marks)):
        at = x + width * (mark.step - steps[0]) / max(steps[-1] - steps[0], 1)
        line = top - (PAD + LINE * (i + 0.5)) * em
        fits = at - sheet.ems(mark.name) * em >= sheet.x
        dashed = LineCollection(
            [
                [(at, line + 0.6 * em), (at, top)],
                *([(at, y), (at, y + high)] for _, y, _, high in boxes),
            ],
            colors=[sheet.dim()],
            linewidths=em * 72 / 12,
            linestyles=[(0, (3, 3))],
            clip_on=False,
        )
        sheet.axes.add_collection(dashed, autolim=False)
        sheet.write(at, line, mark.name, SMALL, va="center", ha="right" if fits else "left")
