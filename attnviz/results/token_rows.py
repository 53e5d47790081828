"""One token in all heads: the weights that it gives and gets; and one cell in all heads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attnviz.analysis.measures import divide_where
from attnviz.derived import CaptureSource
from attnviz.drawable import (
    Axis,
    Heatmap,
    Panel,
    Picture,
    Table,
    make_blank_levels,
)
from attnviz.errors import UsageError
from attnviz.io.formats import (
    describe_capture,
    describe_tokens,
    list_shortest_decimals,
)
from attnviz.methods import holds_other_numbers
from attnviz.record import (
    SCORES,
    AttentionMap,
    Capture,
    Doubles,
    Floats,
    Visible,
)
from attnviz.request import Request
from attnviz.results.digits import format_share
from attnviz.results.inspection import (
    EVERY_HEAD,
    MapHead,
    capture_heads,
    find_largest,
    list_map_heads,
    list_panels,
    name_heads,
)
from attnviz.results.result import Result
from attnviz.selection import TokenReference
from attnviz.views.colour_scale import Look, make_scale
from attnviz.views.heatmaps import (
    index_matrices,
    join_title,
    make_caption,
    read_panel,
    title_token,
)
from attnviz.views.labels import (
    abbreviate_head_column,
    describe_head_count,
    make_axes,
    make_number_axis,
    title_kind,
)

FAINT = 5e-4  # a weight that two digits show as nothing
GIVES = "gives"
GETS = "gets"


def describe_window(capture: Capture) -> dict[str, Any]:
    """Describe the tokens of a capture, and the weights of each head, for JSON.

    The capture is of a part of the text; all its maps have the same tokens. A masked cell is NaN.
    """
    first_map = capture.maps[0]
    heads = []
    map_heads = list_map_heads(capture.maps)
    for map_head, panel in zip(map_heads, list_panels(capture.maps), strict=True):
        weights = np.where(panel.visible, panel.values, np.float32(np.nan))
        heads.append({**map_head._asdict(), "weights": list_shortest_decimals(weights)})
    queries = describe_tokens(first_map.queries, first_map.query_places)
    keys = describe_tokens(first_map.keys, first_map.key_places)
    return {"queries": queries, "keys": keys, "heads": heads}


def list_window_cells(capture: Capture) -> Iterator[dict[str, Any]]:
    """Yield each cell of each head of a capture as a row of a CSV file.

    The weight of a masked cell is None.
    """
    for attention_map, layer, head in index_matrices(capture.maps):
        layer_number = attention_map.layers[layer]
        head_number = attention_map.heads[head]
        map_head = MapHead(attention_map.kind, layer_number, head_number)
        panel = read_panel(attention_map, layer, head)
        for cell in list_panel_cells(attention_map, panel):
            yield map_head._asdict() | cell


def list_panel_cells(attention_map: AttentionMap, panel: Panel) -> Iterator[dict[str, Any]]:
    """Yield each cell of one matrix of a map, with its tokens and its weight.

    panel: the weights of the matrix (query, key), and where they are visible. A weight is written
    as a text, None where it is masked.
    """
    weights = panel.values.astype(str)  # the shortest decimals that give the same float32 back
    for query, query_token in enumerate(attention_map.queries):
        for key, key_token in enumerate(attention_map.keys):
            weight = str(weights[query, key]) if panel.visible[query, key] else None
            yield {
                "query": attention_map.query_places[query],
                "query_token": query_token.text,
                "key": attention_map.key_places[key],
                "key_token": key_token.text,
                "weight": weight,
            }


def format_weight(value: float, method: str) -> str:
    """Format a number of a map: "" for NaN, two digits for a weight, a sign for a score.

    method: the kind of numbers in the map. Small numbers that are neither weights nor scores have
    two digits of their own.
    """
    if method == SCORES and np.isfinite(value):
        return f"{value:+.2f}"
    if holds_other_numbers(method) and 0 < value < 0.1:
        return f"{value:.2g}"
    return format_share(value)


# One token


@dataclass(frozen=True, eq=False, repr=False)
class TokenRows(Result):
    """The weights that one token gives to each of the others, and gets from each, in all heads."""

    windows: Mapping[str, Capture]
    """Under ``gives`` the row of the token, under ``gets`` its column.

    In cross-attention, where a token may stand in one text only, one of them alone.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return what the token gives and what it gets, in every head, as a document for JSON."""
        first = next(iter(self.windows.values()))
        described = describe_capture(first)
        for direction, capture in self.windows.items():
            described[direction] = describe_window(capture)
        return described

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each weight that the token gives or gets, in every head."""
        rows: list[dict[str, Any]] = []
        for capture in self.windows.values():
            rows += list_window_cells(capture)
        return rows

    def tables(self) -> list[Picture]:
        """Return the tables of the token, with all others."""
        return list[Picture](self.draw_tables())

    def draw_tables(self, most: int | None = None) -> list[Table]:
        """Draw one table of what the token gives and gets, or in cross-attention one of each.

        most: other tokens that are shown at most, those of the largest means; None for all.
        """
        windows = self.windows.items()
        directions = [read_direction(capture, name) for name, capture in windows]
        # The others of a cross-attention are of another text in each direction.
        if directions[0].capture.maps[0].kind == "cross":
            return [draw_token_table([direction], most) for direction in directions]
        return [draw_token_table(directions, most)]


def inspect_token(
    source: CaptureSource,
    token: TokenReference,
    request: Request = EVERY_HEAD,
) -> TokenRows:
    """Find the weights that one token gives to each of the others, and gets from each.

    source: a function that takes a request and returns a capture of a model's attention. request:
    the layers, heads and kinds of map. In cross-attention a token may stand in one of the two texts
    only; then there is only what it gives, or only what it gets.

    Raises UsageError if the token is nowhere, and as the source does.
    """
    requests = {
        GIVES: replace(request, keep="weights", query=token),
        GETS: replace(request, keep="weights", key=token),
    }
    windows: dict[str, Capture] = {}
    errors: list[UsageError] = []
    for direction, window in requests.items():
        try:
            windows[direction] = capture_heads(source, window)
        except UsageError as error:  # a token of one side of a cross-attention
            errors.append(error)
    if not windows:
        raise errors[0]
    return TokenRows(windows)


@dataclass(frozen=True, eq=False)
class Direction:
    """The weights between one token and each of the others, by head."""

    name: str
    """``gives`` or ``gets``."""
    capture: Capture
    token: Axis
    others: Axis
    values: Doubles
    """(head, token), 0 where masked."""
    visible: Visible
    """(head, token)."""

    @property
    def method(self) -> str:
        """The method that the numbers are of."""
        return self.capture.maps[0].method

    @property
    def means(self) -> Doubles:
        """The mean weight of each other token over the heads that see it, (token,); else NaN."""
        visible_values = self.values * self.visible
        counts = self.visible.sum(0).astype(np.float64)
        return divide_where(visible_values.sum(0), counts)


def read_direction(capture: Capture, name: str) -> Direction:
    """Read the weights between one token and the others, in every head.

    capture: of the row of the token alone, or of its column alone. name: "gives" for a row, where
    the token is the query, "gets" for a column, where it is the key.
    """
    queries, keys = make_axes(capture.maps[0])
    token, others = queries, keys
    if name == GETS:
        token, others = keys, queries
    panels = list_panels(capture.maps)
    values = np.stack([panel.values.ravel() for panel in panels])
    visible = np.stack([panel.visible.ravel() for panel in panels])
    return Direction(name, capture, token, others, values.astype(np.float64), visible)


def draw_token_table(directions: Sequence[Direction], most: int | None = None) -> Table:
    """Draw a table of what one token gives to other tokens and gets from them, a row for each.

    directions: what it gives, what it gets, or both. Each has two columns: the mean over the heads,
    and the head with the largest weight. Rows stand in the order of the text. most: rows at most,
    those of the largest means; None for all.
    """
    first = directions[0]
    maps = first.capture.maps
    names = name_heads(maps)
    means = np.stack([direction.means for direction in directions], -1)  # (token, direction)
    shown = choose_strongest(means, most)
    columns: list[str] = []
    for direction in directions:
        columns += [direction.name, "most by"]
    rows, cells = [], []
    for index in shown:
        number = first.others.numbers[index]
        label = first.others.labels[index]
        rows.append(f"{number} {label}")
        cells.append(format_token_row(directions, index, names))
    token = title_token(first.token)
    heads = describe_head_count(len(names), maps[0].heads)
    title = join_title(first.capture, *title_kind(maps[0]), token, heads)
    levels = colour_means(means, shown, first.method)
    line = caption_token(first, means, shown)
    caption = make_caption((line, *first.capture.notes))
    columns_of_names = frozenset(range(1, len(columns), 2))
    return Table(
        title=title,
        corner="token",
        columns=tuple(columns),
        rows=tuple(rows),
        cells=tuple(cells),
        levels=levels,
        caption=caption,
        texts=columns_of_names,
    )


def colour_means(means: Doubles, shown: Sequence[int], method: str) -> Floats:
    """Return the colour levels of a table of means, from 0 to 1: (row, column).

    means: (token, direction), a direction being what a token gives or gets. shown: the tokens in
    the rows. Beside each column of means is one of NaN, which stands for no colour. All are NaN for
    scores before the softmax, whose colours would need two ends. method: the kind of numbers.
    """
    direction_count = means.shape[1]
    levels = make_blank_levels(len(shown), 2 * direction_count)
    if method != SCORES:
        top = find_largest(means) or 1
        shares = means[shown] / top
        levels[:, ::2] = np.sqrt(shares)  # as other weights are coloured
    return levels


def choose_strongest(means: Doubles, most: int | None) -> list[int]:
    """Return the indices of the tokens with the largest means, in the order of the text.

    means: (token, direction), of which the largest of a token counts, NaN as less than any other.
    most: tokens at most; None for all.
    """
    defined = np.where(np.isfinite(means), means, -np.inf)
    largest = defined.max(-1)
    falling = np.argsort(-largest, kind="stable")
    in_order: list[int] = np.sort(falling[:most]).tolist()
    return in_order


def caption_token(direction: Direction, means: Doubles, shown: Sequence[int]) -> str:
    """Explain in a line the numbers in a table of one token, and how many others it leaves out.

    means: (token, direction), NaN where masked. shown: the indices of the tokens in the table.
    """
    caption = "means over the heads"
    if not np.isfinite(means[shown]).all():
        caption += "; empty: masked"
    count = len(direction.others)
    if len(shown) == count:
        return caption
    strongest = f"the {len(shown)} strongest of {count} tokens"
    if holds_other_numbers(direction.method):
        strongest += ", sinks included"
    return f"{strongest}; {caption}"


def format_token_row(
    directions: Sequence[Direction],
    token: int,
    names: Sequence[str],
) -> tuple[str, ...]:
    """Format a row of a table: for each direction a mean over heads, and the head with the most.

    directions: the weights that one token gives to others, or gets. token: the index of the other
    token of the row. names: of the heads.
    """
    cells: list[str] = []
    for direction in directions:
        mean = float(direction.means[token])
        strongest = name_strongest(direction, token, names)
        cells += [format_weight(mean, direction.method), strongest]
    return tuple(cells)


def name_strongest(direction: Direction, token: int, names: Sequence[str]) -> str:
    """Name the head with the largest weight between one token and another, and add that weight.

    token: the index of the other token. names: of the heads. The text is empty if all heads mask
    the token, or if the weight is so small that it would be shown as nothing.
    """
    visible = direction.visible[:, token]
    numbers = direction.values[:, token]
    values = np.where(visible, numbers, -np.inf)
    best = int(values.argmax())
    largest = values[best]
    if largest < find_least_shown(direction.method):
        return ""
    weight = format_weight(largest, direction.method)
    return f"{names[best]} {weight}"


def find_least_shown(method: str) -> float:
    """Return the number below which a head is not named, as it would be shown as nothing.

    method: the kind of numbers. Of scores before the softmax, all that are not masked are shown.
    """
    if method == SCORES:
        return float(np.finfo(np.float64).min)
    if holds_other_numbers(method):
        return 0.0
    return FAINT


# One cell


@dataclass(frozen=True, eq=False, repr=False)
class OneCell(Result):
    """The weight that one query gives to one key, in all heads."""

    capture: Capture
    """The capture of that query and that key alone."""

    def to_dict(self) -> dict[str, Any]:
        """Return the weight of every head as a document for JSON."""
        described = describe_capture(self.capture)
        return described | describe_window(self.capture)

    def rows(self) -> list[dict[str, Any]]:
        """Return a line for each head."""
        return list(list_window_cells(self.capture))

    def tables(self) -> list[Picture]:
        """Return the cell through all layers and heads."""
        return [draw_cell(self.capture)]


def inspect_cell(
    source: CaptureSource,
    query: TokenReference,
    key: TokenReference,
    request: Request = EVERY_HEAD,
) -> OneCell:
    """Find the weight that one query gives to one key, in all heads.

    source: a function that takes a request and returns a capture of a model's attention. request:
    the layers, heads and kinds of map. Raises UsageError for a token that is not there, and as the
    source does.
    """
    window = replace(request, keep="weights", query=query, key=key)
    return OneCell(capture_heads(source, window))


def draw_cell(capture: Capture) -> Heatmap:
    """Draw the one cell of all heads as a heatmap, a row a layer, a column a head.

    capture: of one query and one key alone.
    """
    first_map = capture.maps[0]
    map_heads = list_map_heads(capture.maps)
    layers = tuple(dict.fromkeys(head.layer for head in map_heads))
    heads = tuple(dict.fromkeys(head.head for head in map_heads))
    cells = collect_cells(capture, layers, heads)
    # Columns are heads here, and no head is a sink.
    has_sink = np.zeros(len(heads), bool)
    scale = make_scale([(cells, has_sink)], Look(), first_map.method)
    query, key = make_axes(first_map)
    question = f"{title_token(query)} to {title_token(key)}"
    title = join_title(capture, *title_kind(first_map), question)
    layer_names = tuple(f"L{layer}" for layer in layers)
    head_names = [abbreviate_head_column(head) for head in heads]
    rows = Axis("layers", layer_names, layers)
    columns = make_number_axis("heads", head_names)
    line = caption_masked(list_panels(capture.maps))
    caption = make_caption((line, *capture.notes))
    return Heatmap(
        title=title,
        panel=cells,
        rows=rows,
        columns=columns,
        scale=scale,
        caption=caption,
    )


def collect_cells(capture: Capture, layers: Sequence[int], heads: Sequence[int | str]) -> Panel:
    """Collect the one cell of each head into a matrix (layer, head).

    capture: of one query and one key alone. layers, heads: the numbers of the rows and columns. A
    cell is not visible where it is masked, or where there is no such head.
    """
    values = np.zeros((len(layers), len(heads)), np.float32)
    visible = np.zeros(values.shape, bool)
    map_heads = list_map_heads(capture.maps)
    panels = list_panels(capture.maps)
    for head, panel in zip(map_heads, panels, strict=True):
        index = layers.index(head.layer), heads.index(head.head)
        values[index] = panel.values[0, 0]
        visible[index] = panel.visible[0, 0]
    return Panel(values, visible)


def caption_masked(cells: Sequence[Panel]) -> str:
    """Say in a line in how many heads a cell is masked; empty if in none.

    cells: the cell of each head, (1, 1).
    """
    masked = sum(not cell.visible.any() for cell in cells)
    if not masked:
        return ""
    head_count = len(cells)
    count = "all" if masked == head_count else f"{masked}"
    return f"masked in {count} of the {head_count} heads"
