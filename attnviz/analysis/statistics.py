"""What each head does with its weights, in numbers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

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


class Sink(NamedTuple):
    """The token that soaks up attention."""

    key: int
    share: float
    """What it received, in [0, 1] where rows sum to 1: mean over layers, heads and the queries that see another key."""


def describe(weights: Weights, visible: Visible, square: bool) -> Statistics:
    """The statistics of full weights, (layer, head, query, key); visible broadcasts to them.

    square: queries and keys are the same tokens, so that distances between them mean something. Distance and diagonal
    are means over the queries that see a key. One head after the other, so that little more than the weights is held.
    """
    lead = weights.shape[:2]
    visible = np.broadcast_to(visible, weights.shape)
    found = [describe_head(weights[at], visible[at], square) for at in np.ndindex(lead)]
    columns = (np.array(column, np.float32) for column in zip(*found, strict=True))
    return Statistics(*(column.reshape(*lead, *column.shape[1:]) for column in columns))


def describe_head(weights: Weights, visible: Visible, square: bool) -> tuple[Any, ...]:
    """The fields of ``Statistics``, in order, of one head (query, key), in float64."""
    exact = weights.astype(np.float64)
    logs = np.log(exact, out=np.zeros_like(exact), where=exact > 0)  # 0 log 0 = 0
    entropy = 0 - np.einsum(
        "qk,qk->q", exact, logs
    )  # 0 - x, as -x would be -0.0 for a query with one key
    seen = visible.sum(-1)  # (query,)
    received = (seen > 1) @ exact / max(np.count_nonzero(seen > 1), 1)  # (key,)
    if not square:
        return entropy, received, received[0]
    seeing, later = max(np.count_nonzero(seen), 1), max(np.count_nonzero(seen[1:]), 1)
    places = np.arange(len(exact))
    apart = np.abs(places[:, None] - places)  # (query, key)
    distance = np.vdot(exact, apart) / seeing
    return (
        entropy,
        received,
        received[0],
        distance,
        np.trace(exact) / seeing,
        np.trace(exact, -1) / later,
    )


def sink(received: Floats, candidates: Sequence[int]) -> Sink | None:
    """The candidate key that received most, (..., key) (Xiao et al. 2023; Clark et al. 2019 for [CLS] and [SEP]).

    None if nothing was received at all: then no query sees more than one key.
    """
    if not received.any():
        return None
    shares = received.reshape(-1, received.shape[-1]).mean(0, dtype=np.float64)[list(candidates)]
    best = int(shares.argmax())
    return Sink(candidates[best], float(shares[best]))


def tile(weights: Weights | Visible, most: int) -> Tiles:
    """Means and maxima over tiles of weights (layer, head, query, key), at most so many on a side."""
    n, m = weights.shape[2:]
    height, width = -(-n // most), -(-m // most)
    rows, columns = np.arange(0, n, height), np.arange(0, m, width)
    sums = np.add.reduceat(
        np.add.reduceat(weights, rows, axis=2, dtype=np.float32), columns, axis=3
    )
    areas = np.outer(np.diff(rows, append=n), np.diff(columns, append=m))
    peaks = np.maximum.reduceat(np.maximum.reduceat(weights, rows, axis=2), columns, axis=3)
    return Tiles((sums / areas).astype(np.float32), peaks.astype(np.float32), height, width)


def tiled(part: AttentionMap, most: int) -> AttentionMap:
    """A map of weights as one of tiles, at most so many on a side; as it is if it has no more, or no weights."""
    n, m = len(part.queries), len(part.keys)
    if part.weights is None or max(n, m) <= most:
        return part
    tiles = tile(part.weights, most)
    seen = part.visible[
        tuple(slice(None, 1) if stride == 0 else slice(None) for stride in part.visible.strides[:2])
    ]
    for axis, step in ((2, tiles.height), (3, tiles.width)):
        seen = np.logical_or.reduceat(seen, np.arange(0, seen.shape[axis], step), axis=axis)
    found = part.statistics
    if found is None and part.method == ATTENTION and "max" not in part.heads:
        found = describe(part.weights, part.visible, square=part.kind != "cross" and n == m)
    return replace(part, weights=None, visible=seen, tiles=tiles, statistics=found)


def strongest(weights: Weights, count: int) -> Edges:
    """The so many largest weights of each query, and their keys: (layer, head, query, key) -> (..., rank)."""
    count = min(count, weights.shape[-1])
    keys = np.argsort(-weights, axis=-1, kind="stable")[..., :count]
    return Edges(keys.astype(np.int32), np.take_along_axis(weights, keys, -1))


def mean_of(values: Floats | Doubles, axis: int) -> Doubles:
    """The mean of the numbers along an axis that are defined; NaN if none is."""
    count = np.isfinite(values).sum(axis)
    total = np.where(np.isfinite(values), values, 0).sum(axis)
    found: Doubles = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return found


def deviation_of(values: Doubles, axis: int) -> Doubles:
    """Their standard deviation as of a sample, n - 1 in the divisor; NaN of fewer than two."""
    count = np.isfinite(values).sum(axis)
    apart = np.where(np.isfinite(values), values - np.expand_dims(mean_of(values, axis), axis), 0)
    mean_square = np.divide(
        (apart**2).sum(axis), count - 1, out=np.full(count.shape, np.nan), where=count > 1
    )
    found: Doubles = np.sqrt(mean_square)
    return found


def log_softmax(logits: Floats | Doubles) -> Doubles:
    """Return the logarithms of the probabilities that logits (..., number) stand for, over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    found: Doubles = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found
