"""The colour scale of a picture, and the sinks that are left out of it.

A sink is a token that soaks up attention. One such column would take all the colours, and the rest
of the picture would look empty. So the colours end at the largest weight of all other columns, and
the sinks are drawn as beyond the scale.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from attnviz.analysis.measures import find_resting_keys
from attnviz.analysis.statistics import find_sink
from attnviz.drawable import Panel, Scale
from attnviz.methods import (
    METHODS_WITHOUT_SINKS,
    holds_other_numbers,
    name_cell,
)
from attnviz.record import ATTENTION, SCORES, AttentionMap, Doubles, Floats, Visible
from attnviz.views.labels import name_token

LEAST_SHARE_OF_CANDIDATE = 0.3  # of the weight, on a special or first token (Gu et al. 2024)
LEAST_SHARE_OF_OTHER = 0.5  # of the weight, on any other token
LEAST_SHARE_TO_TELL = 0.1  # of the weight, for a caption to speak of a sink
TIMES_EVEN_SHARE = 2.0
"""How many times its even share a token receives at least that captions call a sink.

In 20 random models, whole layers stay below 1.1 times; the sinks of MiniLM and of a Llama type with
135 M parameters have 3 to 90 times.
"""
NEARLY_LARGEST = 0.9  # of the largest weight: colours that reach so far show nearly as much
ROUNDING = 1e-6  # of float32, in a row that sums to 1


class Look(NamedTuple):
    """The options for how weights become colours."""

    whole: bool = False
    """The scale reaches the largest weight, even if that is on a sink."""
    linear: bool = False
    """Colours follow the weights themselves, else their square roots."""


def measure_key_shares(attention_map: AttentionMap, layer: int, head: int, panel: Panel) -> Floats:
    """Measure which share of a head's whole attention weight each key receives: (key,).

    Queries that may attend to a single key are left out, as they have no choice. All shares are 0
    if the map holds scores, or if no weight is received.

    layer, head: the indices of the head in the map. panel: the matrix of the head: (query, key), or
    the largest weight of each tile if the map holds tiles.
    """
    key_count = len(attention_map.keys)
    if attention_map.method == SCORES:
        return np.zeros(key_count, np.float32)
    statistics = attention_map.statistics
    if attention_map.weights is None and statistics is not None:
        received = statistics.received[layer, head]
    else:
        has_choice = panel.visible.sum(1) > 1
        columns = panel.values[has_choice].sum(0)
        # Each key of a tile has the number of the tile; the last tile may have fewer keys.
        repeated = np.repeat(columns, count_keys_per_column(attention_map))
        received = repeated[:key_count]
    total = received.sum()
    if not total:
        return np.zeros_like(received)
    key_shares: Floats = received / total
    return key_shares


def count_keys_per_column(attention_map: AttentionMap) -> int:
    """Return how many keys a column of a drawn matrix stands for: those of a tile, or one."""
    if attention_map.weights is None and attention_map.tiles:
        return attention_map.tiles.width
    return 1


def find_sinks(attention_map: AttentionMap, key_shares: Floats) -> Visible:
    """Find which keys are sinks, that is, tokens that soak up attention: a boolean array (key,).

    A special or first token is a sink if it receives at least LEAST_SHARE_OF_CANDIDATE of the
    weight. If there are few keys, it must also receive twice the share that all keys would have if
    they were equal, or LEAST_SHARE_OF_OTHER if that is less. Any other token is a sink if it
    receives at least LEAST_SHARE_OF_OTHER. But it is none if the map has a single query, or holds
    norms and other numbers that say more than weights do: there it may well be what the query is
    about. Maps of gradients and scores have no sinks at all.

    key_shares: the share of the weight that each key receives: (key,).
    """
    if attention_map.method in METHODS_WITHOUT_SINKS:
        return np.zeros(len(attention_map.keys), bool)
    keys_with_weight = int(np.count_nonzero(key_shares))
    twice_even = 2 / max(keys_with_weight, 1)
    least_of_candidate = np.clip(twice_even, LEAST_SHARE_OF_CANDIDATE, LEAST_SHARE_OF_OTHER)
    has_several_queries = len(attention_map.queries) > 1
    least_of_other = np.inf
    if has_several_queries and not holds_other_numbers(attention_map.method):
        least_of_other = LEAST_SHARE_OF_OTHER
    least = np.where(find_resting_keys(attention_map), least_of_candidate, least_of_other)
    is_sink: Visible = key_shares >= least
    return is_sink


def find_least_shares(even_shares: Floats) -> Floats:
    """Find the share of the weight from which on captions call a key a sink.

    It is far more than the even share.

    That is TIMES_EVEN_SHARE of it, or if the text is so short that nearly no key can reach that,
    half of the way from the even share to all of the weight. even_shares: of each key, (key,).
    """
    half_way = (1 + even_shares) / 2
    least: Floats = np.minimum(TIMES_EVEN_SHARE * even_shares, half_way)
    return least


def measure_even_shares(attention_map: AttentionMap) -> Floats:
    """Measure the share of the weight that each key would receive of queries that attend evenly.

    A query attends evenly if each key that it may attend to receives the same. Queries that may
    attend to a single key are left out, as they have no choice. Returns the mean over the others,
    (layer or 1, head or 1, key), with one layer or head where all have the same mask; zeros if no
    query has a choice.
    """
    masks = attention_map.visible
    layer_step, head_step, *_ = masks.strides
    if not layer_step:
        masks = masks[:1]
    if not head_step:
        masks = masks[:, :1]
    shares = np.empty((*masks.shape[:2], len(attention_map.keys)), np.float32)
    for head in np.ndindex(masks.shape[:2]):
        shares[head] = average_even_attention(attention_map, masks[head])
    return shares


def average_even_attention(attention_map: AttentionMap, visible: Visible) -> Doubles:
    """Return the share of the weight that each key receives of queries that attend evenly, (key,).

    If the map holds tiles, all cells of a visible tile are visible, but for keys after the query
    where attention is causal. visible: the mask of a head, (query, key), or (row, column) of tiles.
    """
    tiles = attention_map.tiles
    if attention_map.weights is not None or tiles is None:
        counts = visible.sum(1)
        has_choice = counts > 1
        weights = has_choice / np.maximum(counts, 1)
        return np.asarray(weights @ visible / max(has_choice.sum(), 1))
    query_places = np.array(attention_map.query_places)
    key_places = np.array(attention_map.key_places)
    last_key = key_places.max(initial=0)
    is_causal = attention_map.kind != "cross" and not np.triu(visible, 1).any()
    received = np.zeros(len(key_places))
    choosing_count = 0
    for row, seen_tiles in enumerate(visible):
        queries = query_places[row * tiles.height : (row + 1) * tiles.height]
        seen = np.repeat(seen_tiles, tiles.width)[: len(key_places)]
        # keys up to the first of these queries are seen by all of them
        seen_by_all = seen & (key_places <= (queries[0] if is_causal else last_key))
        others = np.flatnonzero(seen & ~seen_by_all)
        seen_by_some = key_places[others] <= queries[:, None]
        counts = seen_by_all.sum() + seen_by_some.sum(1)
        has_choice = counts > 1
        weights = has_choice / np.maximum(counts, 1)
        received[seen_by_all] += weights.sum()
        received[others] += weights @ seen_by_some
        choosing_count += int(has_choice.sum())
    return received / max(choosing_count, 1)


def pick_head(shares: Floats, layer: int, head: int) -> Floats:
    """Pick the shares (key,) of a head out of those of a map, (layer or 1, head or 1, key)."""
    layers, heads, _ = shares.shape
    return np.asarray(shares[min(layer, layers - 1), min(head, heads - 1)])


def find_sink_columns(attention_map: AttentionMap, is_sink: Visible) -> Visible:
    """Find which columns of a drawn matrix hold a sink: a boolean array (column,).

    If the map holds tiles, a column stands for several keys.

    is_sink: which keys are sinks: (key,).
    """
    width = count_keys_per_column(attention_map)
    starts = np.arange(0, len(is_sink), width)
    has_sink: Visible = np.logical_or.reduceat(is_sink, starts)
    return has_sink


def make_scale(
    panels: Iterable[tuple[Panel, Visible]],
    look: Look,
    method: str = ATTENTION,
) -> Scale:
    """Make one colour scale for several matrices.

    A sink, that is, a token that soaks up attention, would take all the colours. So the scale ends
    at the largest weight outside the columns of sinks. It ends at the largest weight of all if the
    look asks for that, if other columns hold weights that are nearly as large, or if they hold
    nothing but what rounding leaves. Scores, which may be below 0, get a scale from a negative to a
    positive end.

    panels: each matrix, with the columns that hold a sink: a boolean array (column,). look: the
    user's options for the scale. method: how the numbers were computed, such as "attention", by
    which they are named.
    """
    cell_name = name_cell(method) if holds_other_numbers(method) else ""
    if method == SCORES:
        sizes = [measure_largest_size(panel) for panel, _ in panels]
        largest = max(sizes)
        top = largest or 1.0
        return Scale(top, largest, linear=look.linear, signed=True, of=cell_name)
    largest = 0.0
    largest_elsewhere = 0.0
    for panel, has_sink in panels:
        largest_of_panel = float(panel.values.max())
        others = panel.values[:, ~has_sink]
        largest_of_others = float(others.max(initial=0))
        largest = max(largest, largest_of_panel)
        largest_elsewhere = max(largest_elsewhere, largest_of_others)
    sinks_hide_others = ROUNDING * largest < largest_elsewhere < NEARLY_LARGEST * largest
    top = largest
    if sinks_hide_others and not look.whole:
        top = largest_elsewhere
    return Scale(top, largest, linear=look.linear, of=cell_name)


def measure_largest_size(panel: Panel) -> float:
    """Return the largest absolute value of a matrix; 0 for one without cells."""
    sizes = np.abs(panel.values)
    return float(sizes.max(initial=0))


def describe_beyond(
    attention_map: AttentionMap,
    key_shares: Floats,
    even_shares: Floats,
    is_sink: Visible,
    scale: Scale,
) -> str:
    """Describe which keys are above a colour scale; return an empty text if no weight is.

    They are called sinks if they receive far more than their even share.

    key_shares, even_shares: the share of the weight that each key receives, and the one that it
    would receive if queries attended evenly: (key,). is_sink: which keys are sinks: (key,).
    """
    if not scale.has_beyond:
        return ""
    sinks = np.flatnonzero(is_sink)
    if "max" in attention_map.heads:
        # rows of maxima sum to anything, so there are no shares
        names = [name_token(attention_map.keys[key]) for key in sinks]
        return f"{' and '.join(names)}: beyond the colours"
    cell_name = name_cell(attention_map.method)
    least_shares = find_least_shares(even_shares)
    pieces: list[str] = []
    for key in sinks:
        share = f"{key_shares[key]:.0%}"
        if not pieces:
            share += f" of the {cell_name} is"
        name = name_token(attention_map.keys[key])
        if key_shares[key] >= least_shares[key]:
            name = f"the sink {name}"
        pieces.append(f"{share} on {name} (even share: {even_shares[key]:.0%})")
    return f"{', '.join(pieces)}: beyond the colours"


def describe_sink(maps: Sequence[AttentionMap], head_index: tuple[int, int] | None = None) -> str:
    """Describe in a line which share of the weight is on the sink, over all heads of some maps.

    The sink is the special or first token that receives most of the weight. The line is empty if it
    receives less than LEAST_SHARE_TO_TELL, or not far more than its even share.

    maps: maps of one kind of attention. head_index: the indices of a layer and a head in the first
    map, if that head alone counts; None for all heads. The line is empty if no query has a choice
    of keys. It is also empty if the maps have different keys, or if the whole weight of rows is not
    known: for a map without statistics, or with maxima over heads, whose rows sum to anything.
    """
    first_map = maps[0]
    keys = first_map.keys
    received_of_maps = []
    for attention_map in maps:
        is_maximum = "max" in attention_map.heads
        if not attention_map.statistics or is_maximum or attention_map.keys != keys:
            return ""
        received = attention_map.statistics.received
        received_of_maps.append(received.reshape(-1, len(keys)))
    received = np.concatenate(received_of_maps)
    if head_index is not None:
        layer, head = head_index
        row = layer * len(first_map.heads) + head
        received = received[[row]]
    candidates = np.flatnonzero(find_resting_keys(first_map)).tolist()
    strongest = find_sink(received, candidates) if candidates else None
    if strongest is None:
        return ""
    # The mean of a row is 1, unless rows came from elsewhere or see nothing.
    mean_of_rows = received.sum(dtype=np.float64) / len(received)
    share = strongest.share / mean_of_rows
    even_shares = average_even_shares(maps, head_index)
    even_share = even_shares[strongest.key]
    least_share = find_least_shares(even_shares)[strongest.key]
    if share < max(LEAST_SHARE_TO_TELL, least_share):
        return ""
    sink_name = name_token(keys[strongest.key])
    return f"{share:.0%} of the weight is on the sink {sink_name} (even share: {even_share:.0%})"


def average_even_shares(
    maps: Sequence[AttentionMap],
    head_index: tuple[int, int] | None,
) -> Floats:
    """Average the even shares of the keys, (key,), over all heads of maps.

    head_index: the indices of a layer and a head in the first map, if that head alone counts.
    """
    if head_index is not None:
        return pick_head(measure_even_shares(maps[0]), *head_index)
    means = [measure_even_shares(attention_map).mean((0, 1)) for attention_map in maps]
    return np.asarray(np.mean(means, axis=0), np.float32)
