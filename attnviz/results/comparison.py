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

from attnviz.analysis.comparison import (
    Comparison,
    Distances,
    HeadName,
    Side,
    compare_on_words,
)
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
from attnviz.methods import (
    describe_method,
    holds_other_numbers,
    list_methods,
    name_cell,
)
from attnviz.record import (
    ATTENTION,
    FROM_ELSEWHERE,
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
    shorten_token_label,
)

ComparisonView: TypeAlias = Literal["maps", "heads", "table"]

A_SIDE, B_SIDE = 0, 1  # in ``Distances``
MOST_DRAWN = 4  # heads that are drawn one by one; of more, the mean over those of a layer
WEIGHT_ROUNDING = 1e-6  # differences of attention weights below it are rounding of float32
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
        """Return the comparison of captures A and B as a document for JSON.

        It has both captures, the overall Jensen-Shannon divergence, that of each head, and the
        weights of the heads that are drawn first. Under "moved" stand the divergences of heads of A
        from the heads of B of the same layer and number; it is None if A and B have different
        heads.
        """
        a, b = self.first.a, self.first.b
        distances = self.distances
        from_same_heads = None
        if distances.moved is not None:
            means_over_heads = average_defined(distances.moved, 1)
            from_same_heads = describe_spread(means_over_heads)
        heads = describe_heads(distances, self.heads)
        maps = describe_maps(self.first, self.groups[0])
        return {
            "texts": len(distances.divergence),
            "a": describe_side(a, b),
            "b": describe_side(b, a),
            "divergence": DIVERGENCE,
            "js": describe_spread(distances.overall),
            "moved": from_same_heads,
            "heads": list(heads),
            "maps": maps,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each listed head of A and each head of B, with its nearest head."""
        entries = describe_heads(self.distances, self.heads)
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
        """Return the pictures of a view; without a view, the maps and then the table.

        view: "maps" for heads of A, heads of B and their difference as heatmaps, "heads" for a
        heatmap of the divergence of every head of A, "table" for a table of heads. look: how maps
        are coloured. most: rows of the table at most; None for all.
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
    """Compare two captures, A and B, on the words that both have.

    Raises InputError if they hold numbers of different kinds, or scores before the softmax, or if
    they have nothing in common that could be compared.
    """
    require_same_method(a, b)
    try:
        return compare_on_words(a, b)
    except ValueError as error:
        raise InputError(f"A and B cannot be compared: {error}") from error


def require_same_method(a: Capture, b: Capture) -> None:
    """Raise InputError unless two captures hold numbers of one method that can be compared.

    A method is the kind of numbers in a map: attention weights, or others such as norms. Numbers
    that were read from elsewhere are compared with any. Scores before the softmax are not compared,
    as no rows of them can sum to 1.
    """
    methods = {*list_methods(a.maps), *list_methods(b.maps)}
    # Numbers from elsewhere may be of any method.
    methods.discard(FROM_ELSEWHERE)
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
    """Measure how far the heads of models A and B are from each other over several texts.

    comparisons: of the same two models, one for each text; maps are drawn of the first text.
    layers, heads: choose the heads of A that are listed and drawn. If heads are chosen and there
    are few, they are drawn one by one, otherwise the mean over those of the last layer.

    Raises UsageError for a layer or a head that is not there, InputError if there is nothing that
    could be measured.
    """
    # Comparisons are made one by one, and only the first is kept.
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
    """Return the chosen heads of one of two compared captures, in the order that it has them in.

    Heads are named by layer and number. Raises UsageError for a layer or a head that is not there.
    """
    by_layer: dict[int, list[int | str]] = {}
    for layer, head in side.names:
        heads_of_one_layer = by_layer.setdefault(layer, [])
        heads_of_one_layer.append(head)
    chosen: set[HeadName] = set()
    for some_layers, some_heads in resolve_heads(by_layer, layers, heads):
        chosen.update(combine_layers_and_heads(some_layers, some_heads))
    return tuple(name for name in side.names if name in chosen)


def resolve_heads(
    by_layer: Mapping[int, Sequence[int | str]],
    layers: Selection,
    heads: Selection | HeadNames,
) -> Iterator[tuple[Sequence[int], Sequence[int | str]]]:
    """Yield chosen layers with their chosen heads: each head is chosen in each of these layers.

    by_layer: the heads of each layer, by number, or by a name such as "mean" for a reduction over
    heads. If any layer has a reduction, its heads have no numbers to choose from, and all heads of
    the chosen layers are chosen.

    Raises UsageError for a layer or a head that is not there.
    """
    numbers_by_layer = {layer: keep_numbers(names) for layer, names in by_layer.items()}
    if all(numbers_by_layer.values()):
        yield from resolve_blocks(layers, heads, numbers_by_layer)
        return
    for layer in layers.resolve(list(by_layer), "layer"):
        yield (layer,), by_layer[layer]


def keep_numbers(heads: Sequence[int | str]) -> list[int]:
    """Return the heads that have a number, which a reduction over heads has not."""
    return [head for head in heads if isinstance(head, int)]


def combine_layers_and_heads(layers: Sequence[int], heads: Sequence[int | str]) -> list[HeadName]:
    """Return the names (layer, head) of each of some heads in each of some layers."""
    return [(layer, head) for layer in layers for head in heads]


def pair_last_layers(comparison: Comparison, names: Sequence[HeadName] = ()) -> HeadGroups:
    """Return the heads of the last layer of A, and the heads of B to draw beside them.

    A and B are the two compared captures. If they have the same layers and heads, the heads of B
    have the same names; otherwise they are all heads of the last layer of B. names: the heads of A
    to choose from, in the order of layers; none stands for all.
    """
    a, b = comparison.a, comparison.b
    candidates = names or a.names
    last_layer, _ = candidates[-1]
    heads = tuple(name for name in candidates if name[0] == last_layer)
    if has_same_heads(comparison):
        return HeadGroups(heads, heads)
    return HeadGroups(heads, select_layer_heads(b, b.layers[-1]))


def pair_head(comparison: Comparison, distances: Distances, head: HeadName) -> HeadGroups:
    """Return a head of A, and the head of B to draw beside it.

    A and B are the two compared captures. If they have the same layers and heads, that is the head
    of B of the same name; otherwise it is the nearest, that is, the one of the smallest mean
    divergence, or the first where none is defined.
    """
    if has_same_heads(comparison):
        return HeadGroups((head,), (head,))
    index = comparison.a.names.index(head)
    index_of_nearest = distances.nearest(A_SIDE)[index]
    if index_of_nearest is None:
        index_of_nearest = 0
    head_of_b = comparison.b.names[index_of_nearest]
    return HeadGroups((head,), (head_of_b,))


def has_same_heads(comparison: Comparison) -> bool:
    """Return whether the two compared captures have the same layers and heads."""
    return comparison.a.names == comparison.b.names


def select_layer_heads(side: Side, layer: int) -> tuple[HeadName, ...]:
    """Return the heads of one layer of A or of B."""
    return tuple(name for name in side.names if name[0] == layer)


# The document and the rows


def describe_side(side: Side, other: Side) -> dict[str, Any]:
    """Describe one of two compared captures, and how much of it is compared, for JSON.

    "method" is the kind of its numbers. "words" counts its words, "common_words" those that the
    other capture has too. "outside" is the share of attention on tokens that the other does not
    have, "unseen" the share of the remaining attention where the other may not attend.
    """
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


def describe_heads(distances: Distances, heads: Sequence[HeadName]) -> Iterator[dict[str, Any]]:
    """Describe some heads of A and all heads of B, each with its nearest head, for JSON.

    A and B are the two compared models. heads: the heads of A that are listed. The nearest head of
    the other model is the one of the smallest mean divergence.
    """
    for entry in describe_side_heads(distances, A_SIDE):
        if (entry["layer"], entry["head"]) in heads:
            yield entry
    yield from describe_side_heads(distances, B_SIDE)


def describe_side_heads(distances: Distances, side: int) -> Iterator[dict[str, Any]]:
    """Describe the heads of A or of B, each with its nearest head of the other, for JSON.

    A and B are the two compared models. side: 0 for the heads of A, 1 for those of B. "js" is the
    Jensen-Shannon divergence from the nearest head, "moved" that from the head of the same layer
    and number, or None if A and B have different heads.
    """
    names = distances.names[side]
    other_names = distances.names[1 - side]
    indices_of_nearest = distances.nearest(side)
    divergences = distances.to_nearest(side)
    for index, name in enumerate(names):
        nearest, from_same_head = None, None
        index_of_nearest = indices_of_nearest[index]
        if index_of_nearest is not None:
            nearest = describe_head_name(other_names[index_of_nearest])
        if distances.moved is not None:
            from_same_head = describe_spread(distances.moved[:, index])
        yield {
            "side": "ab"[side],
            **describe_head_name(name),
            "nearest": nearest,
            "js": describe_spread(divergences[:, index]),
            "moved": from_same_head,
        }


def flatten_head(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the nested description of a head into one flat row for a CSV file.

    entry: has the side, layer and head, under "nearest" the name of another head, and under "js"
    and "moved" the mean and the deviation of divergences. "nearest" and "moved" may be None, which
    gives columns of None.
    """
    nearest = entry["nearest"] or {}
    divergence = entry["js"]
    from_same_head = entry["moved"] or {}
    row = {name: entry[name] for name in ("side", "layer", "head")}
    row["nearest_layer"] = nearest.get("layer")
    row["nearest_head"] = nearest.get("head")
    row["js"] = divergence["mean"]
    row["js_sd"] = divergence["sd"]
    row["moved"] = from_same_head.get("mean")
    row["moved_sd"] = from_same_head.get("sd")
    return row


def describe_head_name(name: HeadName) -> dict[str, Any]:
    """Describe a head by its layer and its number, for JSON."""
    layer, head = name
    return {"layer": layer, "head": head}


def describe_spread(values: Doubles) -> dict[str, Any]:
    """Describe numbers by their mean and deviation over texts, for JSON.

    values: (text,), NaN where undefined. "n" counts the texts where a number is defined.
    """
    return {
        "mean": float(average_defined(values, 0)),
        "sd": float(compute_deviation(values, 0)),
        "n": int(np.count_nonzero(np.isfinite(values))),
    }


def describe_maps(comparison: Comparison, groups: HeadGroups) -> dict[str, Any]:
    """Describe the weights of heads of A, of heads of B, and their difference, for JSON.

    A and B are the two compared captures. groups: heads of A and heads of B; where there are
    several of one, the weights are their mean. Weights are between the words that both have, NaN in
    cells that A or B may not attend to.
    """
    a, b, visible = comparison.pair(*groups)
    heads_of_a = [describe_head_name(name) for name in groups.a]
    heads_of_b = [describe_head_name(name) for name in groups.b]
    queries = describe_plain_tokens(comparison.a.queries)
    keys = describe_plain_tokens(comparison.a.keys)
    difference = a - b
    return {
        "heads": {"a": heads_of_a, "b": heads_of_b},
        "queries": queries,
        "keys": keys,
        "a": list_visible(a, visible),
        "b": list_visible(b, visible),
        "difference": list_visible(difference, visible),
    }


def list_visible(weights: Weights, visible: Visible) -> Any:
    """Return a matrix (query, key) as nested lists, with NaN where it is not visible."""
    return list_shortest_decimals(np.where(visible, weights, np.float32(np.nan)))


# Maps: A, B, and their difference


def make_series(comparison: Comparison, groups: HeadGroups, look: Look = DEFAULT_LOOK) -> Series:
    """Draw heads of A, heads of B and the difference A - B as three heatmaps of common words.

    A and B are the two compared captures. groups: heads of A and heads of B; where there are
    several of one, their mean is drawn. Only cells that both may attend to are visible, and rows
    sum to 1 there. A and B have one colour scale. Sinks, that is, keys that soak up attention, lie
    beyond its end only if both have some.
    """
    a, b, visible = comparison.pair(*groups)
    panel_a = Panel(a, visible)
    panel_b = Panel(b, visible)

    def draw_both(look: Look) -> tuple[Heatmap, Heatmap]:
        heatmap_a = draw_side("A", comparison.a, groups.a, panel_a, look)
        heatmap_b = draw_side("B", comparison.b, groups.b, panel_b, look)
        return heatmap_a, heatmap_b

    first, second = draw_both(look)
    both_have_sinks = first.scale.has_beyond and second.scale.has_beyond
    if not both_have_sinks:
        # The colours reach the largest weight.
        first, second = draw_both(look._replace(whole=True))
    top = max(first.scale.top, second.scale.top)
    largest = max(first.scale.largest, second.scale.largest)
    shared = Scale(top, largest, linear=look.linear)
    first = replace(first, scale=shared)
    second = replace(second, scale=shared)
    panel = Panel(a - b, visible)
    method = read_method(comparison.a)
    difference = draw_difference("A - B", panel, first.rows, first.columns, look, method)
    heatmaps = first, second, difference
    return Series(title_comparison(comparison), heatmaps, list_coverage(comparison))


def draw_side(
    letter: str,
    side: Side,
    names: Sequence[HeadName],
    panel: Panel,
    look: Look,
) -> Heatmap:
    """Draw the weights of a head of one of two compared captures, or of the mean of several heads.

    letter: A or B, which begins the title. names: the heads, all of one layer. panel: the weights
    (query, key) between the words that both captures have, and where they are visible.
    """
    layer, head = names[0]
    is_mean = len(names) > 1
    weights = panel.values[None, None]
    shown_head = "mean" if is_mean else head
    shown_map = make_side_map(side, layer, (shown_head,), weights, panel.visible)
    capture = Capture(side.capture.model, side.capture.text, (shown_map,))
    # The map has one layer and one head, of index 0.
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
    """Make a map of one layer of a capture that is compared, between the words of both captures.

    weights: (1, head, query, key). visible: broadcasts to them, True where a query may attend.
    """
    kind = side.capture.maps[0].kind
    method = read_method(side)
    return AttentionMap(
        kind=kind,
        layers=(layer,),
        heads=heads,
        queries=side.queries,
        keys=side.keys,
        weights=weights,
        visible=visible,
        method=method,
        unit="word",
    )


def read_method(side: Side) -> str:
    """Return the kind of a capture's numbers, before their rows were made to sum to 1."""
    return side.capture.maps[0].method


def draw_difference(
    title: str,
    panel: Panel,
    rows: Axis,
    columns: Axis,
    look: Look,
    method: str = ATTENTION,
) -> Heatmap:
    """Draw the differences between two matrices on a colour scale with 0 in its middle.

    Attention weights that differ by rounding alone are drawn as equal, since the colours would make
    a picture of the rounding, which is another one on each processor. Other numbers, and those that
    a user gives, may be as small as that and mean something.

    panel: the differences, and where both matrices are visible. method: the kind of numbers that
    were subtracted, such as attention weights.
    """
    sizes = np.abs(panel.values[panel.visible])
    largest = float(sizes.max(initial=0))
    if largest < WEIGHT_ROUNDING and method == ATTENTION:
        largest = 0.0
    # Where all differences are 0, the colours need an end nonetheless.
    top = largest or 1.0
    scale = make_difference_scale(top, largest, look, method)
    caption = explain_signs(method) if largest else "no difference"
    return Heatmap(title, panel, rows, columns, scale, (caption,))


def make_difference_scale(top: float, largest: float, look: Look, method: str) -> Scale:
    """Make the colour scale of differences, from -top to top.

    largest: the size of the largest difference. method: the kind of numbers that were subtracted;
    the scale names it unless it is attention weights.
    """
    cell = ""
    if holds_other_numbers(method):
        cell = f"difference of {name_cell(method)}s"
    return Scale(top, largest, linear=look.linear, signed=True, of=cell)


def explain_signs(method: str) -> str:
    """Explain the signs of differences A - B, of attention weights or of other numbers."""
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
    """Return a picture with lines in its caption on numbers that are not attention weights.

    A line says which numbers the compared captures hold instead, and that each row of them was made
    to sum to 1.
    """
    # The keys of a dict keep their order, and each line stands once.
    lines: dict[str, None] = {}
    for side in (comparison.a, comparison.b):
        line = describe_method(side.capture.maps[0])
        if line:
            lines[f"{line}; rows made to sum to 1, sinks included"] = None
    return replace(picture, caption=(*picture.caption, *lines))


def list_coverage(comparison: Comparison) -> tuple[str, ...]:
    """List in lines what is compared of captures A and B, what is left out, and their notes."""
    a, b = comparison.a, comparison.b
    lines = []
    if a.capture.text != b.capture.text:
        text_a = escape(a.capture.text)
        text_b = escape(b.capture.text)
        lines.append(f"A: {shorten_token_label(text_a)}")
        lines.append(f"B: {shorten_token_label(text_b)}")
    lines.append(describe_coverage(comparison))
    noun = name_cell(read_method(a))
    outside = describe_shares(a.outside, b.outside, f"the {noun}")
    if outside:
        lines.append(f"left out, on tokens that the other does not have: {outside}")
    unseen = describe_shares(a.unseen(b), b.unseen(a), "what is left")
    if unseen:
        lines.append(f"left out, where the other may not attend: {unseen}")
    measured_count = len(a.rows)
    query_count = len(a.queries)
    if measured_count < query_count:
        lines.append(f"numbers are of {measured_count} of the {query_count} queries, evenly spread")
    lines += merge_notes(a.capture.notes, b.capture.notes)
    return tuple(lines)


def describe_coverage(comparison: Comparison) -> str:
    """Describe in a line on how many of the words of A and B they are compared."""
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
    """Return a number of words in words: "1 word" or "7 words"."""
    if count == 1:
        return "1 word"
    return f"{count} words"


def describe_shares(a: float, b: float, whole: str) -> str:
    """Describe the shares of A and of B that are left out; empty if both are negligible.

    a, b: shares, from 0 to 1. whole: the name of the whole that they are shares of.
    """
    shares = {"A": a, "B": b}
    pieces = []
    for letter, share in shares.items():
        if share >= LEAST_SHARE:
            pieces.append(f"{share:.1%} of {whole} of {letter}")
    return ", ".join(pieces)


def merge_notes(a: Sequence[str], b: Sequence[str]) -> tuple[str, ...]:
    """Merge the notes on A and on B; "A:" or "B:" stands before a note that only one has."""
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
    """Make a table of heads of model A, those first that are farthest from model B.

    If A and B have the same heads, the order is by the divergence of each head of A from the head
    of B of the same layer and number; otherwise by that from the nearest head of B. heads: the
    heads of A to list. most: rows at most; None for all.
    """
    measures = collect_divergences_of_a(distances)
    order = rank_heads(measures, distances.names[A_SIDE], heads)
    shown = order[:most]
    indices_of_nearest = distances.nearest(A_SIDE)
    names, rows, cells = [], [], []
    for index in shown:
        values = summarise_head(measures.values(), index)
        name_of_nearest = name_nearest(distances, indices_of_nearest[index])
        names.append(abbreviate_head(*distances.names[A_SIDE][index]))
        rows.append(values)
        cells.append((name_of_nearest, *(format_fixed(value, 3) for value in values)))
    columns = name_columns(measures, distances)
    levels = colour_divergences(rows, len(columns), measures.values())
    hidden_count = len(order) - len(shown)
    caption = *summarise_distances(distances), *mention_hidden_heads(hidden_count)
    return Table(
        title=f"{title}: {name_compared_heads(distances)}",
        corner="head of A",
        columns=columns,
        rows=tuple(names),
        cells=tuple(cells),
        levels=levels,
        caption=caption,
        texts=frozenset({0}),
    )


def rank_heads(
    measures: Mapping[str, Doubles],
    names: Sequence[HeadName],
    heads: Sequence[HeadName],
) -> list[int]:
    """Return the indices of some heads among all heads, the farthest first.

    measures: arrays (text, head) of divergences from another model, by name; the order is by the
    mean over texts of the last one. names: all heads, in their order there. heads: those to rank.
    """
    *_, last_measure = measures.values()
    indices = [names.index(head) for head in heads]
    return sort_by_value(average_defined(last_measure, 0), indices)


def name_columns(measures: Mapping[str, Doubles], distances: Distances) -> tuple[str, ...]:
    """Return the headings of a table of heads: for the nearest head, and for each measure.

    measures: divergences by name. Over several texts each has a column of deviations beside it.
    """
    columns = ["nearest"]
    for name in measures:
        columns.append(name)
        if has_several_texts(distances):
            columns.append(DEVIATION_COLUMN)
    return tuple(columns)


def collect_divergences_of_a(distances: Distances) -> dict[str, Doubles]:
    """Return the divergences of the heads of model A from heads of model B, (text, head), by name.

    "JS" is of each head from the nearest head of B; "moved", only if A and B have the same heads,
    is from the head of B of the same layer and number.
    """
    measures = {"JS": distances.to_nearest(A_SIDE)}
    if distances.moved is not None:
        measures["moved"] = distances.moved
    return measures


def sort_by_value(values: Doubles, indices: Sequence[int]) -> list[int]:
    """Sort indices by the values that they stand for, the largest first and NaN last."""

    def value_or_last(index: int) -> float:
        value = float(values[index])
        if math.isnan(value):
            return -math.inf
        return value

    return sorted(indices, key=value_or_last, reverse=True)


def has_several_texts(distances: Distances) -> bool:
    """Return whether numbers are of more than one text, so that they have a deviation."""
    return len(distances.divergence) > 1


def summarise_over_texts(values: Doubles) -> list[float]:
    """Return the mean of numbers over texts, and their deviation if there are several texts.

    values: (text,), NaN where undefined.
    """
    mean = float(average_defined(values, 0))
    if len(values) == 1:
        return [mean]
    return [mean, float(compute_deviation(values, 0))]


def summarise_head(measures: Iterable[Doubles], index: int) -> list[float]:
    """Return the mean of each measure of one head over the texts, each followed by its deviation.

    measures: arrays (text, head). index: of the head. There are no deviations over a single text.
    """
    values: list[float] = []
    for measure in measures:
        values += summarise_over_texts(measure[:, index])
    return values


def name_nearest(distances: Distances, index: int | None) -> str:
    """Return the short name of a head of B by its index; a dash for None."""
    if index is None:
        return "—"
    return abbreviate_head(*distances.names[B_SIDE][index])


def colour_divergences(
    rows: Sequence[Sequence[float]],
    column_count: int,
    measures: Iterable[Doubles],
) -> Weights:
    """Return the colour levels of a table of divergences, from 0 to 1: (row, column).

    rows: the numbers of each row, which stand in all columns but the first. column_count: of the
    table. measures: arrays (text, head) of all divergences. A level is the square root of a
    number's share of the largest one in measures, whether its head is in the table or not. The
    first column has NaN, which stands for no colour.
    """
    largest_of_each = [np.nanmax(measure, initial=0) for measure in measures]
    farthest = max(largest_of_each) or 1
    shares = make_blank_levels(len(rows), column_count)
    if rows:
        shares[:, 1:] = np.array(rows) / farthest
    levels: Weights = np.sqrt(shares)
    return levels


def name_compared_heads(distances: Distances) -> str:
    """Say which heads of model A a table or a map shows, and with which of B they are compared."""
    if distances.moved is not None:
        return "heads that moved, from A to the same head of B"
    return "each head of A, and the nearest of B"


def summarise_distances(distances: Distances) -> tuple[str, ...]:
    """Say in lines how far the heads of models A and B are from each other, on average.

    They are compared with the nearest head of the other, and if A and B have the same heads, also
    with the head of the same layer and number.
    """
    if np.isnan(average_defined(distances.overall, 0)):
        return ("no row has two words that both see: there is nothing to measure",)
    overall = describe_nats(distances.overall)
    lines = [f"A and B: {overall}: all heads, each from the nearest of the other, both ways"]
    if distances.moved is not None:
        of_same_heads = describe_nats(average_defined(distances.moved, 1))
        lines.append(f"{of_same_heads}: all heads, each from that of the same number")
    return (*lines, DIVERGENCE_LINE)


def describe_nats(values: Doubles) -> str:
    """Describe divergences (text,) by their mean in nats, with the deviation over several texts."""
    texts = [f"{value:.3f}" for value in summarise_over_texts(values)]
    numbers = " ± ".join(texts)
    if len(values) == 1:
        return f"{numbers} nats"
    return f"{numbers} nats over {len(values)} texts"


def mention_hidden_heads(count: int) -> tuple[str, ...]:
    """Say in a line how many heads are not shown, and how to see them; no line if all are shown."""
    if not count:
        return ()
    return (f"{count} more: --top all, --json or -o FILE.csv",)


def make_head_map(title: str, distances: Distances) -> Heatmap:
    """Draw the divergence of each head of model A from a head of model B, a row a layer.

    That is the head of B of the same layer and number if A and B have the same heads, otherwise the
    nearest. A column is a head. Numbers are means over texts in nats.
    """
    *_, divergences_by_text = collect_divergences_of_a(distances).values()
    divergences = average_defined(divergences_by_text, 0).tolist()
    by_head = dict(zip(distances.names[A_SIDE], divergences, strict=True))
    layers, heads, rows = arrange_by_layer(by_head)
    exact = np.array(rows, np.float64)  # None becomes NaN
    visible = ~np.isnan(exact)
    values = np.where(visible, exact, 0).astype(np.float32)
    largest = float(values.max())
    scale = Scale(top=largest, largest=largest)
    layer_names = [f"L{layer}" for layer in layers]
    head_names = [abbreviate_head_column(head) for head in heads]
    return Heatmap(
        title=f"{title}: {name_compared_heads(distances)}",
        panel=Panel(values, visible),
        rows=make_number_axis("layers", layer_names),
        columns=make_number_axis("heads", head_names),
        scale=scale,
        caption=summarise_distances(distances),
    )
