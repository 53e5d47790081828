"""What can be drawn. Colours come from ``levels``: 0 to 1 on the square-root scale, the same in every medium."""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from attnviz.record import Visible, Weights

Cell = TypeVar("Cell", bound=np.generic)
Levels: TypeAlias = npt.NDArray[np.float32]


class Panel(NamedTuple):
    """One matrix of weights."""

    values: Weights
    """(row, column), 0 where not visible."""
    visible: Visible
    """(row, column)."""

    def pooled(self, rows: int, columns: int) -> "Panel":
        """At most so many rows and columns, each cell the maximum of those that it stands for."""
        return Panel(pool(self.values, rows, columns), pool(self.visible, rows, columns))


@dataclass(frozen=True, eq=False)
class Heatmap:
    """One matrix with labels: rows are queries, columns keys."""

    title: str
    panel: Panel
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    top: float
    """The weight at the end of the colour scale; the scale starts at 0."""
    caption: tuple[str, ...]
    step: tuple[int, int] = (1, 1)
    """Tokens that a row, and a column, of the panel stands for; labels are those of single tokens."""

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
    top: float
    caption: tuple[str, ...]
    tokens: int
    """Tokens of the longer side of a panel."""


Drawable: TypeAlias = Heatmap | Grid


def levels(values: Weights, top: float) -> Levels:
    """Weights as places on the colour scale, 0 to 1: the square root shows the sink, the diagonal and the faint parts.

    >>> levels(np.array([0, 0.25, 1]), 1.0)
    array([0. , 0.5, 1. ])
    """
    found: Levels = np.sqrt(np.clip(values / top, 0, 1)) if top > 0 else np.zeros_like(values)
    return found


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
