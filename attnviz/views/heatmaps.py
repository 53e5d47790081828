"""The pictures of a capture: which of its matrices they show, and the lines below them.

A capture holds maps, and each map the matrices of some layers and heads. One matrix is a heatmap,
many small ones are a grid, one row of a matrix is a strip of text, that row of all heads is again a
heatmap. A page holds all matrices, small and large.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

import numpy as np

from attnviz.analysis.statistics import pool_map, pool_weights
from attnviz.drawable import (
    Axis,
    Grid,
    Heatmap,
    Page,
    Panel,
    Scale,
    Section,
    Strip,
)
from attnviz.escape import escape
from attnviz.record import SCORES, AttentionMap, Capture, Floats, Unit, Visible
from attnviz.views.colour_scale import (
    Look,
    describe_beyond,
    describe_sink,
    find_sink_columns,
    find_sinks,
    make_scale,
    measure_even_shares,
    measure_key_shares,
    pick_head,
)
from attnviz.views.labels import (
    KIND_TITLES,
    abbreviate_head,
    abbreviate_head_column,
    describe_head_count,
    describe_length,
    make_axes,
    make_number_axis,
    name_model,
    shorten_token_label,
    title_kind,
    title_matrix,
)

MatrixIndex: TypeAlias = tuple[AttentionMap, int, int]
"""One matrix of a capture: its map, and the indices of its layer and head there."""
HeadKey: TypeAlias = tuple[int, int | str]
"""A layer and a head by their numbers, or by the name of a reduction over heads."""
Content = TypeVar("Content")

DEFAULT_LOOK = Look()
PAGE_CELLS = 512  # cells on a side: what a browser loads at once, and an eye can tell apart
MOST_NAMED = 5  # tokens that are named as the strongest
LEAST_NAMED = 0.005  # of the whole: a weight that two digits show as more than nothing
LEAST_FINITE = np.finfo(np.float32).min
POOLED_MEAN = "a cell is the mean over the heads of the largest weight that each has in it"


def make_heatmaps(capture: Capture, look: Look = DEFAULT_LOOK) -> list[Heatmap]:
    """Make a heatmap for every layer and head of the capture."""
    return [make_heatmap(capture, *index, look) for index in index_matrices(capture.maps)]


def index_matrices(maps: Sequence[AttentionMap]) -> Iterator[MatrixIndex]:
    """Yield each matrix of some maps: its map, and the indices of its layer and head there."""
    for attention_map in maps:
        for layer in range(len(attention_map.layers)):
            for head in range(len(attention_map.heads)):
                yield attention_map, layer, head


def read_head_key(attention_map: AttentionMap, layer: int, head: int) -> HeadKey:
    """Return the layer and head of a matrix, by their indices in the map."""
    return attention_map.layers[layer], attention_map.heads[head]


def make_heatmap(
    capture: Capture,
    attention_map: AttentionMap,
    layer: int,
    head: int,
    look: Look = DEFAULT_LOOK,
) -> Heatmap:
    """Make a heatmap of one matrix of a capture, that is, of one head in one layer.

    The caption says which share of the weight is on the sink, a token that soaks up attention.

    attention_map: the map of the capture that holds the matrix. layer, head: the indices of its
    layer and head in the map. look: the user's options for colours. Raises ValueError if only
    statistics were kept of the map.
    """
    even_shares = measure_even_shares(attention_map)
    panel, shares, is_sink = examine_matrix(attention_map, layer, head, even_shares)
    has_sink = find_sink_columns(attention_map, is_sink)
    scale = make_scale([(panel, has_sink)], look, attention_map.method)
    sink_line = describe_beyond(attention_map, *shares, is_sink, scale)
    if not sink_line:
        sink_line = describe_sink([attention_map], (layer, head))
    title = join_title(capture, *title_matrix(attention_map, layer, head))
    rows, columns = make_axes(attention_map)
    lines = sink_line, describe_pooled_mean(attention_map), *capture.notes
    return Heatmap(title, panel, rows, columns, scale, make_caption(lines))


def make_grids(capture: Capture, look: Look = DEFAULT_LOOK) -> list[Grid]:
    """Make a grid of all layers and heads as thumbnails for each kind of map of the capture."""
    return [make_grid(capture, maps, look) for maps in group_maps_by_kind(capture)]


def group_maps_by_kind(capture: Capture) -> list[list[AttentionMap]]:
    """Group the maps of a capture by their kind of attention, such as "self" or "cross"."""
    groups: dict[str, list[AttentionMap]] = {}
    for attention_map in capture.maps:
        group = groups.setdefault(attention_map.kind, [])
        group.append(attention_map)
    return list(groups.values())


def make_grid(capture: Capture, maps: Sequence[AttentionMap], look: Look = DEFAULT_LOOK) -> Grid:
    """Make a grid of thumbnails of all heads of some maps, on one colour scale.

    capture: has the name of the model and notes for the caption. maps: maps of the capture of one
    kind of attention. look: the user's options for colours.
    """
    first_map = maps[0]
    panels: dict[HeadKey, Panel] = {}
    sink_columns: dict[HeadKey, Visible] = {}
    for attention_map in maps:
        even_shares = measure_even_shares(attention_map)
        for index in index_matrices([attention_map]):
            panel, _, is_sink = examine_matrix(*index, even_shares)
            key = read_head_key(*index)
            panels[key] = panel
            sink_columns[key] = find_sink_columns(attention_map, is_sink)
    scaled = zip(panels.values(), sink_columns.values(), strict=True)
    scale = make_scale(scaled, look, first_map.method)
    layers, heads, rows_of_panels = arrange_by_layer(panels)
    heads_title = describe_head_count(len(panels), heads)
    title = join_title(capture, *title_kind(first_map), heads_title, describe_length(maps))
    row_names = tuple(f"L{layer}" for layer in layers)
    column_names = tuple(map(abbreviate_head_column, heads))
    caption = make_grid_caption(capture, maps, scale)
    return Grid(
        title,
        rows=row_names,
        columns=column_names,
        panels=rows_of_panels,
        scale=scale,
        caption=caption,
        tokens=find_longest_side(maps),
        unit=f"{first_map.unit}s",
    )


def arrange_by_layer(
    by_head: Mapping[HeadKey, Content],
) -> tuple[tuple[int, ...], tuple[int | str, ...], tuple[tuple[Content | None, ...], ...]]:
    """Arrange the items of heads in rows and columns: a row for each layer, a column for each head.

    by_head: an item of any type for each head, by its layer and head. Returns the layers of the
    rows, the heads of the columns, and the rows. None stands where a layer lacks a head.
    """
    layers = tuple(dict.fromkeys(layer for layer, _ in by_head))
    heads = tuple(dict.fromkeys(head for _, head in by_head))
    rows_of_heads = []
    for layer in layers:
        row = tuple(by_head.get((layer, head)) for head in heads)
        rows_of_heads.append(row)
    return layers, heads, tuple(rows_of_heads)


def make_grid_caption(
    capture: Capture,
    maps: Sequence[AttentionMap],
    scale: Scale,
) -> tuple[str, ...]:
    """Make the lines of a grid's caption: sinks, weights beyond the colours, and the notes.

    A sink is a token that soaks up attention. maps: those that the grid shows, of one kind of
    attention. scale: the colour scale of the grid. capture: has the notes.
    """
    lines = []
    sink_line = describe_sink(maps)
    if sink_line:
        lines.append(f"{sink_line}, over all heads shown")
    if scale.has_beyond:
        lines.append("beyond the colours: sinks")
    lines.append(describe_pooled_mean(maps[0]))
    return make_caption([*lines, *capture.notes])


def find_longest_side(maps: Sequence[AttentionMap]) -> int:
    """Return how many tokens the longest axis of any map has, queries or keys."""
    longest = 0
    for attention_map in maps:
        longest = max(longest, len(attention_map.queries), len(attention_map.keys))
    return longest


def make_strips(
    capture: Capture,
    look: Look = DEFAULT_LOOK,
    *,
    incoming: bool = False,
) -> list[Strip]:
    """Make a strip for every layer and head: the text coloured by what one token attends to.

    capture: its maps show that one query alone. incoming: they show one key alone instead, and the
    text is coloured by what attends to that key. look: the user's options for colours.
    """
    indices = index_matrices(capture.maps)
    return [make_strip(capture, *index, look, incoming=incoming) for index in indices]


def make_strip(
    capture: Capture,
    attention_map: AttentionMap,
    layer: int,
    head: int,
    look: Look,
    *,
    incoming: bool,
) -> Strip:
    """Make a strip of one head: a text coloured by how much one token attends to each token.

    With ``incoming`` it is coloured by how much each token attends to the one token.

    capture: has the name of the model and notes for the caption. attention_map: shows one query
    alone, or with ``incoming`` one key. layer, head: the indices of the head in the map. look: the
    user's options for colours.
    """
    even_shares = measure_even_shares(attention_map)
    panel, shares, is_sink = examine_matrix(attention_map, layer, head, even_shares)
    queries, keys = make_axes(attention_map)
    one_token, tokens = queries, keys
    if incoming:
        one_token, tokens = keys, queries
        panel = Panel(panel.values.T, panel.visible.T)
        # The columns are queries, which are no sinks.
        is_sink = np.zeros(len(queries), bool)
    scale = make_scale([(panel, is_sink)], look, attention_map.method)
    token_title = title_token(one_token, attention_map.unit)
    question = f"what {token_title} attends to"
    if incoming:
        question = f"what attends to {token_title}"
    title = join_title(capture, *title_matrix(attention_map, layer, head), question)
    strongest_line = describe_strongest(tokens, panel, scale)
    beyond_line = describe_beyond(attention_map, *shares, is_sink, scale)
    caption = make_caption([strongest_line, beyond_line, *capture.notes])
    chosen = None
    if attention_map.kind != "cross":
        chosen = find_in_axis(one_token.numbers[0], tokens)
    return Strip(title, tokens, panel, chosen, scale, caption)


def find_in_axis(number: int, axis: Axis) -> int | None:
    """Return the index in an axis of the token with this number in the text; None without one."""
    if number not in axis.numbers:
        return None
    return axis.numbers.index(number)


def make_query_heatmaps(capture: Capture, look: Look = DEFAULT_LOOK) -> list[Heatmap]:
    """Make heatmaps of one query over all layers and heads: a row for each head, a column a key.

    There is a heatmap for each kind of attention and, within it, for each set of keys that maps
    have.

    capture: its maps show that query alone. look: the user's options for colours.
    """
    groups: dict[tuple[object, ...], list[AttentionMap]] = {}
    for attention_map in capture.maps:
        group = groups.setdefault((attention_map.kind, attention_map.keys), [])
        group.append(attention_map)
    return [make_query_heatmap(capture, maps, look) for maps in groups.values()]


def make_query_heatmap(
    capture: Capture,
    maps: Sequence[AttentionMap],
    look: Look = DEFAULT_LOOK,
) -> Heatmap:
    """Make a heatmap of one query over all heads of some maps: a row for each head, a column a key.

    capture: has the name of the model and notes for the caption. maps: maps of the capture of one
    kind of attention, which show that query alone and have the same keys. look: the user's options
    for colours.
    """
    first_map = maps[0]
    panels, names = [], []
    for index in index_matrices(maps):
        panels.append(read_panel(*index))
        names.append(abbreviate_head(*read_head_key(*index)))
    values = np.vstack([panel.values for panel in panels])
    visible = np.vstack([panel.visible for panel in panels])
    joined = Panel(values, visible)  # (head, key)
    key_shares = measure_panel_shares(joined, first_map.method)
    even_shares = pick_head(measure_even_shares(first_map), 0, 0)
    is_sink = find_sinks(first_map, key_shares)
    scale = make_scale([(joined, is_sink)], look, first_map.method)
    queries, keys = make_axes(first_map)
    query = title_token(queries, first_map.unit)
    heads = describe_head_count(len(names), first_map.heads)
    title = join_title(capture, *title_kind(first_map), query, f"in {heads}")
    head_axis = make_number_axis("heads", names)
    beyond_line = describe_beyond(first_map, key_shares, even_shares, is_sink, scale)
    caption = make_caption([beyond_line, *capture.notes])
    return Heatmap(title, joined, head_axis, keys, scale, caption)


def measure_panel_shares(panel: Panel, method: str) -> Floats:
    """Return the share of a matrix's whole weight that is on each key: (key,).

    panel: the matrix, (row, key). method: how its numbers were computed; scores, which are no
    weights, give zeros.
    """
    received: Floats = panel.values.sum(0)
    if method == SCORES:
        return np.zeros_like(received)
    total = panel.values.sum() or 1
    key_shares: Floats = received / total
    return key_shares


def make_capture_page(capture: Capture, look: Look = DEFAULT_LOOK, most: int = PAGE_CELLS) -> Page:
    """Make a page of everything that a capture holds, with a section for each kind of attention.

    look: the user's options for colours. most: how many cells a side of a matrix may have; a map of
    more tokens is shown in tiles, that is, with several tokens on a cell.
    """
    maps = tuple(convert_to_tiles(attention_map, most) for attention_map in capture.maps)
    pooled = replace(capture, maps=maps)
    groups = group_maps_by_kind(pooled)
    sections = tuple(make_section(pooled, group, look) for group in groups)
    return Page(name_model(pooled), sections, make_caption(pooled.notes))


def convert_to_tiles(attention_map: AttentionMap, most: int) -> AttentionMap:
    """Pool the matrices of a map to tiles, each with the number of the largest size in it.

    Scores may be below 0, and so may be the number of a tile of scores. A map that is small enough
    is returned as it is.

    most: how many tiles a side may have.
    """
    map_of_tiles = pool_map(attention_map, most)
    weights, tiles = attention_map.weights, map_of_tiles.tiles
    if attention_map.method != SCORES or weights is None or tiles is None:
        return map_of_tiles
    # Tiles hold the largest number, which is not the one of the largest size below 0.
    highest = tiles.max
    lowest = -pool_weights(-weights, most).max
    largest = np.where(highest >= -lowest, highest, lowest)
    return replace(map_of_tiles, tiles=replace(tiles, max=largest))


def make_section(capture: Capture, maps: Sequence[AttentionMap], look: Look) -> Section:
    """Make a section of a page: all heads of some maps as thumbnails, and each as a heatmap.

    capture: has the name of the model and notes for captions. maps: maps of the capture of one kind
    of attention. look: the user's options for colours.
    """
    thumbnails = make_grid(capture, maps, look)
    large: dict[HeadKey, Heatmap] = {}
    for index in index_matrices(maps):
        large[read_head_key(*index)] = make_heatmap(capture, *index, look)
    _, _, rows_of_heatmaps = arrange_by_layer(large)
    return Section(KIND_TITLES[maps[0].kind], thumbnails, rows_of_heatmaps)


def examine_matrix(
    attention_map: AttentionMap,
    layer: int,
    head: int,
    even_shares_of_map: Floats,
) -> tuple[Panel, tuple[Floats, Floats], Visible]:
    """Return a matrix of a map, the shares of its keys, and which keys are sinks.

    A sink is a token that soaks up attention. The shares are those of the weight that each key
    receives, and those that it would receive if queries attended evenly; they and the sinks are
    arrays (key,).

    layer, head: the indices of the matrix in the map. even_shares_of_map: as measured by
    ``measure_even_shares``. Raises ValueError if only statistics were kept of the map.
    """
    panel = read_panel(attention_map, layer, head)
    key_shares = measure_key_shares(attention_map, layer, head, panel)
    even_shares = pick_head(even_shares_of_map, layer, head)
    is_sink = find_sinks(attention_map, key_shares)
    return panel, (key_shares, even_shares), is_sink


def read_panel(attention_map: AttentionMap, layer: int, head: int) -> Panel:
    """Return the matrix of a head: its weights, or the largest weight of each tile if pooled.

    layer, head: the indices of the matrix in the map. Raises ValueError if only statistics were
    kept of the map.
    """
    values = attention_map.weights
    if values is None and attention_map.tiles:
        values = attention_map.tiles.max
    if values is None:
        raise ValueError("this capture has no weights and no tiles to draw")
    visible = attention_map.visible[layer, head]
    return Panel(values[layer, head], visible)


def join_title(capture: Capture, *titles: str) -> str:
    """Join the name of a capture's model and further titles to one title."""
    return " · ".join((name_model(capture), *titles))


def title_token(axis: Axis, unit: Unit = "token") -> str:
    """Return the title of an axis's first token: "token 5 cat", with its number in the text.

    unit: "token", or "word" if the axis has words.
    """
    number = axis.numbers[0]
    label = axis.labels[0]
    return f"{unit} {number} {shorten_token_label(label)}"


def make_caption(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the lines of a caption that are not empty, escaped, as notes may be hostile."""
    return tuple(escape(line) for line in lines if line)


def describe_pooled_mean(attention_map: AttentionMap) -> str:
    """Explain a mean over heads that was made of tiles; return an empty text for other maps.

    It is no mean of weights, but one of the largest weights of tiles.
    """
    has_tiles = attention_map.weights is None and attention_map.tiles is not None
    if has_tiles and "mean" in attention_map.heads:
        return POOLED_MEAN
    return ""


def describe_strongest(tokens: Axis, panel: Panel, scale: Scale) -> str:
    """Name in a line the tokens that have the largest values of a matrix of one row.

    The line is empty if no value is large enough to be named. If values are no weights, it also
    says that sinks are among the tokens.

    tokens: the axis of the row. panel: the matrix, (1, token). scale: says what the values are.
    """
    visible = panel.visible[0]
    values_of_row = panel.values[0]
    values = np.where(visible, values_of_row, -np.inf)
    least = find_least_named(scale)
    falling = np.argsort(-values, kind="stable")
    names = []
    for i in falling[:MOST_NAMED]:
        value = values[i]
        if value >= least:
            label = shorten_token_label(tokens.labels[i])
            number = tokens.numbers[i]
            shown_value = format_on_scale(value, scale)
            names.append(f"{label} ({number}) {shown_value}")
    if not names:
        return ""
    heading = "strongest"
    if scale.of:
        heading = "strongest, sinks included"
    return f"{heading}: {', '.join(names)}"


def find_least_named(scale: Scale) -> float:
    """Return the value below which a token is not named among the strongest of a picture.

    It is LEAST_NAMED of 1, or of the largest value if the values are no weights and all below 1.
    Values with signs are named however small they are.
    """
    if scale.signed:
        return float(LEAST_FINITE)
    whole = min(scale.largest, 1.0) if scale.of else 1.0
    return LEAST_NAMED * whole


def format_on_scale(value: float, scale: Scale) -> str:
    """Format a value with two digits after the point, or two significant ones on a small scale."""
    if scale.small:
        return f"{value:.2g}"
    return f"{value:.2f}"
