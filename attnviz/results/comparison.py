"""How far heads of A and B are from each other, and pictures of A, B and the difference."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from attnviz.analysis.comparison import Comparison, Distances, Name, Side, compare
from attnviz.analysis.statistics import deviation_of, mean_of
from attnviz.drawable import Axis, Heatmap, Panel, Picture, Scale, Series, Table
from attnviz.errors import InputError
from attnviz.escape import escape
from attnviz.io.formats import decimals, token_list
from attnviz.methods import is_other, method_line, methods_of, noun
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
from attnviz.results.result import Result
from attnviz.selection import ALL, Named, Selection, resolve
from attnviz.views.colour_scale import Look
from attnviz.views.heatmaps import PLAIN, heatmap
from attnviz.views.labels import column_name, head_name, model_title, short

ComparisonView: TypeAlias = Literal["maps", "heads", "table"]

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

    a: tuple[Name, ...]
    b: tuple[Name, ...]


@dataclass(frozen=True, eq=False, repr=False)
class ComparisonResult(Result):
    """How far the heads of A and B are from each other, over one text or several."""

    first: Comparison
    """Of the first text, of which maps are drawn."""
    distances: Distances
    """Of all heads, over all texts."""
    heads: tuple[Name, ...]
    """The heads of A that are listed."""
    groups: tuple[HeadGroups, ...]
    """What of A and B is drawn, a series of maps each."""

    def to_dict(self) -> dict[str, Any]:
        """Return the overall divergence, that of each head, and the weights of the first series."""
        a, b = self.first.a, self.first.b
        moved = self.distances.moved
        return {
            "texts": len(self.distances.divergence),
            "a": describe_side(a, b),
            "b": describe_side(b, a),
            "divergence": DIVERGENCE,
            "js": describe_spread(self.distances.overall),
            "moved": None if moved is None else describe_spread(mean_of(moved, 1)),
            "heads": list(list_heads(self.distances, self.heads)),
            "maps": describe_maps(self.first, self.groups[0]),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each listed head of A, and for all heads of B."""
        return [flatten_head(entry) for entry in list_heads(self.distances, self.heads)]

    def tables(self) -> list[Picture]:
        """Return the maps of A, B and their difference, and the table of all listed heads."""
        return self.draw()

    def draw(
        self,
        view: ComparisonView | None = None,
        look: Look = PLAIN,
        most: int | None = None,
    ) -> list[Picture]:
        """Return the pictures of a view; by default the maps, then the table.

        most: rows of the table; None for all.
        """
        title = title_comparison(self.first)
        if view == "heads":
            return [with_method_lines(make_head_map(title, self.distances), self.first)]
        if view == "table":
            table = make_heads_table(title, self.distances, self.heads, most)
            return [with_method_lines(table, self.first)]
        maps = [make_series(self.first, group, look) for group in self.groups]
        if view == "maps":
            return [*maps]
        return [*maps, make_heads_table(title, self.distances, self.heads, most)]


# Making a comparison


def compare_captures(a: Capture, b: Capture) -> Comparison:
    """Compare two captures on the words that both have.

    Raises InputError if they hold other numbers, or there is nothing that could be compared.
    """
    require_same_method(a, b)
    try:
        return compare(a, b)
    except ValueError as error:
        raise InputError(f"A and B cannot be compared: {error}") from error


def require_same_method(a: Capture, b: Capture) -> None:
    """Raise InputError unless both hold numbers of one method, of which rows can sum to 1."""
    methods = {*methods_of(a.maps), *methods_of(b.maps)} - {GIVEN}
    if SCORES in methods:
        raise InputError(NO_SHARES)
    if len(methods) > 1:
        names = " and ".join(sorted(methods))
        advice = "make both with the same --weights"
        raise InputError(f"A and B are of {names}, which cannot be compared: {advice}")


def measure_comparisons(
    comparisons: Iterable[Comparison],
    layers: Selection | None = None,
    heads: Selection | Named | None = None,
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
    names = choose_heads(first.a, layers or ALL, heads or ALL)
    if heads is not None and len(names) <= MOST_DRAWN:
        groups = [pair_head(first, distances, name) for name in names]
    else:
        groups = [pair_last_layers(first, names)]
    return ComparisonResult(first, distances, names, tuple(groups))


# Which heads


def choose_heads(side: Side, layers: Selection, heads: Selection | Named) -> tuple[Name, ...]:
    """Return the chosen heads of a side, in its order. Raises UsageError for one not there."""
    by_layer: dict[int, list[int | str]] = {}
    for layer, head in side.names:
        by_layer.setdefault(layer, []).append(head)
    chosen = {
        (layer, head)
        for some_layers, some_heads in resolve_heads(by_layer, layers, heads)
        for layer, head in pair_each(some_layers, some_heads)
    }
    return tuple(name for name in side.names if name in chosen)


def resolve_heads(
    by_layer: Mapping[int, Sequence[int | str]], layers: Selection, heads: Selection | Named
) -> Iterator[tuple[Sequence[int], Sequence[int | str]]]:
    """Yield chosen layers with their chosen heads. Of a reduction over heads, all are chosen.

    Raises UsageError for one that is not there.
    """
    numbers = {layer: keep_numbers(names) for layer, names in by_layer.items()}
    if all(numbers.values()):
        yield from resolve(layers, heads, numbers)
        return
    for layer in layers.resolve(list(by_layer), "layer"):
        yield (layer,), by_layer[layer]


def keep_numbers(heads: Sequence[int | str]) -> list[int]:
    """Return the heads that have a number, which a reduction over heads has not."""
    return [head for head in heads if isinstance(head, int)]


def pair_each(layers: Sequence[int], heads: Sequence[int | str]) -> list[Name]:
    """Return each of some heads in each of some layers."""
    return [(layer, head) for layer in layers for head in heads]


def pair_last_layers(comparison: Comparison, names: Sequence[Name] = ()) -> HeadGroups:
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
    return HeadGroups(heads, heads_of_layer(b, b.layers[-1]))


def pair_head(comparison: Comparison, distances: Distances, head: Name) -> HeadGroups:
    """Return a head of A, and that of B of its name, or the nearest where the two have others."""
    a, b = comparison.a, comparison.b
    nearest = distances.nearest(0)[a.names.index(head)]
    if has_same_heads(comparison):
        return HeadGroups((head,), (head,))
    return HeadGroups((head,), (b.names[0 if nearest is None else nearest],))


def has_same_heads(comparison: Comparison) -> bool:
    """Return whether both sides have the same layers and heads."""
    return comparison.a.names == comparison.b.names


def heads_of_layer(side: Side, layer: int) -> tuple[Name, ...]:
    """Return the heads of a layer of a side."""
    return tuple(name for name in side.names if name[0] == layer)


# The document and the rows


def describe_side(side: Side, other: Side) -> dict[str, Any]:
    """Describe a side for JSON, and how much of it is compared with the other."""
    capture = side.capture
    return {
        "model": capture.model,
        "text": capture.text,
        "method": method_of_side(side),
        "notes": capture.notes,
        "words": side.words,
        "common_words": side.common,
        "outside": side.outside,
        "unseen": side.unseen(other),
    }


def list_heads(distances: Distances, heads: Sequence[Name]) -> Iterator[dict[str, Any]]:
    """Describe some heads of A, then all heads of B, each with the head that is nearest to it."""
    moved = distances.moved
    for which, letter in enumerate("ab"):
        other_names = distances.names[1 - which]
        nearest = distances.nearest(which)
        divergences = distances.to_nearest(which)
        for index, name in enumerate(distances.names[which]):
            if letter == "a" and name not in heads:
                continue
            other = nearest[index]
            yield {
                "side": letter,
                **describe_name(name),
                "nearest": None if other is None else describe_name(other_names[other]),
                "js": describe_spread(divergences[:, index]),
                "moved": None if moved is None else describe_spread(moved[:, index]),
            }


def flatten_head(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a head as one row."""
    nearest = entry["nearest"] or {}
    moved = entry["moved"] or {}
    return {
        "side": entry["side"],
        "layer": entry["layer"],
        "head": entry["head"],
        "nearest_layer": nearest.get("layer"),
        "nearest_head": nearest.get("head"),
        "js": entry["js"]["mean"],
        "js_sd": entry["js"]["sd"],
        "moved": moved.get("mean"),
        "moved_sd": moved.get("sd"),
    }


def describe_name(name: Name) -> dict[str, Any]:
    """Describe which head is meant, for JSON."""
    layer, head = name
    return {"layer": layer, "head": head}


def describe_spread(values: Doubles) -> dict[str, Any]:
    """Describe numbers (text,) by mean and deviation over the texts where they are defined."""
    return {
        "mean": float(mean_of(values, 0)),
        "sd": float(deviation_of(values, 0)),
        "n": int(np.count_nonzero(np.isfinite(values))),
    }


def describe_maps(comparison: Comparison, groups: HeadGroups) -> dict[str, Any]:
    """Describe the weights of heads of A and B, and the difference; NaN where they are masked."""
    a, b, visible = comparison.pair(*groups)
    return {
        "heads": {
            "a": [describe_name(name) for name in groups.a],
            "b": [describe_name(name) for name in groups.b],
        },
        "queries": token_list(comparison.a.queries),
        "keys": token_list(comparison.a.keys),
        "a": list_visible(a, visible),
        "b": list_visible(b, visible),
        "difference": list_visible(a - b, visible),
    }


def list_visible(weights: Weights, visible: Visible) -> Any:
    """Return a matrix as nested lists, with NaN where it is masked."""
    return decimals(np.where(visible, weights, np.float32(np.nan)))


# Maps: A, B, and their difference


def make_series(comparison: Comparison, groups: HeadGroups, look: Look = PLAIN) -> Series:
    """Draw heads of A, of B, and A - B, on the words that both have and the cells that both see."""
    a, b, visible = comparison.pair(*groups)

    def draw_both(look: Look) -> list[Heatmap]:
        return [
            draw_side("A", comparison.a, groups.a, Panel(a, visible), look),
            draw_side("B", comparison.b, groups.b, Panel(b, visible), look),
        ]

    drawn = draw_both(look)
    if not all(each.scale.has_beyond for each in drawn):  # the shared colours reach the largest
        drawn = draw_both(look._replace(whole=True))
    top = max(each.scale.top for each in drawn)
    largest = max(each.scale.largest for each in drawn)
    shared_scale = Scale(top, largest, look.linear)
    drawn = [replace(each, scale=shared_scale) for each in drawn]
    axes = drawn[0].rows, drawn[0].columns
    apart = difference("A - B", Panel(a - b, visible), *axes, look, method_of_side(comparison.a))
    return Series(title_comparison(comparison), (*drawn, apart), list_coverage(comparison))


def draw_side(letter: str, side: Side, names: Sequence[Name], panel: Panel, look: Look) -> Heatmap:
    """Draw the weights between common words of one head of a side, or of the mean of several."""
    layer, head = names[0]
    is_mean = len(names) > 1
    weights = panel.values[None, None]
    shown_head = "mean" if is_mean else head
    shown_map = map_of_side(side, layer, (shown_head,), weights, panel.visible)
    capture = Capture(side.capture.model, side.capture.text, (shown_map,))
    drawn = heatmap(capture, shown_map, 0, 0, look)
    caption = drawn.caption
    if is_mean and len(names) < len(heads_of_layer(side, layer)):
        numbers = ", ".join(str(number) for _, number in names)
        caption = (f"mean over heads {numbers}", *caption)
    return replace(drawn, title=f"{letter} {drawn.title}", caption=caption)


def map_of_side(
    side: Side, layer: int, heads: tuple[int | str, ...], weights: Weights, visible: Visible
) -> AttentionMap:
    """Return weights (1, head, query, key) between common words of a side as a map."""
    return AttentionMap(
        side.capture.maps[0].kind,
        (layer,),
        heads,
        side.queries,
        side.keys,
        weights,
        visible,
        method_of_side(side),
        unit="word",
    )


def method_of_side(side: Side) -> str:
    """Return what the numbers of a side were before their rows were made to sum to 1."""
    return side.capture.maps[0].method


def difference(
    title: str,
    panel: Panel,
    rows: Axis,
    columns: Axis,
    look: Look,
    method: str = ATTENTION,
) -> Heatmap:
    """Draw differences on a scale with 0 in its middle."""
    largest = float(np.abs(panel.values[panel.visible]).max(initial=0))
    scale = make_difference_scale(largest or 1.0, largest, look, method)
    caption = explain_signs(method) if largest else "no difference"
    return Heatmap(title, panel, rows, columns, scale, (caption,))


def make_difference_scale(top: float, largest: float, look: Look, method: str) -> Scale:
    """Return the scale of differences between rows that the numbers of a method make."""
    cell = f"difference of {noun(method)}s" if is_other(method) else ""
    return Scale(top, largest, look.linear, signed=True, of=cell)


def explain_signs(method: str) -> str:
    """Explain what the signs of differences mean."""
    if is_other(method):
        return "positive: larger in A, negative: in B"
    return "positive: A attends more, negative: B"


# What is said of both


def title_comparison(comparison: Comparison) -> str:
    """Return what is compared, by the names of both models."""
    a, b = model_title(comparison.a.capture), model_title(comparison.b.capture)
    return f"A {a} · B {b}"


def with_method_lines(picture: Heatmap | Table, comparison: Comparison) -> Heatmap | Table:
    """Return a picture whose caption also says what the numbers are, if they are no weights."""
    lines: dict[str, None] = {}
    for side in (comparison.a, comparison.b):
        line = method_line(side.capture.maps[0])
        if line:
            lines[f"{line}; rows made to sum to 1, sinks included"] = None
    return replace(picture, caption=(*picture.caption, *lines))


def list_coverage(comparison: Comparison) -> tuple[str, ...]:
    """List in lines what is compared of both, what is left out, and the notes of both."""
    a, b = comparison.a, comparison.b
    lines = []
    if a.capture.text != b.capture.text:
        lines += [f"A: {short(escape(a.capture.text))}", f"B: {short(escape(b.capture.text))}"]
    lines.append(describe_coverage(comparison))
    outside = describe_shares(a.outside, b.outside, f"the {noun(method_of_side(a))}")
    if outside:
        lines.append(f"left out, on tokens that the other does not have: {outside}")
    unseen = describe_shares(a.unseen(b), b.unseen(a), "what is left")
    if unseen:
        lines.append(f"left out, where the other may not attend: {unseen}")
    measured, all_queries = len(a.rows), len(a.queries)
    if measured < all_queries:
        lines.append(f"numbers are of {measured} of the {all_queries} queries, evenly spread")
    return (*lines, *merge_notes(a.capture.notes, b.capture.notes))


def describe_coverage(comparison: Comparison) -> str:
    """Describe in a line on how many words of both they are compared."""
    a, b = comparison.a, comparison.b
    if a.words == b.words == a.common:
        words = f"all {count_words(a.common)}"
    else:
        words = f"{count_words(a.common)} of {a.words} in A and {b.words} in B"
    line = f"compared on {words}, where both may attend; rows sum to 1 there"
    if is_other(method_of_side(a)):
        return f"{line}, sinks included"
    return line


def count_words(count: int) -> str:
    """Return a number of words in words."""
    return "1 word" if count == 1 else f"{count} words"


def describe_shares(a: float, b: float, whole: str) -> str:
    """Describe the shares of A and of B that are large enough to be told; empty if none is."""
    parts = []
    for letter, share in (("A", a), ("B", b)):
        if share >= LEAST_SHARE:
            parts.append(f"{share:.1%} of {whole} of {letter}")
    return ", ".join(parts)


def merge_notes(a: Sequence[str], b: Sequence[str]) -> tuple[str, ...]:
    """Return the notes of A and of B, those that only one has under its letter."""
    lines = []
    for note in dict.fromkeys((*a, *b)):
        if note not in b:
            lines.append(f"A: {escape(note)}")
        elif note not in a:
            lines.append(f"B: {escape(note)}")
        else:
            lines.append(escape(note))
    return tuple(lines)


# How far heads are from each other


def make_heads_table(
    title: str,
    distances: Distances,
    heads: Sequence[Name],
    most: int | None = None,
) -> Table:
    """Make the table of the heads of A that moved most, or that are farthest from any of B.

    most: rows of the table; None for all.
    """
    measures = measures_of_first_side(distances)
    *_, ranked_by = measures.values()
    indices = [distances.names[0].index(head) for head in heads]
    order = sort_by_value(mean_of(ranked_by, 0), indices)
    shown = order[:most]
    rows = [spread_each(measures.values(), index) for index in shown]
    columns = ["nearest"]
    for name in measures:
        columns += [name, DEVIATION_COLUMN] if has_several_texts(distances) else [name]
    nearest = distances.nearest(0)
    cells = []
    for index, values in zip(shown, rows, strict=True):
        numbers = [format_divergence(value) for value in values]
        cells.append((name_nearest(distances, nearest[index]), *numbers))
    return Table(
        f"{title}: {name_measure(distances)}",
        "head of A",
        tuple(columns),
        tuple(head_name(*distances.names[0][index]) for index in shown),
        tuple(cells),
        colour_levels(rows, len(columns), measures.values()),
        (*summarise_distances(distances), *mention_rest(len(order) - len(shown))),
        frozenset({0}),
    )


def measures_of_first_side(distances: Distances) -> dict[str, Doubles]:
    """Return how far each head of A is (text, head) from the nearest, and from its own if any."""
    measures = {"JS": distances.to_nearest(0)}
    if distances.moved is not None:
        measures["moved"] = distances.moved
    return measures


def sort_by_value(values: Doubles, indices: Sequence[int]) -> list[int]:
    """Return indices by their values, the largest first, those without one last."""

    def value_or_last(index: int) -> float:
        value = float(values[index])
        return -math.inf if math.isnan(value) else value

    return sorted(indices, key=value_or_last, reverse=True)


def has_several_texts(distances: Distances) -> bool:
    """Return whether numbers are of more than one text, so that they have a deviation."""
    return len(distances.divergence) > 1


def spread_over_texts(values: Doubles) -> list[float]:
    """Return the mean of numbers (text,), and their deviation if there are several."""
    mean = float(mean_of(values, 0))
    if len(values) == 1:
        return [mean]
    return [mean, float(deviation_of(values, 0))]


def spread_each(measures: Iterable[Doubles], index: int) -> list[float]:
    """Return mean and deviation of one head in each of some measures (text, head)."""
    values: list[float] = []
    for measure in measures:
        values += spread_over_texts(measure[:, index])
    return values


def name_nearest(distances: Distances, index: int | None) -> str:
    """Return the name of a head of B by its place, a dash for none."""
    return "—" if index is None else head_name(*distances.names[1][index])


def format_divergence(value: float) -> str:
    """Return a divergence to three digits, an empty text for none."""
    return "" if math.isnan(value) else f"{value:.3f}"


def colour_levels(
    rows: Sequence[Sequence[float]],
    columns: int,
    measures: Iterable[Doubles],
) -> Weights:
    """Return how far along the colours the numbers of a table are, none in its first column.

    Colours end at the farthest head of all, listed or not.
    """
    farthest = max(np.nanmax(each, initial=0) for each in measures) or 1
    shares = np.full((len(rows), columns), np.nan, np.float32)
    if rows:
        shares[:, 1:] = np.array(rows) / farthest
    levels: Weights = np.sqrt(shares)
    return levels


def name_measure(distances: Distances) -> str:
    """Return what is told of each head of A."""
    if distances.moved is not None:
        return "heads that moved, from A to the same head of B"
    return "each head of A, and the nearest of B"


def summarise_distances(distances: Distances) -> tuple[str, ...]:
    """Say in lines how far all heads are from the nearest, and from those of the same number."""
    if np.isnan(mean_of(distances.overall, 0)):
        return ("no row has two words that both see: there is nothing to measure",)
    overall = describe_nats(distances.overall)
    lines = [f"A and B: {overall}: all heads, each from the nearest of the other, both ways"]
    if distances.moved is not None:
        moved = describe_nats(mean_of(distances.moved, 1))
        lines.append(f"{moved}: all heads, each from that of the same number")
    return (*lines, DIVERGENCE_LINE)


def describe_nats(values: Doubles) -> str:
    """Describe divergences (text,) by their mean, with the deviation if there are several."""
    numbers = " ± ".join(f"{value:.3f}" for value in spread_over_texts(values))
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
    names, moved = distances.names[0], distances.moved
    divergences = mean_of(distances.to_nearest(0) if moved is None else moved, 0)
    layers = tuple(dict.fromkeys(layer for layer, _ in names))
    heads = tuple(dict.fromkeys(head for _, head in names))
    values = np.zeros((len(layers), len(heads)), np.float32)
    visible = np.zeros((len(layers), len(heads)), bool)
    for (layer, head), divergence in zip(names, divergences, strict=True):
        if not math.isnan(divergence):
            cell = layers.index(layer), heads.index(head)
            values[cell], visible[cell] = divergence, True
    largest = float(values.max())
    return Heatmap(
        f"{title}: {name_measure(distances)}",
        Panel(values, visible),
        number_axis("layers", [f"L{layer}" for layer in layers]),
        number_axis("heads", [column_name(head) for head in heads]),
        Scale(largest, largest),
        summarise_distances(distances),
    )


def number_axis(name: str, labels: Sequence[str]) -> Axis:
    """Return an axis of layers or heads."""
    return Axis(name, tuple(labels), tuple(range(len(labels))))
