"""What is drawn of a comparison: A, B and their difference; each head of A with the head of B that is nearest to it."""

from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from typing import NamedTuple

import numpy as np

from attnviz.analysis.comparison import Comparison, Distances, Name, Side, compare
from attnviz.analysis.divergence import restricted
from attnviz.analysis.statistics import deviation_of, mean_of
from attnviz.drawable import Axis, Grid, Heatmap, Page, Panel, Scale, Section, Series, Table
from attnviz.errors import InputError
from attnviz.escape import escape
from attnviz.methods import is_other, method_line, methods_of, noun
from attnviz.record import ATTENTION, GIVEN, SCORES, AttentionMap, Capture, Doubles, Visible, Weights
from attnviz.views.colour_scale import Look
from attnviz.views.heatmaps import PAGE, PLAIN, grid, heatmap, places
from attnviz.views.labels import column_name, head_name, model_title, short, sides

SIGNS = "positive: A attends more, negative: B"


NO_SHARES = (
    "rows are compared as shares that sum to 1, and scores are none: softmaxed they are the weights: use --weights "
    "attention"
)


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
    """Raise InputError unless both hold numbers of one method, of which rows can be made to sum to 1."""
    methods = {*methods_of(a.maps), *methods_of(b.maps)} - {GIVEN}
    if SCORES in methods:
        raise InputError(NO_SHARES)
    if len(methods) > 1:
        names = " and ".join(sorted(methods))
        raise InputError(f"A and B are of {names}, which cannot be compared: make both with the same --weights")


class Chosen(NamedTuple):
    """The heads of A, and of B, that are drawn beside each other: one each, or the mean of several of a layer."""

    a: tuple[Name, ...]
    b: tuple[Name, ...]


def last_layers(comparison: Comparison, names: Sequence[Name] = ()) -> Chosen:
    """Heads of the last layer of A that is among these, or that there is, and the same of B, or those of its last."""
    a, b = comparison.a, comparison.b
    last = (names or a.names)[-1][0]
    mine = tuple(name for name in names or a.names if name[0] == last)
    return Chosen(mine, mine if same_heads(comparison) else of_layer(b, b.layers[-1]))


def same_heads(comparison: Comparison) -> bool:
    """Whether both have the same layers and heads."""
    return comparison.a.names == comparison.b.names


def of_layer(side: Side, layer: int) -> tuple[Name, ...]:
    """The heads of a layer."""
    return tuple(each for each in side.names if each[0] == layer)


def counterpart(comparison: Comparison, distances: Distances, head: Name) -> Chosen:
    """One head of A, and that of B of the same name, or the nearest where the two have other heads."""
    at = comparison.a.names.index(head)
    found = distances.nearest(0)[at]
    other = head if same_heads(comparison) or found is None else comparison.b.names[found]
    return Chosen((head,), (other if other in comparison.b.names else comparison.b.names[0],))


def series(comparison: Comparison, chosen: Chosen, look: Look = PLAIN) -> Series:
    """The chosen heads of A, of B, and A - B, on the words that both have and the cells that both see."""
    a, b, seen = comparison.pair(*chosen)

    def both(look: Look) -> list[Heatmap]:
        return [
            one("A ", comparison.a, chosen.a, a[None, None], seen, look),
            one("B ", comparison.b, chosen.b, b[None, None], seen, look),
        ]

    drawn = both(look)
    if not all(each.scale.has_beyond for each in drawn):  # nothing is beyond colours that both share
        drawn = both(look._replace(whole=True))
    shared = Scale(max(each.scale.top for each in drawn), max(each.scale.largest for each in drawn), look.linear)
    drawn = [replace(each, scale=shared) for each in drawn]
    apart = difference("A - B", Panel(a - b, seen), drawn[0].rows, drawn[0].columns, look, method_of(comparison.a))
    return Series(series_title(comparison), (*drawn, apart), told(comparison))


def one(letter: str, side: Side, names: Sequence[Name], weights: Weights, seen: Visible, look: Look) -> Heatmap:
    """Weights (1, 1, query, key) of the common words, of one head or of the mean of several."""
    layer, head = names[0] if len(names) == 1 else (names[0][0], "mean")
    part = of_side(side, layer, (head,), weights, seen)
    shown = heatmap(Capture(side.capture.model, side.capture.text, (part,)), part, 0, 0, look)
    some = 1 < len(names) < len(of_layer(side, layer))
    told_of = (f"mean over heads {', '.join(str(number) for _, number in names)}",) * some
    return replace(shown, title=f"{letter}{shown.title}", caption=(*told_of, *shown.caption))


def of_side(side: Side, layer: int, heads: tuple[int | str, ...], weights: Weights, seen: Visible) -> AttentionMap:
    """Weights (1, head, query, key) of the common words as a map."""
    kind = side.capture.maps[0].kind
    return AttentionMap(kind, (layer,), heads, side.queries, side.keys, weights, seen, method_of(side), unit="word")


def method_of(side: Side) -> str:
    """What the numbers of a side were before their rows were made to sum to 1."""
    return side.capture.maps[0].method


def difference(title: str, panel: Panel, rows: Axis, columns: Axis, look: Look, method: str = ATTENTION) -> Heatmap:
    """Differences on a scale with 0 in its middle."""
    largest = float(np.abs(panel.values[panel.visible]).max(initial=0))
    caption = (signs(method) if largest else "no difference",)
    return Heatmap(title, panel, rows, columns, apart_scale(largest or 1.0, largest, look, method), caption)


def apart_scale(top: float, largest: float, look: Look, method: str) -> Scale:
    """The scale of differences of the rows that numbers make."""
    of = f"difference of {noun(method)}s" if is_other(method) else ""
    return Scale(top, largest, look.linear, signed=True, of=of)


def signs(method: str) -> str:
    """What the signs of differences mean."""
    return "positive: larger in A, negative: in B" if is_other(method) else SIGNS


def series_title(comparison: Comparison) -> str:
    """What is compared."""
    a, b = (model_title(side.capture) for side in (comparison.a, comparison.b))
    return f"A {a} · B {b}"


def describe_coverage(comparison: Comparison) -> str:
    """On how much of both they are compared."""
    a, b = comparison.a, comparison.b
    every = a.words == b.words == a.common
    words = f"all {count(a.common)}" if every else f"{count(a.common)} of {a.words} in A and {b.words} in B"
    sinks = ", sinks included" * is_other(method_of(a))
    return f"compared on {words}, where both may attend; rows sum to 1 there{sinks}"


def method_lines(comparison: Comparison) -> tuple[str, ...]:
    """What the numbers are that are no weights, and that sinks are among them."""
    parts = [side.capture.maps[0] for side in (comparison.a, comparison.b)]
    lines = dict.fromkeys(
        f"{line}; rows made to sum to 1, sinks included" for part in parts if (line := method_line(part))
    )
    return tuple(lines)


def told(comparison: Comparison) -> tuple[str, ...]:
    """What is compared of both, and what is left out."""
    a, b = comparison.a, comparison.b
    lines = []
    if a.capture.text != b.capture.text:
        lines = [f"{letter}: {short(escape(side.capture.text))}" for letter, side in (("A", a), ("B", b))]
    lines.append(describe_coverage(comparison))
    outside = [(letter, side.outside) for letter, side in (("A", a), ("B", b)) if side.outside >= 0.0005]
    if outside:
        of = noun(method_of(a))
        shares = ", ".join(f"{share:.1%} of the {of} of {letter}" for letter, share in outside)
        lines.append(f"left out, on tokens that the other does not have: {shares}")
    unseen = [(letter, share) for letter, share in (("A", a.unseen(b)), ("B", b.unseen(a))) if share >= 0.0005]
    if unseen:
        shares = ", ".join(f"{share:.1%} of what is left of {letter}" for letter, share in unseen)
        lines.append(f"left out, where the other may not attend: {shares}")
    if len(a.rows) < len(a.queries):
        lines.append(f"numbers are of {len(a.rows)} of the {len(a.queries)} queries, evenly spread")
    return (*lines, *both_notes(a.capture.notes, b.capture.notes))


def both_notes(a: Sequence[str], b: Sequence[str]) -> tuple[str, ...]:
    """The notes of both; what only one says, under its letter."""
    apart = (("A: " * (note not in b) or "B: " * (note not in a), note) for note in dict.fromkeys((*a, *b)))
    return tuple(letter + escape(note) for letter, note in apart)


def count(words: int) -> str:
    """So many words."""
    return f"{words} word{'s' * (words != 1)}"


def table(title: str, distances: Distances, heads: Sequence[Name], most: int | None = None) -> Table:
    """The heads of A that moved most, or that are farthest from any of B; at most so many."""
    places_ = [distances.names[0].index(head) for head in heads]
    nearest, near, moved = distances.nearest(0), distances.to_nearest(0), distances.moved
    order = by(mean_of(near if moved is None else moved, 0), places_)
    shown = order[:most]
    columns = ["nearest", "JS", "± sd"] + (["moved", "± sd"] if moved is not None else [])
    columns = columns if len(distances.divergence) > 1 else [each for each in columns if each != "± sd"]
    farthest = max(np.nanmax(near, initial=0), np.nanmax(near if moved is None else moved, initial=0)) or 1
    cells, levels = [], []
    for at in shown:
        other = nearest[at]
        values = [part for each in ([near] if moved is None else [near, moved]) for part in spread(each[:, at])]
        cells.append(("—" if other is None else head_name(*distances.names[1][other]), *map(decimals, values)))
        levels.append([np.nan, *(value / farthest for value in values)])
    return Table(
        f"{title}: {table_title(distances)}",
        "head of A",
        tuple(columns),
        tuple(head_name(*distances.names[0][at]) for at in shown),
        tuple(cells),
        np.sqrt(np.array(levels, np.float32)).reshape(len(cells), len(columns)),
        (*summary(distances), *left(len(order) - len(shown))),
        frozenset({0}),
    )


def by(values: Doubles, places_: Sequence[int]) -> list[int]:
    """Places, the largest value first, those without one at last."""
    return sorted(places_, key=lambda at: -np.inf if isnan(values[at]) else values[at], reverse=True)


def spread(values: Doubles) -> list[float]:
    """The mean over texts, and the deviation if there are several."""
    return [float(mean_of(values, 0))] + [float(deviation_of(values, 0))] * (len(values) > 1)


def decimals(value: float) -> str:
    """A divergence to three digits, nothing for none."""
    return "" if isnan(value) else f"{value:.3f}"


def table_title(distances: Distances) -> str:
    """What the table tells."""
    if distances.moved is not None:
        return "heads that moved, from A to the same head of B"
    return "each head of A, and the nearest of B"


def summary(distances: Distances) -> tuple[str, ...]:
    """The one number, and how far heads are from those of the same name."""
    value, *sd = spread(distances.overall)
    if isnan(value):
        return ("no row has two words that both see: there is nothing to measure",)
    spread_told, texts = (f" ± {sd[0]:.3f}", f" over {len(distances.divergence)} texts") if sd else ("", "")
    lines = [f"A and B: {value:.3f}{spread_told} nats{texts}: all heads, each from the nearest of the other, both ways"]
    if distances.moved is not None:
        value, *sd = spread(mean_of(distances.moved, 1))
        spread_told = f" ± {sd[0]:.3f}" if sd else ""
        lines.append(f"{value:.3f}{spread_told} nats{texts}: all heads, each from that of the same number")
    return (*lines, "Jensen-Shannon divergence, mean over queries: 0 for the same rows, 0.693 (ln 2) at most")


def left(count: int) -> tuple[str, ...]:
    """How many heads are not shown."""
    return (f"{count} more: --top all, --json or -o FILE.csv",) if count else ()


def head_map(title: str, distances: Distances) -> Heatmap:
    """The divergence of each head of A from the nearest of B, or from its own, a row a layer."""
    names, moved = distances.names[0], distances.moved
    values = mean_of(distances.to_nearest(0) if moved is None else moved, 0)
    layers, heads = (tuple(dict.fromkeys(part)) for part in zip(*names, strict=True))
    panel = Panel(np.zeros((len(layers), len(heads)), np.float32), np.zeros((len(layers), len(heads)), bool))
    for (layer, head), value in zip(names, values, strict=True):
        at = layers.index(layer), heads.index(head)
        panel.values[at], panel.visible[at] = (0, False) if isnan(value) else (value, True)
    return Heatmap(
        f"{title}: {table_title(distances)}",
        panel,
        numbered("layers", tuple(f"L{layer}" for layer in layers)),
        numbered("heads", tuple(map(column_name, heads))),
        Scale(float(panel.values.max()), float(panel.values.max())),
        summary(distances),
    )


def numbered(title: str, labels: tuple[str, ...]) -> Axis:
    """An axis of layers or heads."""
    return Axis(title, labels, tuple(range(len(labels))))


def page(comparison: Comparison, distances: Distances, look: Look = PLAIN) -> Page:
    """Every head of A and of B on what is compared, and the difference of each head of A from its counterpart.

    Raises ValueError for more than PAGE words.
    """
    if len(comparison.a.queries) > PAGE or len(comparison.a.keys) > PAGE:
        raise ValueError(f"a page compares texts of {PAGE} words at most, and here are {len(comparison.a.keys)}")
    a, b = comparison.a, comparison.b
    captures = [whole(a, b.mean(b.names)[1]), whole(b, a.mean(a.names)[1])]
    sections = [
        section(f"{letter} {model_title(each)}", each, look) for letter, each in zip("AB", captures, strict=True)
    ]
    apart = differences(comparison, distances, look)
    return Page(series_title(comparison), (*sections, apart), (*told(comparison), *summary(distances)))


def whole(side: Side, seen: Visible) -> Capture:
    """All heads of a side between the common words, where the other side may attend too (query, key)."""

    def layer_of(layer: int) -> AttentionMap:
        names = of_layer(side, layer)
        found = [side.head(name) for name in names]
        visible = np.stack([visible for _, visible in found])[None] & seen
        weights = restricted(np.stack([weights for weights, _ in found])[None], visible)
        return of_side(side, layer, tuple(head for _, head in names), weights, visible)

    return Capture(side.capture.model, side.capture.text, tuple(map(layer_of, side.layers)))


def section(title: str, capture: Capture, look: Look) -> Section:
    """All heads of one side."""
    found = {(part.layers[i], part.heads[j]): heatmap(capture, part, i, j, look) for part, i, j in places(capture.maps)}
    return arranged(title, grid(capture, capture.maps, look), found)


def differences(comparison: Comparison, distances: Distances, look: Look) -> Section:
    """Each head of A less its counterpart of B."""
    found: dict[Name, Heatmap] = {}
    nothing = np.zeros((1, 1, len(comparison.a.queries), len(comparison.a.keys)), np.float32)
    axes = sides(of_side(comparison.a, 0, (0,), nothing, np.array(True)))
    for head in comparison.a.names:
        chosen = counterpart(comparison, distances, head)
        a, b, seen = comparison.pair(*chosen)
        title = f"A {head_name(*chosen.a[0])} - B {head_name(*chosen.b[0])}"
        found[head] = difference(title, Panel(a - b, seen), *axes, look, method_of(comparison.a))
    largest = max(each.scale.top for each in found.values())
    small = Grid(
        "A - B: each head of A less " + ("the same of B" if same_heads(comparison) else "the nearest of B"),
        tuple(f"L{layer}" for layer in dict.fromkeys(layer for layer, _ in found)),
        tuple(map(column_name, dict.fromkeys(head for _, head in found))),
        (),
        apart_scale(largest, largest, look, method_of(comparison.a)),
        (signs(method_of(comparison.a)),),
        max(map(len, axes)),
        axes[0].unit,
    )
    return arranged("A - B", small, found)


def arranged(title: str, small: Grid, found: dict[Name, Heatmap]) -> Section:
    """Heatmaps by layer and head, large and small."""
    layers, heads = (tuple(dict.fromkeys(part)) for part in zip(*found, strict=True))
    rows = tuple(tuple(found.get((layer, head)) for head in heads) for layer in layers)
    panels = tuple(tuple(each.panel if each else None for each in row) for row in rows)
    return Section(title, replace(small, panels=panels), rows)
