"""What can be drawn: pure data, of no medium. Colours come from ``Scale.steps``, the same in every medium."""

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


class Panel(NamedTuple):
    """One matrix of weights."""

    values: Floats
    """(row, column), 0 where not visible."""
    visible: Visible
    """(row, column)."""

    def pooled(self, rows: int, columns: int) -> "Panel":
        """At most so many rows and columns, each cell the value of the largest size of those that it stands for."""
        high, seen = pool(self.values, rows, columns), pool(self.visible, rows, columns)
        if self.values.min(initial=0) >= 0:
            return Panel(high, seen)
        low = -pool(-self.values, rows, columns)
        return Panel(np.where(high >= -low, high, low), seen)


class Scale(NamedTuple):
    """How weights become places on the colour scale, which starts at 0, or with ``signed`` has 0 in its middle."""

    top: float
    """The weight at the end of the colours. Those above it are sinks, drawn as beyond the scale."""
    largest: float
    """The largest weight that is drawn."""
    linear: bool = False
    """Else the square root, which shows the sink, the diagonal and the faint parts."""
    signed: bool = False
    """Differences, or scores, from -top to top: none is beyond the scale."""
    of: str = ""
    """What a cell is; of nothing said a weight, or a difference of weights where it is signed."""

    @property
    def name(self) -> str:
        """What the colour bar says."""
        return "linear scale" if self.linear else "√ scale"

    @property
    def cell(self) -> str:
        """What a cell is, in a sentence."""
        return self.of or ("difference" if self.signed else "weight")

    @property
    def small(self) -> bool:
        """Whether two digits after the point would show nothing of what it is of; weights are shares of 1."""
        return bool(self.of) and self.largest < 0.1

    @property
    def has_beyond(self) -> bool:
        """Whether there are weights beyond the scale."""
        return self.largest > self.top and not self.signed

    def levels(self, values: npt.ArrayLike) -> Floats:
        """Weights as places on the colour scale, 0 to 1.

        >>> Scale(1.0, 1.0).levels([0, 0.25, 1])
        array([0. , 0.5, 1. ], dtype=float32)
        >>> Scale(1.0, 1.0, signed=True).levels([-1, 0, 0.25])
        array([0.  , 0.5 , 0.75], dtype=float32)
        """
        share = np.asarray(values, np.float32) / np.float32(self.top or 1)
        size = np.clip(np.abs(share) if self.signed else share, 0, 1)
        found: Floats = size if self.linear else np.sqrt(size)
        return 0.5 + np.copysign(found, share) / 2 if self.signed else found

    def steps(self, panel: Panel, count: int) -> Steps:
        """The colour of each cell: 0 to count - 1, ``count`` beyond the scale, MASKED where not visible."""
        inside = np.minimum((self.levels(panel.values) * count).astype(np.int64), count - 1)
        beyond = self.has_beyond and panel.values > self.top
        return np.where(panel.visible, np.where(beyond, count, inside), MASKED)


@dataclass(frozen=True)
class Axis:
    """What the rows, or the columns, of a matrix stand for. The tuples are as long as the text that it shows."""

    name: str
    """``queries``, ``keys``, ``layers`` or ``heads``."""
    labels: tuple[str, ...]
    numbers: tuple[int, ...]
    """The place of each token in the whole text, which is not its place here where a part is shown."""
    step: int = 1
    """Tokens that a row, or a column, of the panel stands for, the last one perhaps fewer."""
    spaced: tuple[bool, ...] = ()
    """Whether white space stands before each token, for running text."""
    unit: str = "tokens"
    """What the labels of queries and keys are."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def cells(self) -> int:
        """Rows, or columns, of the panel."""
        return -(-len(self) // self.step)

    def tile(self, cell: int) -> range:
        """The places in this axis of the tokens of a row, or a column."""
        return range(cell * self.step, min((cell + 1) * self.step, len(self)))


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
        """Tokens of the longer side."""
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
    """Tokens of the longer side of a panel."""
    unit: str = "tokens"
    """What these are."""


@dataclass(frozen=True, eq=False)
class Strip:
    """A text whose tokens are coloured by what one token gives to each, or gets from each."""

    title: str
    tokens: Axis
    panel: Panel
    """One row, a column a token."""
    chosen: int | None
    """Where that one token stands in this text, if it does."""
    scale: Scale
    caption: tuple[str, ...]


class Section(NamedTuple):
    """The maps of one kind on a page: all of them small, and each of them large."""

    name: str
    """What attends to what: ``self-attention``, ``encoder``, ``decoder``, ``cross-attention``."""
    grid: Grid
    heatmaps: tuple[tuple[Heatmap | None, ...], ...]
    """In the places of the grid's panels; heatmaps of a section may differ in size."""


@dataclass(frozen=True, eq=False)
class Page:
    """All that a reader may want to look through."""

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
    """What the rows are: the heading of their names."""
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    """(row, column), empty where there is nothing to say."""
    levels: Floats
    """(row, column): the place of each cell on the colour scale, 0 to 1; NaN for no colour."""
    caption: tuple[str, ...]
    texts: frozenset[int] = frozenset()
    """Columns that hold names, which begin at the left; numbers end at the right."""
    group: int = 1
    """Columns come in groups of so many, which are not parted where a table goes on below."""
    even: bool = False
    """Columns are all as wide as the widest: they stand for things of one kind, such as the heads of a layer."""


class Curve(NamedTuple):
    """One quantity as it changes."""

    name: str
    values: Floats
    """(step,), NaN where there is none."""


class Plot(NamedTuple):
    """Curves on one scale."""

    name: str
    """What the numbers are, and their unit."""
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
    """What the steps are."""
    steps: tuple[int, ...]
    """Rising."""
    plots: tuple[Plot, ...]
    caption: tuple[str, ...]
    marks: tuple[Mark, ...] = ()


Picture: TypeAlias = Heatmap | Grid | Strip | Series | Table | Curves
Drawable: TypeAlias = Picture | Page


def pool(values: npt.NDArray[Cell], rows: int, columns: int) -> npt.NDArray[Cell]:
    """The maximum over blocks of a matrix, as even as they can be: (row, column) -> at most (rows, columns)."""
    height, width = values.shape
    flat: npt.NDArray[Cell] = np.maximum.reduceat(values, starting(height, rows), axis=0)
    pooled: npt.NDArray[Cell] = np.maximum.reduceat(flat, starting(width, columns), axis=1)
    return pooled


def starting(length: int, parts: int) -> npt.NDArray[np.int64]:
    """Where each of at most so many parts of a row begins."""
    parts = min(parts, length)
    return np.arange(parts) * length // parts


Content = TypeVar("Content")


def map_texts(
    content: Content, change: Callable[[str], str], change_label: Callable[[str], str] | None = None
) -> Content:
    """Return a drawable, or a part of one, with each of its texts changed, however deep it stands.

    change_label: for the labels of axes, in place of ``change``.
    """

    def map_part(part: Any) -> Any:
        return map_texts(part, change, change_label)

    if isinstance(content, str):
        return change(content)  # type: ignore[return-value]
    if isinstance(content, Axis):
        labels = tuple(map(change_label or change, content.labels))
        return replace(content, labels=labels)
    if is_dataclass(content) and not isinstance(content, type):
        parts = {each.name: map_part(getattr(content, each.name)) for each in fields(content)}
        return replace(content, **parts)
    if isinstance(content, tuple):
        changed = [map_part(part) for part in content]
        is_named = hasattr(content, "_make")
        return content._make(changed) if is_named else tuple(changed)  # type: ignore[attr-defined, return-value]
    return content


def list_texts(drawable: Picture) -> list[str]:
    """Return every text of a drawable: titles, labels, captions, cells of tables."""
    texts: list[str] = []

    def keep(text: str) -> str:
        texts.append(text)
        return text

    map_texts(drawable, keep)
    return texts
