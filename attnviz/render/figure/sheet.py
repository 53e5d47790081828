"""A sheet of paper: text, cells and colour bars at places in inches, on one axes of matplotlib."""

from collections.abc import Iterable, Sequence
from functools import cache
from math import ceil
from typing import Any, NamedTuple, TypeAlias

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.textpath import text_to_path

from attnviz.drawable import Scale
from attnviz.render.colour import is_light, make_palette
from attnviz.render.figure.layout import (
    LINE_HEIGHT,
    PAD,
    POINTS,
    choose_bar_ticks,
    wrap_text,
)

COLOURS = 254  # with beyond and masked, as many as a byte tells apart
MOST_LINES = 4  # of a title, and of each line of a caption
BAR_WIDTH = 1.2  # ems across the colour bar
SWATCH_LENGTH = 1.6  # ems along the swatch of what is beyond a lying bar
SWATCH_PITCH = BAR_WIDTH + 0.9  # ems from the top of the swatch above an upright bar to the bar
BAR_TICK_SPACING = 2  # ems between the ticks of an upright bar, at least
BAR_DISTANCE = 1.2  # ems between cells and the bar
LEAST_UPRIGHT_LENGTH = 8  # ems along the bar, at least, if it is to stand upright
MOST_LYING_LENGTH = 16  # ems along the bar, at most, if it lies
RC: Any = mpl.rcParams  # names of settings are data here
StepArray: TypeAlias = npt.NDArray[np.integer[Any]]
Box: TypeAlias = tuple[float, float, float, float]  # left, top, width, height in inches
Stroke: TypeAlias = tuple[tuple[float, float], tuple[float, float]]  # (x, y) of both ends


class TextRole(NamedTuple):
    """A kind of text, such as titles or labels: the names of matplotlib's settings for it."""

    size: str
    colour: str
    inherited: str
    """The setting of the colour where the one above says that it is inherited."""
    weight: str = "font.weight"


TITLE = TextRole("axes.titlesize", "axes.titlecolor", "text.color", "axes.titleweight")
LABEL = TextRole("xtick.labelsize", "xtick.labelcolor", "xtick.color")
SMALL = TextRole("axes.labelsize", "axes.labelcolor", "text.color")


class Sheet:
    """A matplotlib figure that is filled downwards, in inches from its top left corner."""

    def __init__(self, width: float, dpi: float, colours: str) -> None:
        """Make an empty sheet.

        width: in inches. dpi: dots per inch. colours: the name of a colour map.
        """
        self.width = width
        self.dpi = dpi
        self.colours = colours
        self.figure = Figure(figsize=(width, 1), dpi=dpi)
        whole = (0, 0, 1, 1)
        self.axes = self.figure.add_axes(whole, xlim=(0, width), ylim=(1, 0))
        self.axes.set_axis_off()
        self.ems = cache(measure_ems)
        """Measures the width of a text in ems, multiples of the font's size."""
        self.margin = self.measure_em(LABEL) / 2
        """Inches that are left free on all sides."""
        self.x = self.margin
        """Inches from the left where lines begin."""
        self.y = self.margin
        """Inches from the top that are filled so far."""
        self.aside = 0.0
        """Inches that are left for a colour bar beside cells, at least."""
        self.room = width - 2 * self.margin
        """The length of lines in inches, at most."""

    def choose_palette(self, scale: Scale | None = None) -> npt.NDArray[np.uint8]:
        """Return the palette of a scale, or for None that of the levels of a table.

        It is an array of bytes (colour, red green blue alpha): COLOURS colours from the lowest
        weight to the top of the scale, the colour beyond the scale, and transparent.
        """
        signed = scale is not None and scale.signed
        return make_palette(self.colours, COLOURS, signed=signed)

    def measure_em(self, role: TextRole) -> float:
        """Return the size of the font for a kind of text, in inches."""
        return measure_em(role)

    def finish(self) -> None:
        """Set the height of the figure: down to what is drawn, a margin, and the next whole dot."""
        end = self.y + self.margin
        height = ceil(end * self.dpi) / self.dpi
        self.figure.set_size_inches(self.width, height)
        self.axes.set_ylim(height, 0)

    def mix_dim_colour(self) -> tuple[float, ...]:
        """Return the colour half way between text and background."""
        text = to_rgb(RC["text.color"])
        background = to_rgb(RC["figure.facecolor"])
        return tuple(np.add(text, background) / 2)

    def write(self, x: float, y: float, text: str, role: TextRole, **look: Any) -> None:
        """Write a text at a point of the figure.

        x, y: inches from the left and from the top. role: the kind of text, which says its size,
        colour and weight. look: settings of matplotlib's Text, in place of those of the role.
        """
        colour = RC[role.colour]
        if colour in ("auto", "inherit"):
            colour = RC[role.inherited]
        points = self.measure_em(role) * POINTS
        settings = {"fontsize": points, "color": colour, "weight": RC[role.weight]}
        self.axes.text(x, y, text, **(settings | look))

    def write_lines(self, text: str, role: TextRole) -> None:
        """Write a text on the next free lines of the figure, wrapped to the room, and fill them.

        A text of more than MOST_LINES lines is cut with an ellipsis. role: the kind of text, which
        says its size, colour and weight.
        """
        em = self.measure_em(role)
        line_height = LINE_HEIGHT * em
        weight = RC[role.weight]

        def measure_weighted(piece: str) -> float:
            return self.ems(piece, weight)

        for line in wrap_text(text, self.room / em, measure_weighted, MOST_LINES):
            middle = self.y + line_height / 2
            self.write(self.x, middle, line, role, va="center")
            self.y += line_height

    def paint(self, steps: StepArray, scale: Scale, box: Box) -> None:
        """Paint cells into a box as an image.

        steps: the number of each cell's colour in the palette of the scale: (row, column). scale:
        one of weights or of differences. box: left, top, width and height in inches.
        """
        x, y, width, height = box
        extent = (x, x + width, y + height, y)
        image = AxesImage(self.axes, interpolation="none", origin="upper", extent=extent)
        image.set_data(self.choose_palette(scale)[steps])
        self.axes.add_image(image)

    def sharpen(self) -> None:
        """Repeat the cells of all images so that a cell has as many dots as the device gives it.

        Some viewers of vector formats blur an image of fewer dots.
        """
        for image in self.axes.images:
            left, right, bottom, top = image.get_extent()
            pixels = np.asarray(image.get_array())
            rows, columns = pixels.shape[:2]
            dots_a_row = ceil((bottom - top) * self.dpi / rows)
            dots_a_column = ceil((right - left) * self.dpi / columns)
            taller = pixels.repeat(dots_a_row, axis=0)
            image.set_data(taller.repeat(dots_a_column, axis=1))

    def frame(self, boxes: Iterable[Box], **look: Any) -> None:
        """Draw lines around boxes.

        boxes: left, top, width and height in inches. look: settings of matplotlib's PolyCollection,
        in place of those of frames.
        """
        settings = {
            "facecolors": "none",
            "edgecolors": RC["axes.edgecolor"],
            "linewidths": RC["axes.linewidth"],
        }
        self.fill(boxes, **(settings | look))

    def fill(self, boxes: Iterable[Box], **look: Any) -> None:
        """Fill boxes, left, top, width and height in inches each.

        look: settings of matplotlib's PolyCollection, such as colours.
        """
        corners = [list_corners(box) for box in boxes]
        polygons = PolyCollection(corners, clip_on=False, **look)
        self.axes.add_collection(polygons, autolim=False)

    def draw_strokes(self, strokes: Sequence[Stroke]) -> None:
        """Draw straight lines in the colour of axes, between (x, y) and (x, y) in inches each."""
        colour = RC["axes.edgecolor"]
        width = RC["axes.linewidth"]
        lines = LineCollection(strokes, clip_on=False, colors=colour, linewidths=width)
        self.axes.add_collection(lines, autolim=False)


def list_corners(box: Box) -> list[tuple[float, float]]:
    """List the (x, y) of each corner of a box.

    box: left, top, width and height.
    """
    x, y, width, height = box
    right = x + width
    bottom = y + height
    return [(x, y), (right, y), (right, bottom), (x, bottom)]


def measure_em(role: TextRole) -> float:
    """Return the size of the font for a kind of text, in inches.

    role: has the name of matplotlib's setting of that size.
    """
    font = FontProperties(size=RC[role.size])
    return float(font.get_size_in_points()) / POINTS


def measure_ems(text: str, weight: str | int | None = None) -> float:
    """Return the width of a text in ems, that is, in multiples of the font's size.

    weight: of the font, such as "bold"; None for matplotlib's usual one.
    """
    font = FontProperties(size=1, weight=weight)
    extent = text_to_path.get_text_width_height_descent(text, font, False)
    width: float = extent[0]
    return width


def choose_ink(colour: npt.NDArray[np.uint8]) -> str:
    """Return black or white, whichever can be read on a colour.

    colour: red, green, blue, and perhaps alpha, as bytes.
    """
    red, green, blue = map(int, colour[:3])
    return "black" if is_light(red, green, blue) else "white"


def format_bar_weight(weight: float) -> str:
    """Format a weight beside a colour bar to two digits."""
    return f"{weight:.2g}"


def label_beyond(scale: Scale) -> str:
    """Return the label of the swatch of weights beyond a scale."""
    return f"> {format_bar_weight(scale.top)}"


# Colour bars


def measure_upright_bar(sheet: Sheet, scale: Scale) -> float:
    """Return the inches that an upright colour bar takes on the right of cells.

    That is the distance from the cells, and the bar with its labels or its name, if that is wider.
    """
    # The length of the bar is not known yet. A bar hardly has more labels than these.
    labels = [format_bar_weight(weight) for weight in choose_bar_ticks(scale, 1, 0.1)]
    if scale.has_beyond:
        labels.append(label_beyond(scale))
    widest_label = max(map(sheet.ems, labels))
    bar_width = widest_label + BAR_WIDTH + PAD
    name_width = sheet.ems(scale.name)
    return (max(bar_width, name_width) + BAR_DISTANCE) * sheet.measure_em(SMALL)


def draw_upright_bar(sheet: Sheet, scale: Scale, x: float, y: float, height: float) -> None:
    """Draw an upright colour bar on the right of cells, with its name above it.

    If there are weights beyond the scale, a square in their colour stands on top of the bar.

    x: the right end of the cells. y, height: the top and the height of the cells. All of them are
    in inches from the left and from the top of the sheet.
    """
    em = sheet.measure_em(SMALL)
    x += BAR_DISTANCE * em
    label_x = x + (BAR_WIDTH + PAD) * em
    width = BAR_WIDTH * em
    name_bottom = y - 0.8 * em
    sheet.write(x, name_bottom, scale.name, SMALL, va="bottom")
    if scale.has_beyond:
        middle_y = y + width / 2
        draw_swatch(sheet, scale, (x, y, width, width))
        sheet.write(label_x, middle_y, label_beyond(scale), SMALL, va="center")
        y += SWATCH_PITCH * em
        height -= SWATCH_PITCH * em
    upwards = np.arange(COLOURS)[::-1, None]
    draw_bar_colours(sheet, scale, upwards, (x, y, width, height))
    weights = choose_bar_ticks(scale, height, BAR_TICK_SPACING * em)
    levels = [float(scale.levels(weight)) for weight in weights]
    positions = [y + height * (1 - level) for level in levels]
    left = x + width
    right = left + PAD * em / 2
    sheet.draw_strokes([((left, position), (right, position)) for position in positions])
    for weight, position in zip(weights, positions, strict=True):
        sheet.write(label_x, position, format_bar_weight(weight), SMALL, va="center")


def draw_lying_bar(sheet: Sheet, scale: Scale) -> None:
    """Draw a lying colour bar on the next free lines of a sheet, a figure that is filled downwards.

    From left to right, it has the name of the scale, its colours with weights below them, and, if
    there are weights beyond the scale, a box in their colour.
    """
    em = sheet.measure_em(SMALL)
    before, after = measure_bar_ends(sheet, scale)
    x = sheet.x + before
    y = sheet.y + 0.3 * em
    height = BAR_WIDTH * em
    room = sheet.room - before - sheet.margin - after - 2 * em
    length = min(MOST_LYING_LENGTH * em, room)
    middle_y = y + height / 2
    sheet.write(sheet.x, middle_y, scale.name, SMALL, va="center")
    rightwards = np.arange(COLOURS)[None]
    draw_bar_colours(sheet, scale, rightwards, (x, y, length, height))
    write_lying_ticks(sheet, scale, x, y, length)
    if scale.has_beyond:
        middle_x = x + length + after
        width = SWATCH_LENGTH * em
        left = middle_x - width / 2
        draw_swatch(sheet, scale, (left, y, width, height))
        write_below_bar(sheet, middle_x, y, label_beyond(scale))
    bar_ems = BAR_WIDTH + PAD + LINE_HEIGHT + 0.3
    sheet.y = y + bar_ems * em


def measure_bar_ends(sheet: Sheet, scale: Scale) -> tuple[float, float]:
    """Return the inches that a lying colour bar takes before its colours and after them.

    Before them is the name of the scale. After them are the inches from the end of the colours to
    the middle of the box that shows the colour beyond the scale.
    """
    em = sheet.measure_em(SMALL)
    top = format_bar_weight(scale.top)
    # The label at the top of the scale must not touch the one below the box.
    labels_width = sheet.ems(top) + sheet.ems(label_beyond(scale))
    after = (0.6 + labels_width / 2) * em
    name_width = sheet.ems(scale.name) + 1
    if scale.signed:
        name_width += sheet.ems(f"-{top}") / 2
    return name_width * em, after


def write_lying_ticks(sheet: Sheet, scale: Scale, x: float, y: float, length: float) -> None:
    """Write weights below a lying colour bar, with a stroke from the bar to each.

    x, y: left and top of the bar's colours. length: the length of the colours. All are in inches.
    """
    em = sheet.measure_em(SMALL)
    # Labels that stand anywhere on such a bar are about as wide as these.
    labels = [format_bar_weight(weight) for weight in choose_bar_ticks(scale, 1, 0.2)]
    widest = max(map(sheet.ems, labels))
    weights = choose_bar_ticks(scale, length, (0.8 + widest) * em)
    levels = [float(scale.levels(weight)) for weight in weights]
    positions = [x + length * level for level in levels]
    top = y + BAR_WIDTH * em
    bottom = y + (BAR_WIDTH + PAD / 2) * em
    sheet.draw_strokes([((position, top), (position, bottom)) for position in positions])
    for weight, position in zip(weights, positions, strict=True):
        write_below_bar(sheet, position, y, format_bar_weight(weight))


def write_below_bar(sheet: Sheet, x: float, y: float, text: str) -> None:
    """Write a text below a lying colour bar.

    x: the middle of the text. y: the top of the bar. Both are in inches from the sheet's corner.
    """
    top = y + (BAR_WIDTH + PAD) * sheet.measure_em(SMALL)
    sheet.write(x, top, text, SMALL, va="top", ha="center")


def draw_bar_colours(sheet: Sheet, scale: Scale, steps: StepArray, box: Box) -> None:
    """Draw colours of a scale into a box, with a frame around it.

    steps: numbers of colours in the palette of the scale: (row, column). box: in inches.
    """
    sheet.paint(steps, scale, box)
    sheet.frame([box])


def draw_swatch(sheet: Sheet, scale: Scale, box: Box) -> None:
    """Draw the colour of weights beyond a scale into a box, with a frame around it.

    box: left, top, width and height in inches.
    """
    # One cell; this number follows those of the scale's colours.
    beyond = np.array([[COLOURS]])
    draw_bar_colours(sheet, scale, beyond, box)
