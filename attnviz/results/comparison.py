"""The comparison of A and B: how far their heads are from each other, and pictures of both.

A and B are two captures, of two models or of two texts. They are compared on the words that both
have, with the Jensen-Shannon divergence between rows of attention. Heads are paired by their
number, or, where the two models have other heads, each with the nearest of the other.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.comparison import Comparison, Distances, HeadName, Side, compare_on_words
from attnviz.analysis.statistics import average_defined, compute_deviation
from attnviz.drawable import (
    Axis,
    Heatmap,
    Panel,
    Picture,
    Scale,
    Series,
    Table,
    make_blank_levels,
)
from attnviz.errors import InputError
from attnviz.escape import escape
from attnviz.io.formats import describe_plain_tokens, list_shortest_decimals
from attnviz.methods import describe_method, holds_other_numbers, list_methods, name_cell
from attnviz.record import (
    ATTENTION,
    GIVEN,
    SCORES,
    AttentionMap,
    Capture,
    Doubles,
    Visible,
    Weights,
)
from attnviz.results.digits import format_fixed
from attnviz.results.result import Result
from attnviz.selection import ALL, HeadNames, Selection, resolve_blocks
from attnviz.views.colour_scale import Look
from attnviz.views.heatmaps import DEFAULT_LOOK, arrange_by_layer, make_heatmap
from attnviz.views.labels import (
    abbreviate_head,
    abbreviate_head_column,
    make_number_axis,
    name_model,
    shorten,
)

ComparisonView: TypeAlias = Literal["maps", "heads", "table"]

A_SIDE, B_SIDE = 0, 1  # in ``Distances``
MOST_DRAWN = 4  # heads that are drawn one by one; of more, the mean over those of a layer
LEAST_SHARE = 0.0005  # of weight that is left out, and said to be
DEVIATION_COLUMN = "± sd"
DIVERGENCE = {
    "name": "Jensen-Shannon",
    "units": "nats",
    "largest": math.log(2),
    "of": "mean over queries",
}
DIVERGENCE_LIMITS = "0 for the same rows, 0.693 (ln 2) at most"
DIVERGENCE_LINE = f"Jensen-Shannon divergence, mean over queries: {DIVERGENCE_LIMITS}"
NO_SHARES = (
    "rows are compared as shares that sum to 1, and scores are none: softmaxed they are the "
    "weights: use --weights attention"
)


class HeadGroups(NamedTuple):
    """The heads of A, and of B, that are drawn beside each other.

    They are one each, or several of a layer of which the mean is drawn.
    """

    a: tuple[HeadName, ...]
    b: tuple[HeadName, ...]


@dataclass(frozen=True, eq=False, repr=False)
class ComparisonResult(Result):
    """The distances between the heads of A and B, over one text or several."""

    first: Comparison
    """The comparison on the first text, of which maps are drawn."""
    distances: Distances
    """The distances of all heads, over all texts."""
    heads: tuple[HeadName, ...]
    """The heads of A that are listed."""
    groups: tuple[HeadGroups, ...]
    """The heads of A and B that are drawn, a series of maps for each group."""

    def to_dict(self) -> dict[str, Any]:
        """Return the overall divergence, that of each head, and the weights of the first series."""
        a, b = self.first.a, self.first.b
        distances = self.distances
        moved = None
        if distances.moved is not None:
            moved = describe_spread(average_defined(distances.moved, 1))
        heads = list_heads(distances, self.heads)
        maps = describe_maps(self.first, self.groups[0])
        return {
            "texts": len(distances.divergence),
            "a": describe_side(a, b),
            "b": describe_side(b, a),
            "divergence": DIVERGENCE,
            "js": describe_spread(distances.overall),
            "moved": moved,
            "heads": list(heads),
            "maps": maps,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each listed head of A, and for all heads of B."""
        entries = list_heads(self.distances, self.heads)
        return [flatten_head(entry) for entry in entries]

    def tables(self) -> list[Picture]:
        """Return the maps of A, B and their difference, and the table of all listed heads."""
        return self.draw()

    def draw(
        self,
        view: ComparisonView | None = None,
        look: Look = DEFAULT_LOOK,
        most: int | None = None,
    ) -> list[Picture]:
        """Return the pictures of a view; by default the maps, then the table.

        most: rows of the table; None for all.
        """
        title = title_comparison(self.first)
        if view == "heads":
            head_map = make_head_map(title, self.distances)
            return [add_method_lines(head_map, self.first)]
        if view == "table":
            table = make_heads_table(title, self.distances, self.heads, most)
            return [add_method_lines(table, self.first)]
        pictures: list[Picture] = [make_series(self.first, group, look) for group in self.groups]
        if view is None:
            pictures.append(make_heads_table(title, self.distances, self.heads, most))
        return pictures


# Making a comparison


def compare_captures(a: Capture, b: Capture) -> Comparison:
    """Compare two captures on the words that both have.

    Raises InputError if they hold other numbers, or there is nothing that could be compared.
    """
    require_same_method(a, b)
    try:
        return compare_on_words(a, b)
    except ValueError as error:
        raise InputError(f"A and B cannot be compared: {error}") from error


def require_same_method(a: Capture, b: Capture) -> None:
    """Raise InputError unless both hold numbers of one method, of which rows can sum to 1."""
    methods = {*list_methods(a.maps), *list_methods(b.maps)}
    methods.discard(GIVEN)
    if SCORES in methods:
        raise InputError(NO_SHARES)
    if len(methods) > 1:
        names = " and ".join(sorted(methods))
        advice = "make both with the same --weights"
        raise InputError(f"A and B are of {names}, which cannot be compared: {advice}")


def measure_comparisons(
    comparisons: Iterable[Comparison],
    layers: Selection | None = None,
    heads: Selection | HeadNames | None = None,
) -> ComparisonResult:
    """Measure how far A and B are from each other over comparisons of the same two models.

    layers, heads: those of A that are listed and drawn; a few heads are drawn one by one. Raises
    UsageError for one that is not there, InputError if there is nothing that could be measured.
    """
    remaining = iter(comparisons)
    first = next(remaining, None)
    if first is None:
        raise InputError("A and B cannot be compared: there is no text")
    try:
        distances = Distances.over(chain([first], remaining))
    except ValueError as error:
        raise InputError(f"A and B cannot be compared: {error}") from error
    names = choose_heads_of_side(first.a, layers or ALL, heads or ALL)
    if heads is not None and len(names) <= MOST_DRAWN:
        groups = [pair_head(first, distances, name) for name in names]
    else:
        groups = [pair_last_layers(first, names)]
    return ComparisonResult(first, distances, names, tuple(groups))


# The heads that are compared


def choose_heads_of_side(
    side: Side,
    layers: Selection,
    heads: Selection | HeadNames,
) -> tuple[HeadName, ...]:
    """Return the chosen heads of a side, in its order. Raises UsageError for one not there."""
    by_layer: dict[int, list[int | str]] = {}
    for layer, head in side.names:
        heads_of_one_layer = by_layer.setdefault(layer, [])
        heads_of_one_layer.append(head)
    chosen: set[HeadName] = set()
    for some_layers, some_heads in resolve_heads(by_layer, layers, heads):
        chosen.update(pair_each(some_layers, some_heads))
    return tuple(name for name in side.names if name in chosen)


def resolve_heads(
    by_layer: Mapping[int, Sequence[int | str]],
    layers: Selection,
    heads: Selection | HeadNames,
) -> Iterator[tuple[Sequence[int], Sequence[int | str]]]:
    """Yield chosen layers with their chosen heads. Of a reduction over heads, all are chosen.

    Raises UsageError for one that is not there.
    """
    numbers = {layer: keep_numbers(names) for layer, names in by_layer.items()}
    if all(numbers.values()):
        yield from resolve_blocks(layers, heads, numbers)
        return
    for layer in layers.resolve(list(by_layer), "layer"):
        yield (layer,), by_layer[layer]


def keep_numbers(heads: Sequence[int | str]) -> list[int]:
    """Return the heads that have a number, which a reduction over heads has not."""
    return [head for head in heads if isinstance(head, int)]


def pair_each(layers: Sequence[int], heads: Sequence[int | str]) -> list[HeadName]:
    """Return each of some heads in each of some layers."""
    return [(layer, head) for layer in layers for head in heads]


def pair_last_layers(comparison: Comparison, names: Sequence[HeadName] = ()) -> HeadGroups:
    """Return the heads of A in its last layer, and the heads of B that stand beside them.

    Those of B have the same names, or are all of its last layer where the two have other heads.
    names: the heads of A among which they are; all where there are none.
    """
    a, b = comparison.a, comparison.b
    chosen = names or a.names
    last_layer = chosen[-1][0]
    heads = tuple(name for name in chosen if name[0] == last_layer)
    if has_same_heads(comparison):
        return HeadGroups(heads, heads)
    return HeadGroups(heads, select_layer_heads(b, b.layers[-1]))


def pair_head(comparison: Comparison, distances: Distances, head: HeadName) -> HeadGroups:
    """Return a head of A, and that of B of its name, or the nearest where the two have others."""
    if has_same_heads(comparison):
        return HeadGroups((head,), (head,))
    index = comparison.a.names.index(head)
    nearest = distances.nearest(A_SIDE)[index]
    if nearest is None:
        nearest = 0
    head_of_b = comparison.b.names[nearest]
    return HeadGroups((head,), (head_of_b,))


def has_same_heads(comparison: Comparison) -> bool:
    """Return whether both sides have the same layers and heads."""
    return comparison.a.names == comparison.b.names


def select_layer_heads(side: Side, layer: int) -> tuple[HeadName, ...]:
    """Return the heads of a layer of a side."""
    return tuple(name for name in side.names if name[0] == layer)


# The document and the rows


def describe_side(side: Side, other: Side) -> dict[str, Any]:
    """Describe a side for JSON, and how much of it is compared with the other."""
    capture = side.capture
    return {
        "model": capture.model,
        "text": capture.text,
        "method": read_method(side),
        "notes": capture.notes,
        "words": side.words,
        "common_words": side.common,
        "outside": side.outside,
        "unseen": side.unseen(other),
    }


def list_heads(distances: Distances, heads: Sequence[HeadName]) -> Iterator[dict[str, Any]]:
    """Describe some heads of A, then all heads of B, each with the head that is nearest to it."""
    for entry in list_side_heads(distances, A_SIDE):
        if (entry["layer"], entry["head"]) in heads:
            yield entry
    yield from list_side_heads(distances, B_SIDE)


def list_side_heads(distances: Distances, side: int) -> Iterator[dict[str, Any]]:
    """Describe the heads of A (0) or B (1), each with the head of the other that is nearest."""
    names = distances.names[side]
    other_names = distances.names[1 - side]
    indices_of_nearest = distances.nearest(side)
    divergences = distances.to_nearest(side)
    for index, name in enumerate(names):
        nearest, moved = None, None
        index_of_nearest = indices_of_nearest[index]
        if index_of_nearest is not None:
            nearest = describe_name(other_names[index_of_nearest])
        if distances.moved is not None:
            moved = describe_spread(distances.moved[:, index])
        yield {
            "side": "ab"[side],
            **describe_name(name),
            "nearest": nearest,
            "js": describe_spread(divergences[:, index]),
            "moved": moved,
        }


def flatten_head(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a head as one row."""
    nearest = entry["nearest"] or {}
    divergence = entry["js"]
    moved = entry["moved"] or {}
    row = {name: entry[name] for name in ("side", "layer", "head")}
    row["nearest_layer"] = nearest.get("layer")
    row["nearest_head"] = nearest.get("head")
    row["js"] = divergence["mean"]
    row["js_sd"] = divergence["sd"]
    row["moved"] = moved.get("mean")
    row["moved_sd"] = moved.get("sd")
    return row


def describe_name(name: HeadName) -> dict[str, Any]:
    """Describe which head is meant, for JSON."""
    layer, head = name
    return {"layer": layer, "head": head}


def describe_spread(values: Doubles) -> dict[str, Any]:
    """Describe numbers (text,) by mean and deviation over the texts where they are defined."""
    return {
        "mean": float(average_defined(values, 0)),
        "sd": float(compute_deviation(values, 0)),
        "n": int(np.count_nonzero(np.isfinite(values))),
    }


def describe_maps(comparison: Comparison, groups: HeadGroups) -> dict[str, Any]:
    """Describe the weights of heads of A and B, and the difference; NaN where they are masked."""
    a, b, visible = comparison.pair(*groups)
    heads_of_a = [describe_name(name) for name in groups.a]
    heads_of_b = [describe_name(name) for name in groups.b]
    side = comparison.a
    return {
        "heads": {"a": heads_of_a, "b": heads_of_b},
        "queries": describe_plain_tokens(side.queries),
        "keys": describe_plain_tokens(side.keys),
        "a": list_visible(a, visible),
        "b": list_visible(b, visible),
        "difference": list_visible(a - b, visible),
    }


def list_visible(weights: Weights, visible: Visible) -> Any:
    """Return a matrix as nested lists, with NaN where it is masked."""
    return list_shortest_decimals(np.where(visible, weights, np.float32(np.nan)))


# Maps: A, B, and their difference


def make_series(comparison: Comparison, groups: HeadGroups, look: Look = DEFAULT_LOOK) -> Series:
    """Draw heads of A, of B, and A - B, on the words that both have and the cells that both see."""
    a, b, visible = comparison.pair(*groups)
    panel_a = Panel(a, visible)
    panel_b = Panel(b, visible)

    def draw_both(look: Look) -> tuple[Heatmap, Heatmap]:
        heatmap_a = draw_side("A", comparison.a, groups.a, panel_a, look)
        heatmap_b = draw_side("B", comparison.b, groups.b, panel_b, look)
        return heatmap_a, heatmap_b

    first, second = draw_both(look)
    if not (first.scale.has_beyond and second.scale.has_beyond):
        first, second = draw_both(look._replace(whole=True))  # the colours reach the largest
    top = max(first.scale.top, second.scale.top)
    largest = max(first.scale.largest, second.scale.largest)
    shared = Scale(top, largest, look.linear)
    first = replace(first, scale=shared)
    second = replace(second, scale=shared)
    panel = Panel(a - b, visible)
    method = read_method(comparison.a)
    difference = draw_difference("A - B", panel, first.rows, first.columns, look, method)
    heatmaps = first, second, difference
    return Series(title_comparison(comparison), heatmaps, list_coverage(comparison))


def draw_side(
    letter: str, side: Side, names: Sequence[HeadName], panel: Panel, look: Look
) -> Heatmap:
    """Draw the weights between common words of one head of a side, or of the mean of several."""
    layer, head = names[0]
    is_mean = len(names) > 1
    weights = panel.values[None, None]
    shown_head = "mean" if is_mean else head
    shown_map = make_side_map(side, layer, (shown_head,), weights, panel.visible)
    capture = Capture(side.capture.model, side.capture.text, (shown_map,))
    heatmap = make_heatmap(capture, shown_map, 0, 0, look)
    caption = heatmap.caption
    heads_in_layer = len(select_layer_heads(side, layer))
    if is_mean and len(names) < heads_in_layer:
        numbers = ", ".join(str(number) for _, number in names)
        caption = (f"mean over heads {numbers}", *caption)
    return replace(heatmap, title=f"{letter} {heatmap.title}", caption=caption)


def make_side_map(
    side: Side,
    layer: int,
    heads: tuple[int | str, ...],
    weights: Weights,
    visible: Visible,
) -> AttentionMap:
    """Return weights (1, head, query, key) between common words of a side as a map."""
    kind = side.capture.maps[0].kind
    method = read_method(side)
    queries, keys = side.queries, side.keys
    return AttentionMap(kind, (layer,), heads, queries, keys, weights, visible, method, unit="word")


def read_method(side: Side) -> str:
    """Return the method of a side's numbers before their rows were made to sum to 1."""
    return side.capture.maps[0].method


def draw_difference(
    title: str,
    panel: Panel,
    rows: Axis,
    columns: Axis,
    look: Look,
    method: str = ATTENTION,
) -> Heatmap:
    """Draw differences on a scale with 0 in its middle."""
    sizes = np.abs(panel.values[panel.visible])
    largest = float(sizes.max(initial=0))
    scale = make_difference_scale(largest or 1.0, largest, look, method)
    caption = explain_signs(method) if largest else "no difference"
    return Heatmap(title, panel, rows, columns, scale, (caption,))


def make_difference_scale(top: float, largest: float, look: Look, method: str) -> Scale:
    """Return the scale of differences between rows that the numbers of a method make."""
    cell = ""
    if holds_other_numbers(method):
        cell = f"difference of {name_cell(method)}s"
    return Scale(top, largest, look.linear, signed=True, of=cell)


def explain_signs(method: str) -> str:
    """Explain the signs of differences."""
    if holds_other_numbers(method):
        return "positive: larger in A, negative: in B"
    return "positive: A attends more, negative: B"


# Both sides in words


def title_comparison(comparison: Comparison) -> str:
    """Return the title of a comparison: the names of both models."""
    a = name_model(comparison.a.capture)
    b = name_model(comparison.b.capture)
    return f"A {a} · B {b}"


def add_method_lines(picture: Heatmap | Table, comparison: Comparison) -> Heatmap | Table:
    """Return a picture whose caption also says what the numbers are, if they are no weights."""
    lines: dict[str, None] = {}
    for side in (comparison.a, comparison.b):
        line = describe_method(side.capture.maps[0])
        if line:
            lines[f"{line}; rows made to sum to 1, sinks included"] = None
    return replace(picture, caption=(*picture.caption, *lines))


def list_coverage(comparison: Comparison) -> tuple[str, ...]:
    """List in lines what is compared of both, what is left out, and the notes of both."""
    a, b = comparison.a, comparison.b
    lines = []
    if a.capture.text != b.capture.text:
        text_a = escape(a.capture.text)
        text_b = escape(b.capture.text)
        lines.append(f"A: {shorten(text_a)}")
        lines.append(f"B: {shorten(text_b)}")
    lines.append(describe_coverage(comparison))
    cells = name_cell(read_method(a))
    outside = describe_shares(a.outside, b.outside, f"the {cells}")
    if outside:
        lines.append(f"left out, on tokens that the other does not have: {outside}")
    unseen = describe_shares(a.unseen(b), b.unseen(a), "what is left")
    if unseen:
        lines.append(f"left out, where the other may not attend: {unseen}")
    measured = len(a.rows)
    all_queries = len(a.queries)
    if measured < all_queries:
        lines.append(f"numbers are of {measured} of the {all_queries} queries, evenly spread")
    lines += merge_notes(a.capture.notes, b.capture.notes)
    return tuple(lines)


def describe_coverage(comparison: Comparison) -> str:
    """Describe in a line on how many words of both they are compared."""
    a, b = comparison.a, comparison.b
    common_words = count_words(a.common)
    words = f"{common_words} of {a.words} in A and {b.words} in B"
    if a.words == b.words == a.common:
        words = f"all {common_words}"
    line = f"compared on {words}, where both may attend; rows sum to 1 there"
    if holds_other_numbers(read_method(a)):
        return f"{line}, sinks included"
    return line


def count_words(count: int) -> str:
    """Return how many words there are."""
    if count == 1:
        return "1 word"
    return f"{count} words"


def describe_shares(a: float, b: float, whole: str) -> str:
    """Describe the shares of A and of B that are large enough to be told; empty if none is."""
    shares = {"A": a, "B": b}
    pieces = []
    for letter, share in shares.items():
        if share >= LEAST_SHARE:
            pieces.append(f"{share:.1%} of {whole} of {letter}")
    return ", ".join(pieces)


def merge_notes(a: Sequence[str], b: Sequence[str]) -> tuple[str, ...]:
    """Return the notes of A and of B, those that only one has under its letter."""
    lines = []
    for note in dict.fromkeys((*a, *b)):
        line = escape(note)
        if note not in b:
            line = f"A: {line}"
        elif note not in a:
            line = f"B: {line}"
        lines.append(line)
    return tuple(lines)


# How far heads are from each other


def make_heads_table(
    title: str,
    distances: Distances,
    heads: Sequence[HeadName],
    most: int | None = None,
) -> Table:
    """Make the table of the heads of A that moved most, or that are farthest from any of B.

    most: rows of the table; None for all.
    """
    measures = measure_first_side(distances)
    order = rank_heads(measures, distances.names[A_SIDE], heads)
    shown = order[:most]
    nearest = distances.nearest(A_SIDE)
    names, rows, cells = [], [], []
    for index in shown:
        values = spread_each(measures.values(), index)
        name_of_nearest = name_nearest(distances, nearest[index])
        names.append(abbreviate_head(*distances.names[A_SIDE][index]))
        rows.append(values)
        cells.append((name_of_nearest, *(format_fixed(value, 3) for value in values)))
    columns = name_columns(measures, distances)
    levels = colour_levels(rows, len(columns), measures.values())
    not_shown = len(order) - len(shown)
    caption = *summarise_distances(distances), *mention_rest(not_shown)
    return Table(
        f"{title}: {name_measure(distances)}",
        "head of A",
        columns,
        tuple(names),
        tuple(cells),
        levels,
        caption,
        frozenset({0}),
    )


def rank_heads(
    measures: Mapping[str, Doubles],
    names: Sequence[HeadName],
    heads: Sequence[HeadName],
) -> list[int]:
    """Return the indices of some heads among all names, by the last measure, the largest first."""
    *_, ranked_by = measures.values()
    indices = [names.index(head) for head in heads]
    return sort_by_value(average_defined(ranked_by, 0), indices)


def name_columns(measures: Mapping[str, Doubles], distances: Distances) -> tuple[str, ...]:
    """Return the headings of the table of heads: the nearest, and each measure."""
    columns = ["nearest"]
    for name in measures:
        columns.append(name)
        if has_several_texts(distances):
            columns.append(DEVIATION_COLUMN)
    return tuple(columns)


def measure_first_side(distances: Distances) -> dict[str, Doubles]:
    """Return how far each head of A is (text, head) from the nearest, and from its own if any."""
    measures = {"JS": distances.to_nearest(A_SIDE)}
    if distances.moved is not None:
        measures["moved"] = distances.moved
    return measures


def sort_by_value(values: Doubles, indices: Sequence[int]) -> list[int]:
    """Return indices by their values, the largest first, those without one last."""

    def value_or_last(index: int) -> float:
        value = float(values[index])
        if math.isnan(value):
            return -math.inf
        return value

    return sorted(indices, key=value_or_last, reverse=True)


def has_several_texts(distances: Distances) -> bool:
    """Return whether numbers are of more than one text, so that they have a deviation."""
    return len(distances.divergence) > 1


def spread_over_texts(values: Doubles) -> list[float]:
    """Return the mean of numbers (text,), and their deviation if there are several."""
    mean = float(average_defined(values, 0))
    if len(values) == 1:
        return [mean]
    return [mean, float(compute_deviation(values, 0))]


def spread_each(measures: Iterable[Doubles], index: int) -> list[float]:
    """Return mean and deviation of one head in each of some measures (text, head)."""
    values: list[float] = []
    for measure in measures:
        values += spread_over_texts(measure[:, index])
    return values


def name_nearest(distances: Distances, index: int | None) -> str:
    """Return the name of a head of B by its index, a dash for none."""
    if index is None:
        return "—"
    return abbreviate_head(*distances.names[B_SIDE][index])


def colour_levels(
    rows: Sequence[Sequence[float]],
    columns: int,
    measures: Iterable[Doubles],
) -> Weights:
    """Return how far along the colours the numbers of a table are, none in its first column.

    Colours end at the farthest head of all, listed or not.
    """
    largest_of_each = [np.nanmax(each, initial=0) for each in measures]
    farthest = max(largest_of_each) or 1
    shares = make_blank_levels(len(rows), columns)
    if rows:
        shares[:, 1:] = np.array(rows) / farthest
    levels: Weights = np.sqrt(shares)
    return levels


def name_measure(distances: Distances) -> str:
    """Return which heads of A stand in the table, and what they are compared with."""
    if distances.moved is not None:
        return "heads that moved, from A to the same head of B"
    return "each head of A, and the nearest of B"


def summarise_distances(distances: Distances) -> tuple[str, ...]:
    """Say in lines how far all heads are from the nearest, and from those of the same number."""
    if np.isnan(average_defined(distances.overall, 0)):
        return ("no row has two words that both see: there is nothing to measure",)
    overall = describe_nats(distances.overall)
    lines = [f"A and B: {overall}: all heads, each from the nearest of the other, both ways"]
    if distances.moved is not None:
        moved = describe_nats(average_defined(distances.moved, 1))
        lines.append(f"{moved}: all heads, each from that of the same number")
    return (*lines, DIVERGENCE_LINE)


def describe_nats(values: Doubles) -> str:
    """Describe divergences (text,) by their mean, with the deviation if there are several."""
    texts = [f"{value:.3f}" for value in spread_over_texts(values)]
    numbers = " ± ".join(texts)
    if len(values) == 1:
        return f"{numbers} nats"
    return f"{numbers} nats over {len(values)} texts"


def mention_rest(count: int) -> tuple[str, ...]:
    """Say how many heads are not shown, in a line, or in none if all are."""
    if not count:
        return ()
    return (f"{count} more: --top all, --json or -o FILE.csv",)


def make_head_map(title: str, distances: Distances) -> Heatmap:
    """Draw the divergence of each head of A from its own or the nearest of B, a row a layer."""
    *_, divergences_by_text = measure_first_side(distances).values()
    divergences = average_defined(divergences_by_text, 0).tolist()
    by_head = dict(zip(distances.names[A_SIDE], divergences, strict=True))
    layers, heads, rows = arrange_by_layer(by_head)
    exact = np.array(rows, np.float64)  # None becomes NaN
    visible = ~np.isnan(exact)
    values = np.where(visible, exact, 0).astype(np.float32)
    largest = float(values.max())
    layer_names = [f"L{layer}" for layer in layers]
    head_names = [abbreviate_head_column(head) for head in heads]
    return Heatmap(
        f"{title}: {name_measure(distances)}",
        Panel(values, visible),
        make_number_axis("layers", layer_names),
        make_number_axis("heads", head_names),
        Scale(largest, largest),
        summarise_distances(distances),
    )
