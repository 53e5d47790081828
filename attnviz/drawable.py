"""The pictures and tables that can be drawn, as pure data of no medium.

Colours come from ``Scale.steps``, so that a picture has the same ones on every medium.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Visible: TypeAlias = npt.NDArray[np.bool_]
Cell = TypeVar("Cell", bound=np.generic)
Steps: TypeAlias = npt.NDArray[np.int64]

MASKED = -1  # the step of a cell where a query may not attend: blank, which no weight is
LEAST_OF_TWO_DIGITS = 0.1  # below it, two digits after the point say little


class Panel(NamedTuple):
    """One matrix of weights."""

    values: Floats
    """(row, column), 0 where not visible."""
    visible: Visible
    """(row, column)."""

    def pool(self, rows: int, columns: int) -> "Panel":
        """Pool the panel to at most ``rows`` x ``columns`` cells.

        A cell of the result stands for a block of neighbouring cells. It has the number that is
        furthest from 0 among them, with its sign, and it is visible if one of them is.
        """
        highest = pool_matrix(self.values, rows, columns)
        visible = pool_matrix(self.visible, rows, columns)
        has_no_negatives = self.values.min(initial=0) >= 0
        if has_no_negatives:
            return Panel(highest, visible)
        lowest = -pool_matrix(-self.values, rows, columns)
        largest = np.where(highest >= -lowest, highest, lowest)
        return Panel(largest, visible)


class Scale(NamedTuple):
    """The scale of numbers on the colours: from 0 to top, or with ``signed`` from -top to top."""

    top: float
    """The weight at the end of the colours; those above it are sinks, beyond the scale."""
    largest: float
    """The largest weight that is drawn."""
    linear: bool = False
    """Else the square root, which shows the sink, the diagonal and the faint parts."""
    signed: bool = False
    """Differences, or scores, with 0 in the middle of the colours: none is beyond the scale."""
    of: str = ""
    """The name of a cell; empty for a weight, or a difference of weights where it is signed."""

    @property
    def name(self) -> str:
        """The words on the colour bar."""
        if self.linear:
            return "linear scale"
        return "√ scale"

    @property
    def cell(self) -> str:
        """The name of a cell in a sentence."""
        if self.of:
            return self.of
        return "difference" if self.signed else "weight"

    @property
    def small(self) -> bool:
        """True if two digits after the point would show nothing; weights are shares of 1."""
        return bool(self.of) and self.largest < LEAST_OF_TWO_DIGITS

    @property
    def has_beyond(self) -> bool:
        """True if there are weights beyond the scale."""
        return self.largest > self.top and not self.signed

    def levels(self, values: npt.ArrayLike) -> Floats:
        """Return where numbers lie on the colours, from 0 for the first to 1 for the last.

        values: weights or differences, of any shape, which the result has too. It is the share of
        ``top``, or the square root of that share unless the scale is linear. On a signed scale 0
        lies at 0.5. Numbers beyond ``top`` lie at the end.

        >>> Scale(1.0, 1.0).levels([0, 0.25, 1])
        array([0. , 0.5, 1. ], dtype=float32)
        >>> Scale(1.0, 1.0, signed=True).levels([-1, 0, 0.25])
        array([0.  , 0.5 , 0.75], dtype=float32)
        """
        top = np.float32(self.top or 1)
        share = np.asarray(values, np.float32) / top
        size = np.abs(share) if self.signed else share
        levels: Floats = np.clip(size, 0, 1)
        if not self.linear:
            levels = np.sqrt(levels)
        if self.signed:
            levels = 0.5 + np.copysign(levels, share) / 2
        return levels

    def steps(self, panel: Panel, count: int) -> Steps:
        """Return the number of the colour of each cell of a panel: (row, column).

        There are ``count`` colours, numbered from 0. A cell whose weight is beyond the scale has
        the number ``count``, and a cell that is not visible has MASKED.
        """
        levels = self.levels(panel.values)
        on_colours = (levels * count).astype(np.int64)
        inside = np.minimum(on_colours, count - 1)
        is_beyond = self.has_beyond and panel.values > self.top
        steps = np.where(is_beyond, count, inside)
        return np.where(panel.visible, steps, MASKED)


@dataclass(frozen=True)
class Axis:
    """The meaning of the rows, or of the columns, of a matrix.

    The tuples are as long as the text that is shown, in tokens.
    """

    name: str
    """``queries``, ``keys``, ``layers`` or ``heads``."""
    labels: tuple[str, ...]
    numbers: tuple[int, ...]
    """The position of each token in the whole text, of which a part may be shown."""
    step: int = 1
    """The number of tokens that a row, or a column, of the panel stands for; the last may have
    fewer."""
    spaced: tuple[bool, ...] = ()
    """True where white space stands before a token, for running text."""
    unit: str = "tokens"
    """The name of what the labels of queries and keys are."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def cells(self) -> int:
        """The number of rows, or columns, of the panel."""
        return math.ceil(len(self) / self.step)

    def tile(self, cell: int) -> range:
        """Return the indices in this axis of the tokens of a row, or a column."""
        start = cell * self.step
        return range(start, min(start + self.step, len(self)))


@dataclass(frozen=True, eq=False)
class Heatmap:
    """One matrix with labels."""

    title: str
    panel: Panel
    rows: Axis
    columns: Axis
    scale: Scale
    caption: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """The number of tokens of the longer side."""
        return max(len(self.rows), len(self.columns))


@dataclass(frozen=True, eq=False)
class Grid:
    """Many small matrices: a row of panels a layer, a column a head; None where there is none."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    panels: tuple[tuple[Panel | None, ...], ...]
    scale: Scale
    caption: tuple[str, ...]
    tokens: int
    """The number of tokens of the longer side of a panel."""
    unit: str = "tokens"
    """The name of what is counted there."""


@dataclass(frozen=True, eq=False)
class Strip:
    """A text whose tokens are coloured by what one token gives to each, or gets from each."""

    title: str
    tokens: Axis
    panel: Panel
    """One row, a column a token."""
    chosen: int | None
    """The index of that one token in this text; None if it is not there."""
    scale: Scale
    caption: tuple[str, ...]


class Section(NamedTuple):
    """The maps of one kind on a page: all of them small, and each of them large."""

    name: str
    """The kind of attention: ``self-attention``, ``encoder``, ``decoder``, ``cross-attention``."""
    grid: Grid
    heatmaps: tuple[tuple[Heatmap | None, ...], ...]
    """Arranged as the grid's panels are; heatmaps of a section may differ in size."""


@dataclass(frozen=True, eq=False)
class Page:
    """Everything of a capture, for a reader to look through."""

    title: str
    sections: tuple[Section, ...]
    caption: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Series:
    """Matrices to be compared: beside each other, or below each other where there is no room."""

    title: str
    heatmaps: tuple[Heatmap, ...]
    caption: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers and names, some of them on colours."""

    title: str
    corner: str
    """The heading of the names of the rows."""
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    """(row, column), empty where there is nothing to say."""
    levels: Floats
    """(row, column): where each cell lies on the colours, 0 to 1; NaN for no colour."""
    caption: tuple[str, ...]
    texts: frozenset[int] = frozenset()
    """Columns that hold names, which begin at the left; numbers end at the right."""
    group: int = 1
    """Columns come in groups of so many, which stay together where a table goes on below."""
    even: bool = False
    """Columns are all as wide as the widest, as those that stand for the heads of a layer."""


class Curve(NamedTuple):
    """One quantity as it changes."""

    name: str
    values: Floats
    """(step,), NaN where there is none."""


class Plot(NamedTuple):
    """Curves on one scale."""

    name: str
    """The meaning of the numbers, and their unit."""
    low: float
    high: float
    curves: tuple[Curve, ...]


class Mark(NamedTuple):
    """A step at which something happens."""

    step: int
    name: str


@dataclass(frozen=True, eq=False)
class Curves:
    """Plots below each other, over the same steps."""

    title: str
    name: str
    """The meaning of the steps."""
    steps: tuple[int, ...]
    """Rising."""
    plots: tuple[Plot, ...]
    caption: tuple[str, ...]
    marks: tuple[Mark, ...] = ()


Picture: TypeAlias = Heatmap | Grid | Strip | Series | Table | Curves
Drawable: TypeAlias = Picture | Page


def pool_matrix(
    values: npt.NDArray[Cell],
    rows: int,
    columns: int,
) -> npt.NDArray[Cell]:
    """Pool a matrix to at most ``rows`` x ``columns`` cells, each the maximum of a block.

    values: (row, column). Its cells are divided into blocks of neighbours that are as even as they
    can be; a side that is no longer than asked for stays as it is.
    """
    height, width = values.shape
    row_starts = find_block_starts(height, rows)
    column_starts = find_block_starts(width, columns)
    pooled_rows: npt.NDArray[Cell] = np.maximum.reduceat(values, row_starts, axis=0)
    pooled: npt.NDArray[Cell] = np.maximum.reduceat(pooled_rows, column_starts, axis=1)
    return pooled


def make_blank_levels(rows: int, columns: int) -> Floats:
    """Make the levels of a table without colours: (row, column)."""
    return np.full((rows, columns), np.nan, np.float32)


def find_block_starts(length: int, parts: int) -> npt.NDArray[np.int64]:
    """Return the first index of each of at most ``parts`` even blocks of ``length`` cells."""
    count = min(parts, length)
    return np.arange(count) * length // count


Content = TypeVar("Content")


def map_texts(
    content: Content,
    change: Callable[[str], str],
    change_label: Callable[[str], str] | None = None,
) -> Content:
    """Return a drawable, or a piece of one, with each of its texts changed, however deep it stands.

    content: a dataclass, a tuple or a text, whose contents are gone through; anything else is
    returned as it is. change: makes the new text of an old one. change_label: does so for the
    labels of axes, in place of ``change``; of an axis nothing else is changed.
    """
    if isinstance(content, str):
        return change(content)  # type: ignore[return-value]
    if isinstance(content, Axis):
        labels = tuple(map(change_label or change, content.labels))
        return replace(content, labels=labels)
    if is_dataclass(content) and not isinstance(content, type):
        changed_fields = {}
        for field in fields(content):
            value: Any = getattr(content, field.name)
            changed_fields[field.name] = map_texts(value, change, change_label)
        return replace(content, **changed_fields)
    if isinstance(content, tuple):
        changed = [map_texts(item, change, change_label) for item in content]
        is_named = hasattr(content, "_make")
        if is_named:
            return content._make(changed)  # type: ignore[attr-defined, no-any-return]
        return tuple(changed)  # type: ignore[return-value]
    return content


def list_texts(drawable: Picture) -> list[str]:
    """Return every text of a drawable: titles, labels, captions, cells of tables."""
    texts: list[str] = []

    def keep(text: str) -> str:
        texts.append(text)
        return text

    map_texts(drawable, keep)  # only to visit the texts: the copy is dropped
    return texts
