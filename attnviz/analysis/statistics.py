"""What each head does with its weights, in numbers: statistics, tiles, the strongest edges."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from attnviz.analysis.numerics import collapse_repeats, compute_row_entropies
from attnviz.record import (
    ATTENTION,
    AttentionMap,
    Doubles,
    Edges,
    Floats,
    Statistics,
    Tiles,
    Visible,
    Weights,
)

BLOCK_CELLS = 1 << 22
"""How many cells of a matrix are copied at a time."""


class Sink(NamedTuple):
    """The token that soaks up attention."""

    key: int
    share: float
    """The mean weight that it received, in [0, 1] where rows sum to 1.

    The mean is over layers, heads and the queries that see another key.
    """


def measure_statistics(weights: Weights, visible: Visible, square: bool) -> Statistics:
    """Measure statistics of each head, such as its entropy, from all of its weights.

    weights: (layer, head, query, key). visible: the mask, which broadcasts to the weights. square:
    queries and keys are the same tokens, so that distances between them mean something. Distance
    and diagonal are means over the queries that see a key. One head is measured after the other, so
    that little more than the weights is held in memory.
    """
    lead = weights.shape[:2]
    visible = np.broadcast_to(visible, weights.shape)
    indices = np.ndindex(lead)
    heads = [measure_head_statistics(weights[at], visible[at], square) for at in indices]
    fields = []
    for values in zip(*heads, strict=True):
        array = np.array(values, np.float32)  # (layer and head, ...)
        shape = *lead, *array.shape[1:]
        fields.append(array.reshape(shape))
    return Statistics(*fields)


def measure_head_statistics(weights: Weights, visible: Visible, square: bool) -> tuple[Any, ...]:
    """Measure one head (query, key) in float64: the fields of ``Statistics``, in their order.

    visible: (query, key), True where a query may attend. Without ``square``, that is, where queries
    and keys are different tokens, only the first three fields are measured.
    """
    seen = visible.sum(-1)  # (query,)
    # Queries that see one key have no choice.
    choosing = seen > 1
    choosing_count = max(int(np.count_nonzero(choosing)), 1)
    key_count = weights.shape[1]
    keys = np.arange(key_count)
    entropies = np.empty(len(weights))
    received = np.zeros(key_count)
    distance = diagonal = previous = 0.0
    for rows in split_rows(weights):
        exact = weights[rows].astype(np.float64)
        entropies[rows] = compute_row_entropies(exact)
        received += choosing[rows] @ exact
        if square:
            queries = keys[rows]
            distance += np.vdot(exact, np.abs(queries[:, None] - keys))
            diagonal += np.trace(exact, rows.start)
            previous += np.trace(exact, rows.start - 1)
    received /= choosing_count
    if not square:
        return entropies, received, received[0]
    seeing = max(int(np.count_nonzero(seen)), 1)
    later_seen = seen[1:]
    later_seeing = max(int(np.count_nonzero(later_seen)), 1)
    distance /= seeing
    diagonal /= seeing
    previous /= later_seeing
    return entropies, received, received[0], distance, diagonal, previous


def split_rows(matrix: Weights) -> list[slice]:
    """Split the rows of a matrix into blocks, so that copies of one take little memory.

    A matrix of a usual text is one block.
    """
    row_count, column_count = matrix.shape
    height = max(1, BLOCK_CELLS // max(column_count, 1))
    starts = range(0, row_count, height)
    return [slice(start, min(start + height, row_count)) for start in starts]


def find_sink(received: Floats, candidates: Sequence[int]) -> Sink | None:
    """Find which of some keys received most weight, in the mean over all but the last axis.

    received: (..., key), the mean weight that each key received. candidates: the positions of the
    keys that may be the sink. Returns the key with its share, or None if nothing was received at
    all, which is so where no query sees more than one key. See Xiao et al. 2023, and Clark et al.
    2019 for [CLS] and [SEP].
    """
    if not received.any():
        return None
    key_count = received.shape[-1]
    rows = received.reshape(-1, key_count)
    means = rows.mean(0, dtype=np.float64)  # (key,)
    shares = means[list(candidates)]
    best = int(shares.argmax())
    return Sink(candidates[best], float(shares[best]))


def pool_weights(weights: Weights | Visible, most: int) -> Tiles:
    """Pool weights (layer, head, query, key) over tiles of neighbouring cells: means and maxima.

    most: the largest number of tiles along either side, which makes the size of a tile.
    """
    query_count, key_count = weights.shape[2:]
    height = math.ceil(query_count / most)
    width = math.ceil(key_count / most)
    rows = np.arange(0, query_count, height)
    columns = np.arange(0, key_count, width)
    row_sums = np.add.reduceat(weights, rows, axis=2, dtype=np.float32)
    sums = np.add.reduceat(row_sums, columns, axis=3)
    heights = np.diff(rows, append=query_count)
    widths = np.diff(columns, append=key_count)
    means = sums / np.outer(heights, widths)
    row_peaks = np.maximum.reduceat(weights, rows, axis=2)
    peaks = np.maximum.reduceat(row_peaks, columns, axis=3)
    mean_tiles = means.astype(np.float32)
    peak_tiles = peaks.astype(np.float32)
    return Tiles(mean_tiles, peak_tiles, height, width)


def pool_map(attention_map: AttentionMap, most: int) -> AttentionMap:
    """Pool the weights of a map over tiles of neighbouring cells, if it is large.

    most: the largest number of tiles along either side. A map that has no more queries and keys
    than that, or no weights, is returned as it is. Statistics are measured before the weights are
    dropped.
    """
    weights = attention_map.weights
    query_count = len(attention_map.queries)
    key_count = len(attention_map.keys)
    if weights is None or max(query_count, key_count) <= most:
        return attention_map
    tiles = pool_weights(weights, most)
    visible = collapse_repeats(attention_map.visible, 2)
    visible = pool_visible_mask(visible, 2, tiles.height)
    visible = pool_visible_mask(visible, 3, tiles.width)
    statistics = attention_map.statistics
    is_attention = attention_map.method == ATTENTION and "max" not in attention_map.heads
    if statistics is None and is_attention:
        is_square = attention_map.kind != "cross" and query_count == key_count
        statistics = measure_statistics(weights, attention_map.visible, square=is_square)
    return replace(attention_map, weights=None, visible=visible, tiles=tiles, statistics=statistics)


def pool_visible_mask(visible: Visible, axis: int, size: int) -> Visible:
    """Pool a mask over tiles of ``size`` cells along an axis; a tile is visible if a cell is."""
    starts = np.arange(0, visible.shape[axis], size)
    pooled: Visible = np.logical_or.reduceat(visible, starts, axis=axis)
    return pooled


def find_strongest_edges(weights: Weights, count: int) -> Edges:
    """Find the keys to which each query gives the largest weights.

    weights: (layer, head, query, key). count: how many keys to find for each query; all, if there
    are fewer. Returns the keys and their weights, both (layer, head, query, rank), the largest
    first.
    """
    count = min(count, weights.shape[-1])
    order = np.argsort(-weights, axis=-1, kind="stable")
    keys = order[..., :count]
    largest = np.take_along_axis(weights, keys, -1)
    return Edges(keys.astype(np.int32), largest)


def average_defined(values: Floats | Doubles, axis: int) -> Doubles:
    """Compute the mean along an axis of the numbers that are defined; NaN if none is."""
    is_defined = np.isfinite(values)
    counts = is_defined.sum(axis)
    totals = np.where(is_defined, values, 0).sum(axis)
    means = np.full(counts.shape, np.nan)
    np.divide(totals, counts, out=means, where=counts > 0)
    return means


def compute_deviation(values: Doubles, axis: int) -> Doubles:
    """Compute the standard deviation along an axis of the numbers that are defined.

    It is that of a sample, n - 1 in the divisor; NaN of fewer than two numbers.
    """
    is_defined = np.isfinite(values)
    counts = is_defined.sum(axis)
    means = np.expand_dims(average_defined(values, axis), axis)
    deviations = np.where(is_defined, values - means, 0)
    squares = (deviations**2).sum(axis)
    mean_squares = np.full(counts.shape, np.nan)
    degrees_of_freedom = counts - 1
    np.divide(squares, degrees_of_freedom, out=mean_squares, where=counts > 1)
    return np.sqrt(mean_squares)
