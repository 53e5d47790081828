"""Maps of models whose weights fit into memory, made of all weights in NumPy."""

from functools import partial

import numpy as np

from attnviz.analysis.statistics import (
    find_strongest_edges,
    measure_statistics,
    pool_weights,
)
from attnviz.record import ATTENTION, AttentionMap, Floats, Token, Visible
from attnviz.request import Request
from attnviz.selection import find_window_positions


def make_whole_map(
    layers: tuple[int, ...],
    heads: tuple[int | str, ...],
    tokens: tuple[Token, ...],
    weights: Floats,
    visible: Visible,
    request: Request,
) -> AttentionMap:
    """Make the map of self-attention that a request asks for, out of all weights of some layers.

    The request keeps the weights themselves, tiles of them, statistics, or the strongest edges. A
    window of them, and scores and norms in place of weights, are always kept as they are.

    layers, heads: the numbers of the layers and heads in the arrays; a head may also have a name,
    such as "sum". tokens: the queries, which are also the keys. weights: weights, or the scores or
    norms that the request is for, (layer, head, query, key). visible: True where a query may
    attend, (layer or 1, head or 1, query, key). request: one whose window is in ``rows`` and
    ``columns``, as ``Request.resolve_window`` returns it. Raises UsageError for a window
    without tokens.
    """
    make_self_map = partial(AttentionMap, "self", layers, heads, tokens, tokens)
    if request.windowed or request.method != ATTENTION:
        rows, columns = find_window_positions(request.rows, request.columns, (tokens, tokens))
        whole_map = make_self_map(weights, visible, request.method)
        return whole_map.window(rows, columns)
    statistics = measure_statistics(weights, visible, True)
    if request.keep == "weights":
        return make_self_map(weights, visible, statistics=statistics)
    if request.keep == "tiles":
        tiles = pool_weights(weights, request.tiles)
        visible_tiles = pool_weights(visible, request.tiles).max.astype(bool)
        has_a_tile_per_cell = (tiles.height, tiles.width) == (1, 1)
        kept_weights = weights if has_a_tile_per_cell else None
        return make_self_map(kept_weights, visible_tiles, tiles=tiles, statistics=statistics)
    edges = None
    if request.keep == "edges":
        edges = find_strongest_edges(weights, request.strongest)
    return make_self_map(None, np.array(True), edges=edges, statistics=statistics)
