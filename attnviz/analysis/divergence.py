"""How far heads are from each other: Jensen-Shannon divergence of their rows, in nats.

JS(p, q) = H((p + q) / 2) - H(p) / 2 - H(q) / 2, from 0 for equal rows to ln 2 for rows that share
no key (Lin 1991; for heads, Clark et al. 2019). Rows are compared on the keys that both queries
see, where each sums to 1 again.

All rows are cut to the cells of one mask and laid one after the other, so that each entropy is a
sum over a piece of one long array. ``starts`` says where each row begins in it.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attnviz.analysis.numerics import repeats_along
from attnviz.record import Doubles, Visible, Weights

TINY = np.finfo(np.float64).tiny
AT_ONCE = 1 << 16  # cells of which a logarithm is taken in one go, so that they stay in the cache


class MaskedRows(NamedTuple):
    """Rows of some heads on the cells of a mask, each with the sum 1."""

    cells: Doubles
    """(head, cell): row after row, none below TINY, so that each has a logarithm."""
    has_weight: Visible
    """(head, row): True where there was any weight on these cells."""
    entropies: Doubles
    """(head, row), in nats."""


def measure_divergences(a: Weights, b: Weights, seen_a: Visible, seen_b: Visible) -> Doubles:
    """Measure the divergence of each head of A from each head of B, the mean over queries: (A, B).

    a, b: the weights of the heads, (A, query, key) and (B, query, key). seen_a, seen_b: masks that
    broadcast to them, True where a query may attend. A query is counted where it sees two keys or
    more in both, and gives them some weight. The divergence is Jensen-Shannon in nats, NaN where no
    query is counted.
    """
    divergences = np.full((len(a), len(b)), np.nan)
    groups_a = group_by_mask(np.broadcast_to(seen_a, a.shape))
    groups_b = group_by_mask(np.broadcast_to(seen_b, b.shape))
    for mask_a, heads_a in groups_a:
        for mask_b, heads_b in groups_b:
            block = np.ix_(heads_a, heads_b)
            common_mask = mask_a & mask_b
            divergences[block] = measure_on_mask(a[heads_a], b[heads_b], common_mask)
    return divergences


def group_by_mask(seen: Visible) -> list[tuple[Visible, list[int]]]:
    """Group heads by their masks, of which there is nearly always one.

    seen: (head, query, key), True where a query may attend. Returns the different masks (query,
    key), each with the numbers of its heads.
    """
    if repeats_along(seen, 0):
        all_heads = list(range(len(seen)))
        return [(seen[0], all_heads)]
    groups: dict[bytes, list[int]] = {}
    for head, mask in enumerate(seen):
        packed = np.packbits(mask).tobytes()
        groups.setdefault(packed, []).append(head)
    return [(seen[heads[0]], heads) for heads in groups.values()]


def measure_on_mask(a: Weights, b: Weights, seen: Visible) -> Doubles:
    """Measure the divergence of heads of A from heads of B on the cells of one mask: (A, B).

    a, b: weights (head, query, key). seen: (query, key), True where a query may attend in both. The
    divergence is Jensen-Shannon in nats, the mean over the queries that see two keys or more and
    give them some weight; NaN where there is none.
    """
    has_choice = seen.sum(-1, keepdims=True) > 1
    seen = seen & has_choice
    if not seen.any():
        return np.full((len(a), len(b)), np.nan)
    queries, _ = np.nonzero(seen)
    # Where each row begins among the cells.
    _, starts = np.unique(queries, return_index=True)
    rows_a = cut_rows(a, seen, starts)
    rows_b = cut_rows(b, seen, starts)
    heads = range(len(a))
    divergences = [measure_rows_of_head(rows_a, head, rows_b, starts) for head in heads]
    has_weight_a = rows_a.has_weight[:, None]
    counted: Visible = has_weight_a & rows_b.has_weight  # (A, B, row)
    total = np.where(counted, divergences, 0).sum(-1)
    count = counted.sum(-1)
    means = np.full(count.shape, np.nan)
    np.divide(total, count, out=means, where=count > 0)
    return means


def cut_rows(weights: Weights, seen: Visible, starts: npt.NDArray[Any]) -> MaskedRows:
    """Cut weights (head, query, key) to the cells of a mask, and make each row sum to 1.

    seen: (query, key), the mask. starts: where each row begins among its cells. A row without
    weight on these cells stays without.
    """
    cells = weights[:, seen].astype(np.float64)  # (head, cell)
    sums = np.add.reduceat(cells, starts, axis=1)
    has_weight = sums > 0
    lengths = np.diff(starts, append=cells.shape[1])
    divisors = np.where(has_weight, sums, 1)
    cells /= np.repeat(divisors, lengths, axis=1)
    positive_cells = np.maximum(cells, TINY)
    return MaskedRows(positive_cells, has_weight, compute_cell_entropies(positive_cells, starts))


def compute_cell_entropies(cells: Doubles, starts: npt.NDArray[Any]) -> Doubles:
    """Compute the entropy of each row, -sum of p ln p in nats: (head, cell) to (head, row).

    cells: the rows of a head one after the other. starts: where each row begins among the cells.
    """
    terms = np.log(cells)
    terms *= cells
    entropies: Doubles = -np.add.reduceat(terms, starts, axis=1)
    return entropies


def measure_rows_of_head(
    rows_a: MaskedRows,
    head: int,
    rows_b: MaskedRows,
    starts: npt.NDArray[Any],
) -> Doubles:
    """Measure the divergence of each row of one head of A from those of B: (head of B, row).

    rows_a, rows_b: the rows of all heads of A and of B, cut to the cells of one mask. head: the
    index of the head of A. starts: where each row begins among the cells. The divergence is
    Jensen-Shannon in nats. A few heads of B are taken at once, so that their cells stay in the
    cache of the processor.
    """
    cells_a, cells_b = rows_a.cells[head], rows_b.cells
    heads_at_once = max(1, AT_ONCE // cells_b.shape[1])
    pieces = []
    for first in range(0, len(cells_b), heads_at_once):
        some_heads = cells_b[first : first + heads_at_once]
        middles = (cells_a + some_heads) / 2
        pieces.append(compute_cell_entropies(middles, starts))
    middle_entropies = np.concatenate(pieces)
    entropies_a = rows_a.entropies[head]
    divergences = middle_entropies - entropies_a / 2 - rows_b.entropies / 2
    above_zero: Doubles = np.maximum(divergences, 0)  # rounding goes below
    return above_zero


def restrict_rows(weights: Weights, seen: Visible) -> Weights:
    """Restrict weights (..., query, key) to the cells of a mask, and make each row sum to 1 again.

    Rows that had nothing on these cells are 0.
    """
    kept = np.where(seen, weights, 0).astype(np.float64)
    sums = kept.sum(-1, keepdims=True)
    divisors = np.where(sums > 0, sums, 1)
    shares: Weights = (kept / divisors).astype(np.float32)
    return shares
