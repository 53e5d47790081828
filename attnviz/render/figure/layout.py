"""Where things stand on a figure: labels that can be read, lines that wrap, ticks that do not touch. Numbers alone.

Widths of text are in ems, multiples of the font's size: letters are not fitted to dots, and are alike at every size.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import floor, log10
from typing import NamedTuple, TypeAlias

from attnviz.drawable import Axis, Scale
from attnviz.render.matrices import TOKENS

Ems: TypeAlias = Callable[[str], float]

LINE = 1.25  # ems from one line to the next
CLOSE = 1.1  # ems from one label to the next
LEAST = 4.5  # points of a label that can be read in print
FAINTEST = 0.55  # the smallest label, as a share of the size that labels should have
EASY = 0.75  # the same where height costs nothing
SIGNS = 20  # of a label; the rest is cut
CELL = 4.5  # lines that a cell may be high, so that a matrix of one cell is no poster
TALL = 2.5  # heights of a matrix by its width, at most, and of many
FLAT = 4.0  # widths of a thumbnail by its height, or the other way round, at most
GAP = 0.08  # between thumbnails, by their width
ROUNDS = 8  # after which a plan has settled
MARGIN = 0.3  # of the width for the labels of the rows, at most
PAD = 0.5  # ems between labels and cells


class Marks(NamedTuple):
    """The labels that stand along an axis."""

    points: float
    labels: tuple[str, ...]
    places: tuple[float, ...]
    """Where the middle of each stands, as a share of the axis."""
    sparse: bool
    """Tokens between them have none."""


@dataclass(frozen=True)
class Plan:
    """A matrix with labels on its left and above it: lengths in inches, size of the labels in points."""

    left: float
    above: float
    width: float
    height: float
    points: float
    rows: Marks
    columns: Marks
    level: bool
    """The labels of the columns are short enough to be written as text is, not upwards."""


def plan(rows: Axis, columns: Axis, room: float, points: float, ems: Ems) -> Plan:
    """A matrix with its labels on so many inches, the labels as large as there is room, up to so many points.

    Smaller labels leave more room, which lets them be larger: a few rounds settle it, from the smallest on.
    """
    left = needed = 0.0
    for _ in range(ROUNDS):
        left, width = needed, room - needed
        height = high(rows.cells, columns.cells, width, points / 72)
        down, along = (
            marks(rows, height, points, last=True),
            marks(columns, width, points, last=False),
        )
        size = min(down.points, along.points)
        needed = min(wide(down.labels, size, ems), room * MARGIN)
    if needed > left:
        size = max(LEAST, size * left / needed)
    level = columns.name not in TOKENS and wide(along.labels, size, ems) <= width / columns.cells
    above = (LINE + PAD) * size / 72 if level else min(wide(along.labels, size, ems), room * MARGIN)
    return Plan(left, above, width, height, size, down, along, level)


def wide(labels: Sequence[str], points: float, ems: Ems) -> float:
    """Inches of the widest label, and of the space beside it."""
    return (max(map(ems, labels), default=0) + PAD) * points / 72


def high(rows: int, columns: int, width: float, em: float) -> float:
    """Inches that a matrix is high: square cells, unless labels could not be read or the matrix would be a tower."""
    line = CLOSE * em
    low = min(rows * line, width)
    most = max(width, min(rows * line * EASY, width * TALL))
    return min(max(low, min(rows * width / columns, most)), rows * CELL * line)


def marks(axis: Axis, length: float, points: float, *, last: bool) -> Marks:
    """All labels of an axis if they can be read, else every so many with the numbers of their tokens.

    The number stands next to the cells: it comes ``last`` on the left of them, first where text runs upwards.
    """
    each = length * 72 / (axis.cells * axis.step)  # points that a token has
    least = max(LEAST, points * FAINTEST) * CLOSE
    every = next(
        k
        for k in steps(axis.step)
        if k * each >= (least if k == 1 else 1.3 * least) or k >= len(axis)
    )
    shown = range(0, len(axis), every)
    labels = tuple(short(axis.labels[i]) for i in shown)
    if every > 1 and axis.name in TOKENS:
        numbered = zip(labels, (axis.numbers[i] for i in shown), strict=True)
        labels = tuple(
            f"{label} {number}" if last else f"{number} {label}" for label, number in numbered
        )
    places = tuple((i + min(axis.step, len(axis)) / 2) / (axis.cells * axis.step) for i in shown)
    return Marks(min(points, max(every * each, least) / CLOSE), labels, places, every > 1)


def steps(step: int) -> Iterator[int]:
    """Round numbers of tokens from one label to the next: tiles times 1, 2, 5, 10, 20, 50 and so on."""
    power = step
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def short(label: str) -> str:
    """A label of not too many signs."""
    return label if len(label) <= SIGNS else label[: SIGNS - 1] + "…"


def start(text: str, room: float, ems: Ems) -> str:
    """As much of the beginning of a text as fits in so many ems, at least a sign."""
    near = text[: max(1, int(room * 10))]  # hardly a sign is narrower than a tenth of an em
    return near[
        : max(1, bisect_right(range(1, len(near) + 1), room, key=lambda length: ems(near[:length])))
    ]


def cut(text: str, room: float, ems: Ems) -> str:
    """A text as it is if it fits in so many ems, else cut with an ellipsis."""
    if len(text) < room * 10 and ems(text) <= room + 1e-6:
        return text
    return start(text, room - ems("…"), ems).rstrip() + "…"


def wrap(text: str, room: float, ems: Ems, most: int) -> list[str]:
    """A text in lines of at most so many ems, words longer than that broken, and at most so many lines."""
    lines: list[str] = []
    words = text.split()[::-1]
    while words and len(lines) <= most:
        line = words.pop()
        if len(line) > room * 10 or ems(line) > room:
            head = start(line, room, ems)
            words.append(line[len(head) :])
            line = head
        else:
            while words and ems(f"{line} {words[-1]}") <= room:
                line = f"{line} {words.pop()}"
        lines.append(line)
    return (
        lines
        if len(lines) <= most
        else [*lines[: most - 1], cut(lines[most - 1] + " …", room, ems)]
    )


def spread(places: Sequence[float], least: float, length: float) -> list[float]:
    """Places from 0 to a length in their order, moved until each is at least so far from the next and from the ends."""
    found, order = list(places), sorted(range(len(places)), key=places.__getitem__)
    last = -least / 2
    for i in order:
        found[i] = last = max(found[i], last + least)
    last = length + least / 2
    for i in reversed(order):
        found[i] = last = min(found[i], last - least)
    return found


def ticks(scale: Scale, length: float, apart: float) -> list[float]:
    """Weights to name beside a colour bar so long: its ends, and round ones between at least so far apart."""
    if scale.signed:
        half = ticks(scale._replace(signed=False), length / 2, apart)
        return [*(-weight for weight in half[:0:-1]), *half]
    top = scale.top or 1.0
    found, places = [0.0, top], [0.0, length]
    first = floor(log10(top))
    for power, digit in product(range(first, first - 4, -1), (5, 2, 1)):
        weight = digit * 10.0**power
        place = float(scale.levels(weight)) * length
        if top / 50 <= weight < top and all(abs(place - other) >= apart for other in places):
            found.append(weight)
            places.append(place)
    return sorted(found)


class Lattice(NamedTuple):
    """Where thumbnails stand: lengths in inches."""

    shape: tuple[int, int]
    wide: float
    """Of a thumbnail."""
    high: float
    across: float
    """From one to the next."""
    down: float

    @property
    def width(self) -> float:
        """Of all."""
        return (self.shape[1] - 1) * self.across + self.wide

    @property
    def height(self) -> float:
        """Of all."""
        return (self.shape[0] - 1) * self.down + self.high

    def box(self, x: float, y: float, row: int, column: int) -> tuple[float, float, float, float]:
        """Left, top, width and height of a thumbnail, given where the first begins."""
        return x + column * self.across, y + row * self.down, self.wide, self.high


def lattice(shape: tuple[int, int], room: float, form: float, between: float) -> Lattice:
    """Thumbnails, so many times as high as wide, on so many inches, and so many between rows beside the gap.

    If they would be a tower, they are smaller, with more between them.
    """
    rows, columns = shape
    form = min(max(form, 1 / FLAT), FLAT)
    wide = room / (columns + (columns - 1) * GAP)
    low = min(wide, (room * TALL / rows - between) / (form + GAP))
    across = (room - low) / (columns - 1) if columns > 1 else room
    return Lattice(shape, low, low * form, across, low * (form + GAP) + between)
