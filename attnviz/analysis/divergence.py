"""How far heads are from each other: Jensen-Shannon divergence of their rows, in nats.

JS(p, q) = H((p + q) / 2) - H(p) / 2 - H(q) / 2, from 0 for equal rows to ln 2 for rows that share no key (Lin 1991; for
heads, Clark et al. 2019). Rows are compared on the keys that both queries see, where each sums to 1 again.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attnviz.record import Doubles, Visible, Weights

TINY = np.finfo(np.float64).tiny
AT_ONCE = 1 << 16  # cells of which a logarithm is taken in one go, so that they stay in the cache


class Common(NamedTuple):
    """Rows of some heads on the cells that are compared, each with the sum 1."""

    cells: Doubles
    """(head, cell): row after row, none below TINY, so that each has a logarithm."""
    sound: Visible
    """(head, row): whether there was any weight on these cells."""


def divergences(a: Weights, b: Weights, seen_a: Visible, seen_b: Visible) -> Doubles:
    """The divergence of each head of one text from each of another, mean over queries: (A, B), NaN if there is none.

    a: (A, query, key) and b: (B, query, key), with what is visible of them (broadcasts to them). A query counts where
    it sees two keys or more in both, and gives them some weight.
    """
    found = np.full((len(a), len(b)), np.nan)
    seen_a, seen_b = np.broadcast_to(seen_a, a.shape), np.broadcast_to(seen_b, b.shape)
    for mine, heads in masks(seen_a):
        for yours, others in masks(seen_b):
            found[np.ix_(heads, others)] = compared(a[heads], b[others], mine & yours)
    return found


def masks(seen: Visible) -> list[tuple[Visible, list[int]]]:
    """The different masks of heads (head, query, key), and the heads of each; nearly always one."""
    if seen.strides[0] == 0:
        return [(seen[0], list(range(len(seen))))]
    found: dict[bytes, list[int]] = {}
    for head, mask in enumerate(seen):
        found.setdefault(np.packbits(mask).tobytes(), []).append(head)
    return [(seen[heads[0]], heads) for heads in found.values()]


def compared(a: Weights, b: Weights, seen: Visible) -> Doubles:
    """The same on the cells of one mask (query, key)."""
    seen = seen & (seen.sum(-1, keepdims=True) > 1)
    if not seen.any():
        return np.full((len(a), len(b)), np.nan)
    starts = np.unique(np.nonzero(seen)[0], return_index=True)[1]
    mine, yours = common(a, seen, starts), common(b, seen, starts)
    own, other = (entropies(part.cells, starts) for part in (mine, yours))  # (head, row)
    rows = [
        row_divergences(mine.cells[i], own[i], yours.cells, other, starts) for i in range(len(a))
    ]
    counted: Visible = mine.sound[:, None] & yours.sound  # (A, B, row)
    total, count = np.where(counted, rows, 0).sum(-1), counted.sum(-1)
    found: Doubles = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return found


def common(weights: Weights, seen: Visible, starts: npt.NDArray[Any]) -> Common:
    """Rows on the cells of a mask; ``starts`` is where each begins among them."""
    cells = weights[:, seen].astype(np.float64)  # (head, cell)
    sums = np.add.reduceat(cells, starts, axis=1)
    lengths = np.diff(starts, append=cells.shape[1])
    cells /= np.repeat(np.where(sums > 0, sums, 1), lengths, axis=1)
    return Common(np.maximum(cells, TINY), sums > 0)


def entropies(cells: Doubles, starts: npt.NDArray[Any]) -> Doubles:
    """-sum of p ln p of each row: (head, cell) -> (head, row)."""
    terms = np.log(cells)
    terms *= cells
    found: Doubles = -np.add.reduceat(terms, starts, axis=1)
    return found


def row_divergences(
    mine: Doubles, own: Doubles, cells: Doubles, other: Doubles, starts: npt.NDArray[Any]
) -> Doubles:
    """The divergence of each row of one head (cell) from that of others (head, cell): (head, row)."""
    step = max(1, AT_ONCE // cells.shape[1])
    parts = [
        entropies((mine + cells[i : i + step]) / 2, starts) for i in range(0, len(cells), step)
    ]
    found: Doubles = np.maximum(
        np.concatenate(parts) - own / 2 - other / 2, 0
    )  # rounding goes below
    return found


def restricted(weights: Weights, seen: Visible) -> Weights:
    """Rows (..., query, key) on the cells of a mask, each with the sum 1 again, or 0 if there was nothing on them."""
    kept = np.where(seen, weights, 0).astype(np.float64)
    sums = kept.sum(-1, keepdims=True)
    found: Weights = (kept / np.where(sums > 0, sums, 1)).astype(np.float32)
    return found
