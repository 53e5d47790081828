"""One token in all heads, what it gives and gets; and one cell, its weight in all heads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attnviz.analysis.measures import divide_where
from attnviz.derived import Source
from attnviz.drawable import Axis, Heatmap, Panel, Picture, Table
from attnviz.errors import UsageError
from attnviz.io.formats import decimals, describe_capture, describe_tokens
from attnviz.methods import is_other
from attnviz.record import SCORES, Capture, Doubles, Visible
from attnviz.request import Request
from attnviz.results.inspection import (
    EVERY_HEAD,
    MapHead,
    capture_heads,
    find_largest,
    format_share,
    list_map_heads,
    list_panels,
    name_heads,
)
from attnviz.results.result import Result
from attnviz.selection import Spot
from attnviz.views.colour_scale import Look, scale
from attnviz.views.heatmaps import panel, places, title, token_title, told
from attnviz.views.labels import column_name, kind_title, panels_title, sides

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
        described.append({**head._asdict(), "weights": decimals(weights)})
    return {
        "queries": describe_tokens(first.queries, first.query_places),
        "keys": describe_tokens(first.keys, first.key_places),
        "heads": described,
    }


def list_cells(capture: Capture) -> Iterator[dict[str, Any]]:
    """List the cells of a window with their heads; without a weight where they are masked."""
    for attention_map, i, j in places(capture.maps):
        head = MapHead(attention_map.kind, attention_map.layers[i], attention_map.heads[j])
        shown = panel(attention_map, i, j)
        weights = shown.values.astype(str)  # the shortest decimals that give the same float32 back
        for query, key in np.ndindex(weights.shape):
            is_visible = shown.visible[query, key]
            yield {
                **head._asdict(),
                "query": attention_map.query_places[query],
                "query_token": attention_map.queries[query].text,
                "key": attention_map.key_places[key],
                "key_token": attention_map.keys[key].text,
                "weight": str(weights[query, key]) if is_visible else None,
            }


def format_weight(value: float, method: str) -> str:
    """Format a number of a map.

    A weight has two digits, a score its sign, others two digits of their own.
    """
    if method == SCORES and np.isfinite(value):
        return f"{value:+.2f}"
    if is_other(method) and 0 < value < 0.1:
        return f"{value:.2g}"
    return format_share(value)


# One token


@dataclass(frozen=True, eq=False, repr=False)
class TokenRows(Result):
    """What one token gives to each of the others, and gets from each, in all heads."""

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
        return [row for capture in self.windows.values() for row in list_cells(capture)]

    def tables(self) -> list[Picture]:
        """Return the tables of the token, with all others."""
        return [*self.draw_tables()]

    def draw_tables(self, most: int | None = None) -> list[Table]:
        """Draw one table of both directions, or two where the others are of two texts.

        most: how many tokens are shown, those of the largest means.
        """
        windows = self.windows.items()
        directions = [read_direction(capture, name) for name, capture in windows]
        if directions[0].capture.maps[0].kind == "cross":
            return [draw_token_table([direction], most) for direction in directions]
        return [draw_token_table(directions, most)]


def inspect_token(source: Source, token: Spot, request: Request = EVERY_HEAD) -> TokenRows:
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
        sums = (self.values * self.visible).sum(0)
        return divide_where(sums, self.visible.sum(0).astype(np.float64))


def read_direction(capture: Capture, name: str) -> Direction:
    """Read the weights between a token and the others from the capture of its row or column."""
    queries, keys = sides(capture.maps[0])
    token, others = (queries, keys) if name == GIVES else (keys, queries)
    panels = list_panels(capture.maps)
    values = np.stack([each.values.ravel() for each in panels]).astype(np.float64)
    visible = np.stack([each.visible.ravel() for each in panels])
    return Direction(name, capture, token, others, values, visible)


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
    levels = np.full((len(shown), 2 * len(directions)), np.nan)
    if first.method != SCORES:  # which would need colours with two ends
        top = find_largest(means) or 1
        levels[:, ::2] = np.sqrt(means[shown] / top)  # as other weights are coloured
    columns: list[str] = []
    for direction in directions:
        columns += [direction.name, "most by"]
    heads = panels_title(len(names), maps[0].heads)
    others = first.others
    return Table(
        title(first.capture, *kind_title(maps[0]), token_title(first.token), heads),
        "token",
        tuple(columns),
        rows=tuple(f"{others.numbers[i]} {others.labels[i]}" for i in shown),
        cells=tuple(format_token(directions, i, names) for i in shown),
        levels=levels.astype(np.float32),
        caption=told((caption_token(first, means, shown), *first.capture.notes)),
        texts=frozenset(range(1, len(columns), 2)),
    )


def choose_strongest(means: Doubles, most: int | None) -> list[int]:
    """Choose the tokens of the largest means (token, direction), in the order of the text."""
    largest = np.where(np.isfinite(means), means, -np.inf).max(-1)
    strongest = np.argsort(-largest, kind="stable")[:most]
    in_order: list[int] = np.sort(strongest).tolist()
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
    if is_other(direction.method):
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
        cells += [format_weight(mean, direction.method), name_strongest(direction, token, names)]
    return tuple(cells)


def name_strongest(direction: Direction, token: int, names: Sequence[str]) -> str:
    """Name the head with the largest weight between the one token and another, with that weight."""
    visible = direction.visible[:, token]
    values = np.where(visible, direction.values[:, token], -np.inf)
    best = int(values.argmax())
    if values[best] < find_least_shown(direction.method):
        return ""
    return f"{names[best]} {format_weight(values[best], direction.method)}"


def find_least_shown(method: str) -> float:
    """Return the number below which a head is not named: one that would be shown as nothing."""
    if method == SCORES:
        return float(np.finfo(np.float64).min)
    return 0.0 if is_other(method) else FAINT


# One cell


@dataclass(frozen=True, eq=False, repr=False)
class OneCell(Result):
    """The weight that one query gives to one key, in all heads."""

    capture: Capture
    """Of that query and that key alone."""

    def to_dict(self) -> dict[str, Any]:
        """Return the weight of every head."""
        return {**describe_capture(self.capture), **describe_window(self.capture)}

    def rows(self) -> list[dict[str, Any]]:
        """Return a line for each head."""
        return [*list_cells(self.capture)]

    def tables(self) -> list[Picture]:
        """Return the cell through all layers and heads."""
        return [draw_cell(self.capture)]


def inspect_cell(source: Source, query: Spot, key: Spot, request: Request = EVERY_HEAD) -> OneCell:
    """Find the weight that one query gives to one key, in all heads.

    Raises UsageError for a token that is not there, and as the source does.
    """
    window = replace(request, keep="weights", query=query, key=key)
    return OneCell(capture_heads(source, window))


def draw_cell(capture: Capture) -> Heatmap:
    """Draw one cell through all layers and heads, a row a layer."""
    first = capture.maps[0]
    query, key = sides(first)
    all_heads = list_map_heads(capture.maps)
    panels = list_panels(capture.maps)
    layers = tuple(dict.fromkeys(head.layer for head in all_heads))
    heads = tuple(dict.fromkeys(head.head for head in all_heads))
    values = np.zeros((len(layers), len(heads)), np.float32)
    visible = np.zeros(values.shape, bool)
    for head, cell in zip(all_heads, panels, strict=True):
        at = layers.index(head.layer), heads.index(head.head)
        values[at] = cell.values[0, 0]
        visible[at] = cell.visible[0, 0]
    shown = Panel(values, visible)
    hidden = np.zeros(len(heads), bool)
    colours = scale([(shown, hidden)], Look(), first.method)
    heading = title(capture, *kind_title(first), f"{token_title(query)} to {token_title(key)}")
    layer_names = tuple(f"L{layer}" for layer in layers)
    head_names = tuple(map(column_name, heads))
    rows = Axis("layers", layer_names, layers)
    columns = Axis("heads", head_names, tuple(range(len(heads))))
    caption = told((caption_masked(panels), *capture.notes))
    return Heatmap(heading, shown, rows, columns, colours, caption)


def caption_masked(cells: Sequence[Panel]) -> str:
    """Say in how many heads a cell is masked; nothing if in none."""
    masked = sum(not cell.visible.any() for cell in cells)
    if not masked:
        return ""
    count = "all" if masked == len(cells) else masked
    return f"masked in {count} of the {len(cells)} heads"
