"""One token in all heads: the weights that it gives and gets; and one cell in all heads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attnviz.analysis.measures import divide_where
from attnviz.derived import CaptureSource
from attnviz.drawable import Axis, Heatmap, Panel, Picture, Table, make_blank_levels
from attnviz.errors import UsageError
from attnviz.io.formats import describe_capture, describe_tokens, list_shortest_decimals
from attnviz.methods import holds_other_numbers
from attnviz.record import SCORES, AttentionMap, Capture, Doubles, Floats, Visible
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
    count_heads,
    make_axes,
    make_number_axis,
    title_kind,
)

FAINT = 5e-4  # a weight that two digits show as nothing
GIVES = "gives"
GETS = "gets"


def describe_window(capture: Capture) -> dict[str, Any]:
    """Describe the tokens of a window, and its weights by head; a masked one is undefined."""
    first = capture.maps[0]
    described = []
    heads = list_map_heads(capture.maps)
    for head, shown in zip(heads, list_panels(capture.maps), strict=True):
        weights = np.where(shown.visible, shown.values, np.float32(np.nan))
        described.append({**head._asdict(), "weights": list_shortest_decimals(weights)})
    queries = describe_tokens(first.queries, first.query_places)
    keys = describe_tokens(first.keys, first.key_places)
    return {"queries": queries, "keys": keys, "heads": described}


def list_window_cells(capture: Capture) -> Iterator[dict[str, Any]]:
    """List the cells of a window with their heads; without a weight where they are masked."""
    for attention_map, layer, head in index_matrices(capture.maps):
        layer_number = attention_map.layers[layer]
        head_number = attention_map.heads[head]
        map_head = MapHead(attention_map.kind, layer_number, head_number)
        panel = read_panel(attention_map, layer, head)
        for cell in list_panel_cells(attention_map, panel):
            yield map_head._asdict() | cell


def list_panel_cells(attention_map: AttentionMap, panel: Panel) -> Iterator[dict[str, Any]]:
    """List the cells of one matrix of a map, with their tokens and weights."""
    weights = panel.values.astype(str)  # the shortest decimals that give the same float32 back
    for query, query_token in enumerate(attention_map.queries):
        for key, key_token in enumerate(attention_map.keys):
            weight = str(weights[query, key])
            yield {
                "query": attention_map.query_places[query],
                "query_token": query_token.text,
                "key": attention_map.key_places[key],
                "key_token": key_token.text,
                "weight": weight if panel.visible[query, key] else None,
            }


def format_weight(value: float, method: str) -> str:
    """Format a number of a map.

    A weight has two digits, a score its sign, others two digits of their own.
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
        """Return both windows, every head by itself."""
        first = next(iter(self.windows.values()))
        described = describe_capture(first)
        for direction, capture in self.windows.items():
            described[direction] = describe_window(capture)
        return described

    def rows(self) -> list[dict[str, Any]]:
        """Return a line for each cell of both windows."""
        rows: list[dict[str, Any]] = []
        for capture in self.windows.values():
            rows += list_window_cells(capture)
        return rows

    def tables(self) -> list[Picture]:
        """Return the tables of the token, with all others."""
        return list[Picture](self.draw_tables())

    def draw_tables(self, most: int | None = None) -> list[Table]:
        """Draw one table of both directions, or two where the others are of two texts.

        most: how many tokens are shown, those of the largest means.
        """
        windows = self.windows.items()
        directions = [read_direction(capture, name) for name, capture in windows]
        if directions[0].capture.maps[0].kind == "cross":
            return [draw_token_table([direction], most) for direction in directions]
        return [draw_token_table(directions, most)]


def inspect_token(
    source: CaptureSource, token: TokenReference, request: Request = EVERY_HEAD
) -> TokenRows:
    """Find what one token gives to each of the others, and gets from each.

    Raises UsageError if it is nowhere, and as the source does.
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
        """The mean over the heads that see a token, (token,); NaN if none does."""
        visible_values = self.values * self.visible
        counts = self.visible.sum(0).astype(np.float64)
        return divide_where(visible_values.sum(0), counts)


def read_direction(capture: Capture, name: str) -> Direction:
    """Read the weights between a token and the others from the capture of its row or column."""
    queries, keys = make_axes(capture.maps[0])
    token, others = queries, keys
    if name == GETS:
        token, others = keys, queries
    panels = list_panels(capture.maps)
    values = np.stack([panel.values.ravel() for panel in panels])
    visible = np.stack([panel.visible.ravel() for panel in panels])
    return Direction(name, capture, token, others, values.astype(np.float64), visible)


def draw_token_table(directions: Sequence[Direction], most: int | None = None) -> Table:
    """Draw what one token gives to others and gets from them, as means over the heads.

    Rows stand in the order of the text.
    most: how many tokens are shown, those of the largest means.
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
    for i in shown:
        number = first.others.numbers[i]
        label = first.others.labels[i]
        rows.append(f"{number} {label}")
        cells.append(format_token(directions, i, names))
    token = title_token(first.token)
    heads = count_heads(len(names), maps[0].heads)
    title = join_title(first.capture, *title_kind(maps[0]), token, heads)
    levels = colour_means(means, shown, first.method)
    line = caption_token(first, means, shown)
    caption = make_caption((line, *first.capture.notes))
    columns_of_names = frozenset(range(1, len(columns), 2))
    return Table(
        title,
        "token",
        tuple(columns),
        tuple(rows),
        tuple(cells),
        levels,
        caption,
        columns_of_names,
    )


def colour_means(means: Doubles, shown: Sequence[int], method: str) -> Floats:
    """Return where the means (token, direction) of the shown tokens lie on the colours.

    Beside each mean is a column without colours. Scores have none, as they need two ends.
    """
    direction_count = means.shape[1]
    levels = make_blank_levels(len(shown), 2 * direction_count)
    if method != SCORES:
        top = find_largest(means) or 1
        shares = means[shown] / top
        levels[:, ::2] = np.sqrt(shares)  # as other weights are coloured
    return levels


def choose_strongest(means: Doubles, most: int | None) -> list[int]:
    """Choose the tokens of the largest means (token, direction), in the order of the text."""
    defined = np.where(np.isfinite(means), means, -np.inf)
    largest = defined.max(-1)
    falling = np.argsort(-largest, kind="stable")
    in_order: list[int] = np.sort(falling[:most]).tolist()
    return in_order


def caption_token(direction: Direction, means: Doubles, shown: Sequence[int]) -> str:
    """Say what the numbers of a token are, and how many others are left out."""
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


def format_token(
    directions: Sequence[Direction],
    token: int,
    names: Sequence[str],
) -> tuple[str, ...]:
    """Format a row of a token: of each direction the mean, and the head with the most."""
    cells: list[str] = []
    for direction in directions:
        mean = float(direction.means[token])
        strongest = name_strongest(direction, token, names)
        cells += [format_weight(mean, direction.method), strongest]
    return tuple(cells)


def name_strongest(direction: Direction, token: int, names: Sequence[str]) -> str:
    """Name the head with the largest weight between the one token and another, with that weight."""
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
    """Return the number below which a head is not named: one that would be shown as nothing."""
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
        """Return the weight of every head."""
        described = describe_capture(self.capture)
        return described | describe_window(self.capture)

    def rows(self) -> list[dict[str, Any]]:
        """Return a line for each head."""
        return list(list_window_cells(self.capture))

    def tables(self) -> list[Picture]:
        """Return the cell through all layers and heads."""
        return [draw_cell(self.capture)]


def inspect_cell(
    source: CaptureSource, query: TokenReference, key: TokenReference, request: Request = EVERY_HEAD
) -> OneCell:
    """Find the weight that one query gives to one key, in all heads.

    Raises UsageError for a token that is not there, and as the source does.
    """
    window = replace(request, keep="weights", query=query, key=key)
    return OneCell(capture_heads(source, window))


def draw_cell(capture: Capture) -> Heatmap:
    """Draw one cell through all layers and heads, a row a layer."""
    first_map = capture.maps[0]
    map_heads = list_map_heads(capture.maps)
    layers = tuple(dict.fromkeys(head.layer for head in map_heads))
    heads = tuple(dict.fromkeys(head.head for head in map_heads))
    cells = collect_cells(capture, layers, heads)
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
    return Heatmap(title, cells, rows, columns, scale, caption)


def collect_cells(capture: Capture, layers: Sequence[int], heads: Sequence[int | str]) -> Panel:
    """Collect the one cell of each head: (layer, head), not visible where there is no such head."""
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
    """Say in how many heads a cell is masked; nothing if in none."""
    masked = sum(not cell.visible.any() for cell in cells)
    if not masked:
        return ""
    head_count = len(cells)
    count = "all" if masked == head_count else f"{masked}"
    return f"masked in {count} of the {head_count} heads"
