"""Maps of models whose weights fit into memory, made of all weights in NumPy."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from attnviz.analysis.segments import sum_key_groups
from attnviz.analysis.statistics import (
    find_strongest_edges,
    measure_statistics,
    pool_weights,
)
from attnviz.record import (
    ATTENTION,
    AttentionMap,
    Edges,
    Floats,
    KeyGroups,
    KeyNumbers,
    Statistics,
    Tiles,
    Token,
    Visible,
)
from attnviz.request import Request
from attnviz.selection import HeadBlock, find_window_positions

Part = TypeVar("Part", Tiles, Statistics, Edges)
"""What is kept of weights in place of them."""


def make_whole_map(
    layers: tuple[int, ...],
    heads: tuple[int | str, ...],
    tokens: tuple[Token, ...],
    weights: Floats,
    visible: Visible,
    request: Request,
    key_numbers: KeyNumbers | None = None,
) -> AttentionMap:
    """Make the map of self-attention that a request asks for, out of all weights of some layers.

    The request keeps the weights themselves, tiles of them, statistics, or the strongest edges. A
    window of them, and scores and norms in place of weights, are always kept as they are.

    layers, heads: the numbers of the layers and heads in the arrays; a head may also have a name,
    such as "sum". tokens: the queries, which are also the keys. weights: weights, or the scores or
    norms that the request is for, (layer, head, query, key). visible: True where a query may
    attend, (layer or 1, head or 1, query, key). request: one whose window is in ``rows`` and
    ``columns``, as ``Request.resolve_window`` returns it. key_numbers: the group of each key,
    (key,), if what queries give to groups is kept too. Raises UsageError for a window without
    tokens.
    """
    make_self_map = partial(AttentionMap, "self", layers, heads, tokens, tokens)
    if request.windowed or request.method != ATTENTION:
        rows, columns = find_window_positions(request.rows, request.columns, (tokens, tokens))
        whole_map = make_self_map(weights, visible, request.method)
        return whole_map.window(rows, columns)
    statistics = measure_statistics(weights, visible, True)
    if request.keep == "weights":
        return make_self_map(weights, visible, statistics=statistics)
    groups = None
    if key_numbers is not None:
        groups = sum_key_groups(weights, visible, key_numbers)
    if request.keep == "tiles":
        tiles = pool_weights(weights, request.tiles)
        visible_tiles = pool_weights(visible, request.tiles).max.astype(bool)
        has_a_tile_per_cell = (tiles.height, tiles.width) == (1, 1)
        kept_weights = None
        if has_a_tile_per_cell:  # weights tell what groups of keys get
            kept_weights, groups = weights, None
        return make_self_map(
            kept_weights, visible_tiles, tiles=tiles, statistics=statistics, groups=groups
        )
    edges = None
    if request.keep == "edges":
        edges = find_strongest_edges(weights, request.strongest)
    return make_self_map(None, np.array(True), edges=edges, statistics=statistics, groups=groups)


class LayerJoiner:
    """Join maps of one layer each, of the same heads, tokens and request, as they are made.

    Weights are copied to their place among those of all layers when their map comes, so that memory
    holds the weights of a long text once.
    """

    def __init__(self, layers: tuple[int, ...]) -> None:
        """Expect maps of these layers, in any order."""
        self.layers = layers
        self.maps: dict[int, AttentionMap] = {}
        self.weights: Floats | None = None

    def add(self, attention_map: AttentionMap) -> None:
        """Take the map of one layer; only what is small beside its weights is kept of it itself."""
        (layer,) = attention_map.layers
        weights = attention_map.weights
        if weights is not None:
            if self.weights is None:
                shape = len(self.layers), *weights.shape[1:]
                self.weights = np.empty(shape, weights.dtype)
            self.weights[self.layers.index(layer)] = weights[0]
        self.maps[layer] = replace(attention_map, weights=None)

    def join(self) -> AttentionMap:
        """Make the map of all layers, when the maps of all have come."""
        maps = [self.maps[layer] for layer in self.layers]
        visible = join_layer_masks([one.visible for one in maps])
        tiles = join_fields([one.tiles for one in maps if one.tiles is not None])
        statistics = join_fields([one.statistics for one in maps if one.statistics is not None])
        edges = join_fields([one.edges for one in maps if one.edges is not None])
        return replace(
            maps[0],
            layers=self.layers,
            weights=self.weights,
            visible=visible,
            tiles=tiles,
            statistics=statistics,
            edges=edges,
            groups=join_groups([one.groups for one in maps if one.groups is not None]),
        )


def join_maps_of_layers(
    blocks: Sequence[HeadBlock],
    maps: Iterable[AttentionMap],
) -> tuple[AttentionMap, ...]:
    """Join maps of one layer each to a map of each block of layers and heads, as they are made."""
    joiners = [LayerJoiner(layers) for layers, _ in blocks]
    joiner_of_layer = {layer: joiner for joiner in joiners for layer in joiner.layers}
    for attention_map in maps:
        (layer,) = attention_map.layers
        joiner_of_layer[layer].add(attention_map)
    return tuple(joiner.join() for joiner in joiners)


def join_fields(parts: Sequence[Part]) -> Part | None:
    """Join the arrays of tiles, statistics or edges along their first axis, that of layers.

    Returns None if there are none.
    """
    if not parts:
        return None
    joined: dict[str, Any] = {}
    for entry in fields(parts[0]):
        values = [getattr(part, entry.name) for part in parts]
        is_array = isinstance(values[0], np.ndarray)
        joined[entry.name] = np.concatenate(values) if is_array else values[0]
    return replace(parts[0], **joined)


def join_groups(parts: Sequence[KeyGroups]) -> KeyGroups | None:
    """Join what is kept of groups of keys in maps of one layer each. Returns None if nothing is."""
    if not parts:
        return None
    weights = np.concatenate([part.weights for part in parts])
    seen = parts[0].seen
    if not all(np.array_equal(part.seen, seen) for part in parts[1:]):
        seen = np.concatenate([part.seen for part in parts])
    return KeyGroups(parts[0].numbers, weights, seen)


def join_layer_masks(masks: Sequence[Visible]) -> Visible:
    """Join masks of one layer each, (1, head, query, key), to one of all layers.

    It has one layer where all are alike, and one head where all heads of each are.
    """
    alike = all(mask.strides[1] == 0 for mask in masks)
    shown = [mask[:, :1] for mask in masks] if alike else list(masks)
    if all(np.array_equal(mask, shown[0]) for mask in shown[1:]):
        return shown[0]
    return np.concatenate(shown)
