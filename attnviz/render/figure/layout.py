"""Layout of figures in numbers alone: readable labels, wrapped lines, ticks that stay apart.

Widths of text are in ems, multiples of the font's size. Letters are not fitted to dots, so that
they are alike at every size. Points are 1/72 inch.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import floor, log10
from typing import NamedTuple, TypeAlias

from attnviz.drawable import Axis, Scale
from attnviz.render.matrices import TOKEN_AXES

Ems: TypeAlias = Callable[[str], float]
"""A function that measures the width of a text in ems."""

POINTS = 72  # an inch
LINE_HEIGHT = 1.25  # ems from one line to the next
LABEL_PITCH = 1.1  # ems from one label to the next
LEAST_POINTS = 4.5  # of a label that can be read in print
LEAST_SHARE_OF_SIZE = 0.55  # of the size that labels should have, for the smallest label
EASY_SHARE_OF_SIZE = 0.75  # the smallest label where height costs nothing
SPARSE_FACTOR = 1.3  # by which labels are further apart where not every token has one
MOST_CHARACTERS = 20  # of a label; the rest is cut
MOST_CELL_LINES = 4.5  # that a cell is high, so that a matrix of one cell is no poster
MOST_HEIGHT_BY_WIDTH = 2.5  # of a matrix, and of many together
MOST_THUMBNAIL_RATIO = 4.0  # of the longer to the shorter side
THUMBNAIL_GAP = 0.08  # between thumbnails, as a share of their width
ROUNDS = 8  # after which a plan has settled
MOST_MARGIN = 0.3  # of the width, for labels
PAD = 0.5  # ems between labels and cells
CHARACTERS_AN_EM = 10  # at most: hardly a character is narrower than a tenth of an em
SLACK = 1e-6  # ems by which a text that fits may seem too wide
ELLIPSIS = "…"


class AxisLabels(NamedTuple):
    """The labels that stand along an axis."""

    points: float
    """The size of the labels for which there is room."""
    texts: tuple[str, ...]
    positions: tuple[float, ...]
    """The middle of each label, as a share of the axis."""
    sparse: bool
    """Tokens between the labels have none."""


@dataclass(frozen=True)
class MatrixPlan:
    """A matrix with labels on its left and above it: lengths in inches, size of text in points."""

    left: float
    above: float
    width: float
    height: float
    points: float
    rows: AxisLabels
    columns: AxisLabels
    level: bool
    """The labels of the columns are short enough to be written as text is, not upwards."""


def plan_matrix(rows: Axis, columns: Axis, room: float, points: float, ems: Ems) -> MatrixPlan:
    """Lay out a matrix with its labels, which are as large as there is room.

    Smaller labels leave more room for cells, which then have room for larger labels. A few rounds
    settle this, from the smallest labels on.

    room: inches from the left of the labels to the right of the cells. points: of labels, at most.
    """
    left = 0.0
    needed = 0.0
    most_margin = room * MOST_MARGIN
    for _ in range(ROUNDS):
        left = needed
        width = room - needed
        height = choose_matrix_height(rows.cells, columns.cells, width, points / POINTS)
        row_labels = choose_labels(rows, height, points, last=True)
        column_labels = choose_labels(columns, width, points, last=False)
        size = min(row_labels.points, column_labels.points)
        row_width = measure_widest(row_labels.texts, size, ems)
        needed = min(row_width, most_margin)
    if needed > left:
        size = max(LEAST_POINTS, size * left / needed)
    column_width = measure_widest(column_labels.texts, size, ems)
    column_pitch = width / columns.cells
    level = columns.name not in TOKEN_AXES and column_width <= column_pitch
    above = min(column_width, most_margin)
    if level:
        above = (LINE_HEIGHT + PAD) * size / POINTS
    return MatrixPlan(left, above, width, height, size, row_labels, column_labels, level)


def measure_widest(labels: Sequence[str], points: float, ems: Ems) -> float:
    """Return the inches of the widest label, and of the space beside it."""
    widest = max(map(ems, labels), default=0)
    return (widest + PAD) * points / POINTS


def choose_matrix_height(rows: int, columns: int, width: float, em: float) -> float:
    """Choose the inches that a matrix is high.

    Cells are square, unless labels could not be read then, or the matrix would be a tower.

    rows, columns: numbers of cells. width: inches of the matrix. em: inches of the labels' size.
    """
    line = LABEL_PITCH * em
    least = min(rows * line, width)
    easy_height = rows * line * EASY_SHARE_OF_SIZE
    tower_height = width * MOST_HEIGHT_BY_WIDTH
    most = max(width, min(easy_height, tower_height))
    square = rows * width / columns
    poster_height = rows * MOST_CELL_LINES * line
    height = max(least, min(square, most))
    return min(height, poster_height)


def choose_labels(axis: Axis, length: float, points: float, *, last: bool) -> AxisLabels:
    """Choose the labels of an axis: all if they can be read, else every so many.

    Where not every token has a label, labels have the numbers of their tokens. The number stands
    next to the cells: it comes ``last`` on the left of them, first where text runs upwards.

    length: inches of the axis. points: of labels, at most.
    """
    least = max(LEAST_POINTS, points * LEAST_SHARE_OF_SIZE) * LABEL_PITCH
    tiled_tokens = axis.cells * axis.step
    token_points = length * POINTS / tiled_tokens
    spacing = choose_label_spacing(axis, token_points, least)
    is_sparse = spacing > 1
    label_points = max(spacing * token_points, least) / LABEL_PITCH
    indices = range(0, len(axis), spacing)
    texts = [shorten_label(axis.labels[i]) for i in indices]
    if is_sparse and axis.name in TOKEN_AXES:
        numbers = [axis.numbers[i] for i in indices]
        texts = add_numbers(texts, numbers, last=last)
    half_tile = min(axis.step, len(axis)) / 2
    positions = [(i + half_tile) / tiled_tokens for i in indices]
    size = min(points, label_points)
    return AxisLabels(size, tuple(texts), tuple(positions), is_sparse)


def choose_label_spacing(axis: Axis, token_points: float, least: float) -> int:
    """Choose the number of tokens from one label of an axis to the next.

    token_points: points along the axis that a token has. least: points from one label to the next.
    """
    for spacing in list_round_spacings(axis.step):
        needed = least if spacing == 1 else SPARSE_FACTOR * least
        if spacing * token_points >= needed or spacing >= len(axis):
            break
    return spacing


def add_numbers(labels: Sequence[str], numbers: Sequence[int], *, last: bool) -> list[str]:
    """Return labels with the numbers of their tokens before them, or ``last``."""
    pairs = zip(labels, numbers, strict=True)
    if last:
        return [f"{label} {number}" for label, number in pairs]
    return [f"{number} {label}" for label, number in pairs]


def list_round_spacings(step: int) -> Iterator[int]:
    """Yield round numbers of tokens: a step times 1, 2, 5, 10, 20, 50 and so on, without an end."""
    power = step
    while True:
        yield power
        yield 2 * power
        yield 5 * power
        power *= 10


def shorten_label(label: str) -> str:
    """Cut a label of too many characters with an ellipsis."""
    if len(label) <= MOST_CHARACTERS:
        return label
    return label[: MOST_CHARACTERS - 1] + ELLIPSIS


def take_beginning(text: str, room: float, ems: Ems) -> str:
    """Return as much of the beginning of a text as fits in so many ems, a character at least."""
    most_characters = max(1, int(room * CHARACTERS_AN_EM))
    beginning = text[:most_characters]

    def measure_beginning(length: int) -> float:
        return ems(beginning[:length])

    lengths = range(1, len(beginning) + 1)
    fitting = bisect_right(lengths, room, key=measure_beginning)
    return beginning[: max(1, fitting)]


def cut_text(text: str, room: float, ems: Ems) -> str:
    """Return a text as it is if it fits in so many ems, else cut with an ellipsis."""
    may_fit = len(text) < room * CHARACTERS_AN_EM
    if may_fit and ems(text) <= room + SLACK:
        return text
    beginning = take_beginning(text, room - ems(ELLIPSIS), ems)
    return beginning.rstrip() + ELLIPSIS


def wrap_text(text: str, room: float, ems: Ems, most: int) -> list[str]:
    """Wrap a text in lines of at most so many ems; longer words are broken.

    most: lines, at most; the last of them is cut with an ellipsis.
    """
    lines: list[str] = []
    words = text.split()[::-1]
    while words and len(lines) <= most:
        lines.append(take_line(words, room, ems))
    if len(lines) <= most:
        return lines
    last_line = f"{lines[most - 1]} {ELLIPSIS}"
    first_lines = lines[: most - 1]
    return [*first_lines, cut_text(last_line, room, ems)]


def take_line(words: list[str], room: float, ems: Ems) -> str:
    """Take the words of a line of at most so many ems; the rest of a broken word is put back.

    words: the remaining ones in reverse, which are changed.
    """
    line = words.pop()
    is_too_long = len(line) > room * CHARACTERS_AN_EM
    if is_too_long or ems(line) > room:
        beginning = take_beginning(line, room, ems)
        word_end = line[len(beginning) :]
        words.append(word_end)
        return beginning
    while words and ems(f"{line} {words[-1]}") <= room:
        line = f"{line} {words.pop()}"
    return line


def spread_positions(positions: Sequence[float], least: float, length: float) -> list[float]:
    """Move positions from 0 to a length until they stand apart, in the order that they have.

    least: from one position to the next, and twice what is left at either end.
    """
    spread = list(positions)
    order = sorted(range(len(positions)), key=positions.__getitem__)
    half = least / 2
    last = -half
    for i in order:
        last = max(spread[i], last + least)
        spread[i] = last
    last = length + half
    for i in reversed(order):
        last = min(spread[i], last - least)
        spread[i] = last
    return spread


def choose_bar_ticks(scale: Scale, length: float, least: float) -> list[float]:
    """Choose weights to name beside a colour bar: its ends, and round ones between.

    length: of the bar. least: from one weight to the next, in the unit of the length.
    """
    if scale.signed:
        positive_scale = scale._replace(signed=False)
        positive = choose_bar_ticks(positive_scale, length / 2, least)
        negative = [-weight for weight in positive[:0:-1]]
        return [*negative, *positive]
    top = scale.top or 1.0
    weights = [0.0, top]
    positions = [0.0, length]
    for weight in list_round_weights(top):
        position = float(scale.levels(weight)) * length
        distances = [abs(position - other) for other in positions]
        if top / 50 <= weight < top and min(distances) >= least:
            weights.append(weight)
            positions.append(position)
    return sorted(weights)


def list_round_weights(top: float) -> Iterator[float]:
    """Yield 5, 2 and 1 times powers of ten, from the power at or below a weight downwards."""
    first = floor(log10(top))
    powers = range(first, first - 4, -1)
    for power, digit in product(powers, (5, 2, 1)):
        yield digit * 10.0**power


class ThumbnailGrid(NamedTuple):
    """The places of thumbnails: lengths in inches."""

    shape: tuple[int, int]
    """Rows and columns of thumbnails."""
    thumbnail_width: float
    thumbnail_height: float
    across: float
    """From the left of a thumbnail to the left of the next."""
    down: float
    """From the top of a thumbnail to the top of the one below."""

    @property
    def width(self) -> float:
        """The width of all thumbnails together."""
        columns = self.shape[1]
        return (columns - 1) * self.across + self.thumbnail_width

    @property
    def height(self) -> float:
        """The height of all thumbnails together."""
        rows = self.shape[0]
        return (rows - 1) * self.down + self.thumbnail_height

    def locate_box(
        self,
        corner: tuple[float, float],
        row: int,
        column: int,
    ) -> tuple[float, float, float, float]:
        """Return left, top, width and height of a thumbnail.

        corner: left and top of the first thumbnail.
        """
        left, top = corner
        x = left + column * self.across
        y = top + row * self.down
        return x, y, self.thumbnail_width, self.thumbnail_height


def plan_thumbnails(
    shape: tuple[int, int],
    room: float,
    ratio: float,
    between: float,
) -> ThumbnailGrid:
    """Lay out thumbnails on so many inches.

    If they would be a tower together, they are smaller, with more space between them.

    ratio: the height of a thumbnail by its width. between: inches between two rows, beside the gap.
    """
    rows, columns = shape
    ratio = min(max(ratio, 1 / MOST_THUMBNAIL_RATIO), MOST_THUMBNAIL_RATIO)
    widths_a_row = columns + (columns - 1) * THUMBNAIL_GAP
    full_width = room / widths_a_row
    most_row_height = room * MOST_HEIGHT_BY_WIDTH / rows - between
    width_by_height = most_row_height / (ratio + THUMBNAIL_GAP)
    width = min(full_width, width_by_height)
    height = width * ratio
    across = room
    if columns > 1:
        across = (room - width) / (columns - 1)
    down = width * (ratio + THUMBNAIL_GAP) + between
    return ThumbnailGrid(shape, width, height, across, down)
