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
EASY_SHARE_OF_SIZE = 0.75  # of the size that labels should have: they are read easily then
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
    """Lay out the cells and labels of a matrix, with labels as large as there is room.

    The room that the row labels take on the left narrows the cells, whose size decides which labels
    can be read. So a few rounds settle this: each takes the room that the round before needed.

    rows, columns: the axes with their labels. room: inches from the left of the labels to the right
    of the cells. points: the size of labels, at most. ems: measures the width of a text in ems,
    that is, in multiples of the font's size.
    """
    left = 0.0
    needed = 0.0
    most_margin = room * MOST_MARGIN
    for _ in range(ROUNDS):
        left = needed
        width = room - needed
        height = choose_matrix_height(rows.cells, columns.cells, width, em=points / POINTS)
        row_labels = choose_labels(rows, height, points, last=True)
        column_labels = choose_labels(columns, width, points, last=False)
        size = min(row_labels.points, column_labels.points)
        row_width = measure_widest(row_labels.texts, size, ems)
        needed = min(row_width, most_margin)
    if needed > left:  # the labels of the last round are wider than the room left for them
        size = max(LEAST_POINTS, size * left / needed)
    column_width = measure_widest(column_labels.texts, size, ems)
    column_pitch = width / columns.cells
    level = columns.name not in TOKEN_AXES and column_width <= column_pitch
    above = min(column_width, most_margin)
    if level:
        above = (LINE_HEIGHT + PAD) * size / POINTS
    return MatrixPlan(
        left,
        above,
        width,
        height,
        points=size,
        rows=row_labels,
        columns=column_labels,
        level=level,
    )


def measure_widest(labels: Sequence[str], points: float, ems: Ems) -> float:
    """Return the width of the widest label in inches, with a space of PAD ems beside it.

    points: the size of the font. ems: measures the width of a text in ems, multiples of that size.
    """
    widest = max(map(ems, labels), default=0)
    return (widest + PAD) * points / POINTS


def choose_matrix_height(rows: int, columns: int, width: float, em: float) -> float:
    """Choose how many inches high a matrix is.

    Cells are square if the height lies within limits then. It is at least what the labels of the
    rows need to be read, if the matrix is no higher than wide for that. It is at most the width, or
    more where that makes labels easy to read, but not far more. And a few rows do not become as
    high as a poster.

    rows, columns: the numbers of cells. width: the width of the matrix in inches. em: the size of
    the labels' font in inches.
    """
    line = LABEL_PITCH * em
    least_height = min(rows * line, width)
    # A matrix may be higher than wide, so that its labels can be read easily.
    easy_height = rows * line * EASY_SHARE_OF_SIZE
    tower_height = width * MOST_HEIGHT_BY_WIDTH
    most_height = max(width, min(easy_height, tower_height))
    square_height = rows * width / columns
    poster_height = rows * MOST_CELL_LINES * line
    height = max(least_height, min(square_height, most_height))
    return min(height, poster_height)


def choose_labels(axis: Axis, length: float, points: float, *, last: bool) -> AxisLabels:
    """Choose the labels of an axis: one for each token if they can be read, else one in every few.

    Where not every token has a label, each label also has the number of its token. With ``last``
    the number comes after the label, as it must on the left of the cells to stand next to them.
    Else it comes before the label, for text that runs upwards from the cells.

    length: the length of the axis in inches. points: the size of labels, at most. The result has
    their size in points, their texts, and their positions as shares of the axis.
    """
    least_pitch = max(LEAST_POINTS, points * LEAST_SHARE_OF_SIZE) * LABEL_PITCH
    # The last cell is counted as if it had all its tokens.
    tiled_tokens = axis.cells * axis.step
    token_points = length * POINTS / tiled_tokens
    spacing = choose_label_spacing(axis, token_points, least_pitch)
    is_sparse = spacing > 1
    label_points = max(spacing * token_points, least_pitch) / LABEL_PITCH
    indices = range(0, len(axis), spacing)
    texts = [shorten_label(axis.labels[i]) for i in indices]
    if is_sparse and axis.name in TOKEN_AXES:
        numbers = [axis.numbers[i] for i in indices]
        texts = add_numbers(texts, numbers, last=last)
    half_tile = min(axis.step, len(axis)) / 2
    positions = [(i + half_tile) / tiled_tokens for i in indices]
    size = min(points, label_points)
    return AxisLabels(size, tuple(texts), tuple(positions), sparse=is_sparse)


def choose_label_spacing(axis: Axis, token_points: float, least_pitch: float) -> int:
    """Choose how many tokens there are from one label of an axis to the next: a round number.

    It is the smallest number that keeps labels far enough apart, or one that is no less than the
    number of tokens, so that there is a single label.

    token_points: the points along the axis that a token has. least_pitch: the points from one label
    to the next, at least, where every token has one; else they are further apart.
    """
    for spacing in list_round_spacings(axis.step):
        needed = least_pitch if spacing == 1 else SPARSE_FACTOR * least_pitch
        if spacing * token_points >= needed or spacing >= len(axis):
            break
    return spacing


def add_numbers(labels: Sequence[str], numbers: Sequence[int], *, last: bool) -> list[str]:
    """Return labels with the numbers of their tokens before them, or with ``last`` after them."""
    pairs = zip(labels, numbers, strict=True)
    if last:
        return [f"{label} {number}" for label, number in pairs]
    return [f"{number} {label}" for label, number in pairs]


def list_round_spacings(step: int) -> Iterator[int]:
    """Yield round multiples of a step without an end: 1, 2, 5, 10, 20, 50 times it, and so on.

    step: the number of tokens that a row or column of cells stands for.
    """
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
    """Return as much of the beginning of a text as fits a room, but one character at least.

    room: in ems, multiples of the font's size. ems: measures the width of a text in ems.
    """
    most_characters = max(1, int(room * CHARACTERS_AN_EM))
    beginning = text[:most_characters]

    def measure_beginning(length: int) -> float:
        return ems(beginning[:length])

    lengths = range(1, len(beginning) + 1)
    fitting = bisect_right(lengths, room, key=measure_beginning)
    return beginning[: max(1, fitting)]


def cut_text(text: str, room: float, ems: Ems) -> str:
    """Return a text as it is if it fits a room, else its beginning with an ellipsis.

    room: in ems, multiples of the font's size. ems: measures the width of a text in ems.
    """
    may_fit = len(text) < room * CHARACTERS_AN_EM
    if may_fit and ems(text) <= room + SLACK:
        return text
    beginning = take_beginning(text, room - ems(ELLIPSIS), ems)
    return beginning.rstrip() + ELLIPSIS


def wrap_text(text: str, room: float, ems: Ems, most_lines: int) -> list[str]:
    """Wrap a text to lines that fit a room; words that are longer than a line are broken.

    room: the width of a line in ems, multiples of the font's size. ems: measures the width of a
    text in ems. most_lines: if the text takes more lines, the last one ends in an ellipsis.
    """
    lines: list[str] = []
    words = text.split()[::-1]
    while words and len(lines) <= most_lines:
        lines.append(take_line(words, room, ems))
    if len(lines) <= most_lines:
        return lines
    last_line = f"{lines[most_lines - 1]} {ELLIPSIS}"
    first_lines = lines[: most_lines - 1]
    return [*first_lines, cut_text(last_line, room, ems)]


def take_line(words: list[str], room: float, ems: Ems) -> str:
    """Take as many words from a list as fit a line, and return the line.

    A first word that is longer than the line is broken, and its rest is put back into the list.

    words: the words of the text that are left, the next one last; the list is changed. room: the
    width of the line in ems, multiples of the font's size. ems: measures a text in ems.
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


def spread_positions(
    positions: Sequence[float],
    least_distance: float,
    length: float,
) -> list[float]:
    """Move positions on a line until they stand apart, and keep their order.

    positions: from 0 to ``length``, in any order. least_distance: from one position to the next;
    the first and the last stand half of it from the ends of the line, at least. Where there is no
    room for all of them, the lowest may become negative.
    """
    spread = list(positions)
    order = sorted(range(len(positions)), key=positions.__getitem__)
    half = least_distance / 2
    last = -half
    for i in order:
        last = max(spread[i], last + least_distance)
        spread[i] = last
    last = length + half
    for i in reversed(order):
        last = min(spread[i], last - least_distance)
        spread[i] = last
    return spread


def choose_bar_ticks(scale: Scale, length: float, least_distance: float) -> list[float]:
    """Choose weights to name beside a colour bar: both ends of it, and round weights between them.

    A scale of differences has the weights of its positive half also as negative ones.

    length: the length of the bar. least_distance: the distance on the bar from one named weight to
    the next, at least, in the unit of the length. Returns the weights from the lowest on.
    """
    if scale.signed:
        positive_scale = scale._replace(signed=False)
        positive = choose_bar_ticks(positive_scale, length / 2, least_distance)
        negative = [-weight for weight in positive[:0:-1]]
        return [*negative, *positive]
    top = scale.top or 1.0
    weights = [0.0, top]
    positions = [0.0, length]
    for weight in list_round_weights(top):
        position = float(scale.levels(weight)) * length
        distances = [abs(position - other) for other in positions]
        # Weights below a fiftieth of the top are hardly told apart from 0.
        is_inside = top / 50 <= weight < top
        if is_inside and min(distances) >= least_distance:
            weights.append(weight)
            positions.append(position)
    return sorted(weights)


def list_round_weights(top: float) -> Iterator[float]:
    """Yield 5, 2 and 1 times each of four powers of ten, the largest power first.

    top: a weight; the largest power is the one at or below it, so that 5 times it may be above.
    """
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
        """Return left, top, width and height of the thumbnail in a row and column, in inches.

        corner: left and top of the first thumbnail of all, in inches.
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
    """Lay out a grid of thumbnails, that is, of small matrices.

    They fill the width of the room. But if all rows together would be far higher than wide, the
    thumbnails are smaller, with more space between those of a row.

    shape: the numbers of rows and columns. room: the width of the grid in inches. ratio: the height
    of a thumbnail divided by its width. between: inches between two rows, beside the usual gap.
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
    return ThumbnailGrid(shape, width, height, across=across, down=down)
