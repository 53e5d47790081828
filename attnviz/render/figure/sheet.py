"""A sheet of paper: text, cells and a colour bar at their places in inches, on one axes of matplotlib's."""

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
from attnviz.render.colour import is_light, palette
from attnviz.render.figure.layout import LINE, PAD, ticks, wrap

COLOURS = 254  # with what is beyond and what is masked, as many as a byte tells apart
LINES = 4  # of a title, and of each part of a caption
BAR = 1.2  # ems across the colour bar
SWATCH = 1.6  # ems along the swatch of what is beyond it
APART = 2  # ems between the marks of an upright bar, at least
ASIDE = 1.2  # ems between cells and the bar
STANDING = 8  # ems along the bar, at least, if it is to stand upright
LYING = 16  # and at most if it lies
RC: Any = mpl.rcParams  # names of settings are data here
Steps: TypeAlias = npt.NDArray[np.integer[Any]]
Box: TypeAlias = tuple[float, float, float, float]  # left, top, width, height in inches


class Role(NamedTuple):
    """What a text is for: the names of matplotlib's settings for it."""

    size: str
    colour: str
    inherited: str
    """Where the colour comes from if that says so."""
    weight: str = "font.weight"


TITLE = Role("axes.titlesize", "axes.titlecolor", "text.color", "axes.titleweight")
LABEL = Role("xtick.labelsize", "xtick.labelcolor", "xtick.color")
SMALL = Role("axes.labelsize", "axes.labelcolor", "text.color")


class Sheet:
    """A figure in inches from its top left corner, filled downwards."""

    def __init__(self, width: float, dpi: float, colours: str) -> None:
        self.width, self.dpi = width, dpi
        self.colours = colours
        self.figure = Figure(figsize=(width, 1), dpi=dpi)
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(1, 0))
        self.axes.set_axis_off()
        self.ems = cache(ems)
        self.margin = self.x = self.y = self.em(LABEL) / 2
        """Inches that are left free on all sides; where lines begin; inches from the top that are filled."""
        self.aside = 0.0
        """Inches that are left for a colour bar beside cells, at least."""
        self.room = width - 2 * self.margin
        """Inches that lines may be long."""

    def palette(self, scale: Scale | None = None) -> npt.NDArray[np.uint8]:
        """The colours of a scale by step, or of levels."""
        return palette(self.colours, COLOURS, signed=scale is not None and scale.signed)

    def em(self, role: Role) -> float:
        """Inches of the size of a font."""
        return em(role)

    def finish(self) -> None:
        """Cut the sheet below what is filled, at a whole dot."""
        height = ceil((self.y + self.margin) * self.dpi) / self.dpi
        self.figure.set_size_inches(self.width, height)
        self.axes.set_ylim(height, 0)

    def dim(self) -> tuple[float, ...]:
        """The colour of text half way to the background."""
        return tuple(np.add(to_rgb(RC["text.color"]), to_rgb(RC["figure.facecolor"])) / 2)

    def write(self, x: float, y: float, text: str, role: Role, **look: Any) -> None:
        """A text at a place."""
        named = RC[role.colour]
        colour = RC[role.inherited] if named in ("auto", "inherit") else named
        usual = {"fontsize": self.em(role) * 72, "color": colour, "weight": RC[role.weight]}
        self.axes.text(x, y, text, **(usual | look))

    def lines(self, text: str, role: Role) -> None:
        """A text as long as there is room, below what is there."""
        em, weight = self.em(role), RC[role.weight]
        for line in wrap(text, self.room / em, lambda part: self.ems(part, weight), LINES):
            self.write(self.x, self.y + LINE * em / 2, line, role, va="center")
            self.y += LINE * em

    def paint(self, steps: Steps, scale: Scale, box: Box) -> None:
        """Cells by their steps (row, column) of a scale."""
        x, y, width, height = box
        image = AxesImage(
            self.axes, interpolation="none", origin="upper", extent=(x, x + width, y + height, y)
        )
        image.set_data(self.palette(scale)[steps])
        self.axes.add_image(image)

    def sharpen(self) -> None:
        """Give images as many dots as the device has: some viewers of vector formats blur those of few."""
        for image in self.axes.images:
            left, right, bottom, top = image.get_extent()
            pixels = np.asarray(image.get_array())
            rows, columns = (
                ceil(side * self.dpi / n)
                for side, n in zip((bottom - top, right - left), pixels.shape, strict=False)
            )
            image.set_data(pixels.repeat(rows, axis=0).repeat(columns, axis=1))

    def frame(self, boxes: Iterable[Box], **look: Any) -> None:
        """Lines around boxes."""
        usual = {"edgecolors": RC["axes.edgecolor"], "linewidths": RC["axes.linewidth"]}
        self.fill(boxes, **({"facecolors": "none"} | usual | look))

    def fill(self, boxes: Iterable[Box], **look: Any) -> None:
        """Boxes."""
        corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in boxes]
        self.axes.add_collection(PolyCollection(corners, clip_on=False, **look), autolim=False)

    def strokes(self, lines: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> None:
        """Lines that mark places."""
        look = {"colors": RC["axes.edgecolor"], "linewidths": RC["axes.linewidth"]}
        self.axes.add_collection(LineCollection(lines, clip_on=False, **look), autolim=False)


def em(role: Role) -> float:
    """Inches of the size of a font."""
    return float(FontProperties(size=RC[role.size]).get_size_in_points()) / 72


def ems(text: str, weight: str | int | None = None) -> float:
    """The width of a text in ems, of the usual weight if none is given."""
    found: float = text_to_path.get_text_width_height_descent(
        text, FontProperties(size=1, weight=weight), False
    )[0]
    return found


def ink_on(colour: npt.NDArray[np.uint8]) -> str:
    """The colour of text that can be read on a colour."""
    return "black" if is_light(*map(int, colour[:3])) else "white"


def beyond_label(scale: Scale) -> str:
    """What the swatch stands for."""
    return f"> {scale.top:.2g}"


def upright_room(sheet: Sheet, scale: Scale) -> float:
    """Inches that a colour bar takes on the right of cells."""
    labels = [f"{weight:.2g}" for weight in ticks(scale, 1, 0.1)] + [
        beyond_label(scale)
    ] * scale.has_beyond
    widest = max(map(sheet.ems, labels)) + BAR + PAD
    return (max(widest, sheet.ems(scale.name)) + ASIDE) * sheet.em(SMALL)


def draw_upright_bar(sheet: Sheet, scale: Scale, x: float, y: float, height: float) -> None:
    """A colour bar on the right of cells that end at x, what is beyond it on top, its name above."""
    em = sheet.em(SMALL)
    x += ASIDE * em
    across, aside = BAR * em, x + (BAR + PAD) * em
    sheet.write(x, y - 0.8 * em, scale.name, SMALL, va="bottom")
    if scale.has_beyond:
        box = (x, y, across, BAR * em)
        sheet.paint(np.array([[COLOURS]]), scale, box)
        sheet.frame([box])
        sheet.write(aside, y + BAR * em / 2, beyond_label(scale), SMALL, va="center")
        y, height = y + (BAR + 0.9) * em, height - (BAR + 0.9) * em
    box = (x, y, across, height)
    sheet.paint(np.arange(COLOURS)[::-1, None], scale, box)
    sheet.frame([box])
    named = ticks(scale, height, APART * em)
    places = [y + height * (1 - float(scale.levels(weight))) for weight in named]
    sheet.strokes([((x + across, place), (x + across + PAD * em / 2, place)) for place in places])
    for weight, place in zip(named, places, strict=True):
        sheet.write(aside, place, f"{weight:.2g}", SMALL, va="center")


def draw_lying_bar(sheet: Sheet, scale: Scale) -> None:
    """A colour bar below what is there: its name, its colours, and what is beyond it."""
    em = sheet.em(SMALL)
    apart = 0.8 + max(sheet.ems(f"{weight:.2g}") for weight in ticks(scale, 1, 0.2))
    after = (0.6 + (sheet.ems(f"{scale.top:.2g}") + sheet.ems(beyond_label(scale))) / 2) * em
    before = (sheet.ems(scale.name) + 1 + scale.signed * sheet.ems(f"-{scale.top:.2g}") / 2) * em
    x, y = sheet.x + before, sheet.y + 0.3 * em
    length = min(LYING * em, sheet.room - before - sheet.margin - after - 2 * em)
    sheet.write(sheet.x, y + BAR * em / 2, scale.name, SMALL, va="center")
    box = (x, y, length, BAR * em)
    sheet.paint(np.arange(COLOURS)[None], scale, box)
    sheet.frame([box])
    named = ticks(scale, length, apart * em)
    places = [x + length * float(scale.levels(weight)) for weight in named]
    sheet.strokes([((place, y + BAR * em), (place, y + (BAR + PAD / 2) * em)) for place in places])
    for weight, place in zip(named, places, strict=True):
        sheet.write(place, y + (BAR + PAD) * em, f"{weight:.2g}", SMALL, va="top", ha="center")
    if scale.has_beyond:
        middle = x + length + after
        box = (middle - SWATCH * em / 2, y, SWATCH * em, BAR * em)
        sheet.paint(np.array([[COLOURS]]), scale, box)
        sheet.frame([box])
        sheet.write(middle, y + (BAR + PAD) * em, beyond_label(scale), SMALL, va="top", ha="center")
    sheet.y = y + (BAR + PAD + LINE + 0.3) * em
