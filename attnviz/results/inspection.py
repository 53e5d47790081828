"""Tables: what heads do in numbers, what one token gives and gets, what segments of a text get."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from attnviz.analysis.measures import COLUMNS, Measures, ratio
from attnviz.analysis.segments import Shares
from attnviz.analysis.statistics import mean_of
from attnviz.drawable import Axis, Heatmap, Panel, Table
from attnviz.escape import escape
from attnviz.methods import is_other
from attnviz.record import ATTENTION, SCORES, AttentionMap, Capture, Doubles, Floats, Segment, Visible
from attnviz.views.colour_scale import Look, scale
from attnviz.views.heatmaps import panel, places, title, token_title, told
from attnviz.views.labels import column_name, head_name, kind_title, panels_title, sides, tokens_title

RISING = {"entropy", "span", "normalised"}  # of which the smallest come first: heads that know where to look
BY_PLACE = "head"  # the order of layers and heads, in place of that of a column
FAINT = 5e-4  # a weight that two digits show as nothing


class Heads(NamedTuple):
    """What was measured of the heads of captures, the texts of which may differ."""

    title: str
    names: tuple[str, ...]
    means: Measures
    """(head,) by column: the number of one text, or the mean of several."""
    sds: Measures
    """The same of standard deviations; NaN of one text."""
    notes: tuple[str, ...]


def heads_title(captures: Sequence[Capture]) -> str:
    """The model, what attends to what, and how much text there was; captures are of the same heads."""
    first = captures[0]
    count = sum(1 for _ in places(first.maps))
    lengths = [len(part.queries) for capture in captures for part in capture.maps[:1]]
    many = f"{len(captures)} texts of {min(lengths)}-{max(lengths)} {first.maps[0].unit}s"
    length = many if len(captures) > 1 else tokens_title(first.maps)
    return title(first, *kind_title(first.maps[0]), panels_title(count, first.maps[0].heads), length)


def head_names(parts: Sequence[AttentionMap]) -> tuple[str, ...]:
    """The short name of each head of maps."""
    return tuple(head_name(part.layers[i], part.heads[j]) for part, i, j in places(parts))


def heads_table(found: Heads, sort: str, *, reverse: bool, most: int | None, spread: bool) -> Table:
    """A row a head, so many at most, in the order of a column; the last row is the mean of all.

    spread: standard deviations stand beside all means, else beside those of the column alone that gives the order.
    """
    order = ordered(found, sort, reverse)[:most]
    defined = [name for name, values in found.means.items() if np.isfinite(values).any()]
    columns = defined or [*found.means]
    means = {name: float(mean_of(found.means[name], 0)) for name in columns}
    cells = [
        tuple(told_with(found, name, i, spread=spread or name == sort) for name in columns) for i in order.tolist()
    ]
    levels = np.stack([level(name, found.means[name])[order] for name in columns], axis=-1)
    gaps = any(not text for row in cells for text in row)
    blank = np.full((1, len(columns)), np.nan)
    return Table(
        found.title,
        "head",
        tuple(COLUMNS[name].heading for name in columns),
        (*(found.names[i] for i in order), "mean"),
        (*cells, tuple(digits(means[name], COLUMNS[name].unit) for name in columns)),
        np.concatenate([levels, blank]).astype(np.float32),
        told((order_line(found, sort, reverse, len(order)) + "; empty: undefined" * gaps, *found.notes)),
    )


def ordered(found: Heads, sort: str, reverse: bool) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The places of heads in the order of a column, those that it says nothing of at last."""
    if sort == BY_PLACE:
        order = np.arange(len(found.names))
        return order[::-1] if reverse else order
    sign = 1 if (sort in RISING) != reverse else -1
    return np.argsort(sign * found.means[sort], kind="stable")


def order_line(found: Heads, sort: str, reverse: bool, shown: int) -> str:
    """Which heads are shown, and in which order."""
    count = len(found.names)
    many = f"{count} head{'s' * (count != 1)}" if shown == count else f"{shown} of {count} heads"
    order = f"{'smallest' if (sort in RISING) != reverse else 'largest'} {sort} first"
    if sort == BY_PLACE:
        order = "the last first" if reverse else "by layer and head"
    return f"{many}, {order}; mean: of all {count}"


def told_with(found: Heads, name: str, head: int, *, spread: bool) -> str:
    """A mean, and its standard deviation if there is one to be told."""
    unit, sd = COLUMNS[name].unit, found.sds[name][head]
    beside = f"±{digits(sd, unit)}" if spread and np.isfinite(sd) else ""
    return digits(found.means[name][head], unit) + beside


def digits(value: float, unit: str = "") -> str:
    """A number to three digits, a share to two; nothing if undefined."""
    if not np.isfinite(value):
        return ""
    if unit == "share":
        return f"{abs(value):.2f}".removeprefix("0")
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def level(name: str, values: Doubles) -> Doubles:
    """The place of numbers on the colours: shares from 0 to 1, others from 0 to the largest."""
    top = 1.0 if COLUMNS[name].unit == "share" else largest(values) or 1.0
    found: Doubles = np.clip(values / top, 0, 1)
    return found


def largest(values: Doubles) -> float:
    """The largest of those that are defined; 0 if none is."""
    return float(np.nan_to_num(values).max())


class Side(NamedTuple):
    """The weights between one token and each of an axis, by head."""

    heading: str
    values: Doubles
    """(head, token), 0 where masked."""
    visible: Visible
    """(head, token)."""
    method: str = ATTENTION
    """What the numbers are."""


def side(capture: Capture, heading: str) -> tuple[Side, Axis, Axis]:
    """What a capture of one query, or of one key, holds; the axis of that token, and that of the others."""
    rows, columns = sides(capture.maps[0])
    panels = [panel(*place) for place in places(capture.maps)]
    values, visible = (np.stack([np.ravel(array) for array in arrays]) for arrays in zip(*panels, strict=True))
    one, others = (rows, columns) if heading == GIVES else (columns, rows)
    return Side(heading, values.astype(np.float64), visible, capture.maps[0].method), one, others


GIVES, GETS = "gives", "gets"


def token_table(capture: Capture, one: Axis, others: Axis, found: Sequence[Side], most: int | None) -> Table:
    """What one token gives to others and gets from them, as means over the heads that see them, in their order.

    Of many tokens, those of the largest means.
    """
    names = head_names(capture.maps)
    means = np.stack([ratio((of.values * of.visible).sum(0), of.visible.sum(0).astype(float)) for of in found], -1)
    order = np.argsort(-np.where(np.isfinite(means), means, -np.inf).max(-1), kind="stable")
    shown = np.sort(order[:most]).tolist()
    levels = np.full((len(shown), 2 * len(found)), np.nan)
    if found[0].method != SCORES:  # which would need colours with two ends
        levels[:, ::2] = np.sqrt(means[shown] / (largest(means) or 1))  # as other weights are coloured
    masked = "" if np.isfinite(means[shown]).all() else "; empty: masked"
    with_sinks = ", sinks included" * is_other(found[0].method)
    left = "" if len(shown) == len(others) else f"the {len(shown)} strongest of {len(others)} tokens{with_sinks}; "
    return Table(
        title(capture, *kind_title(capture.maps[0]), token_title(one), panels_title(len(names), capture.maps[0].heads)),
        "token",
        tuple(heading for of in found for heading in (of.heading, "most by")),
        tuple(f"{others.numbers[i]} {others.labels[i]}" for i in shown),
        tuple(tuple(text for of in found for text in (mean_cell(of, i), most_cell(of, i, names))) for i in shown),
        levels.astype(np.float32),
        told((f"{left}means over the heads{masked}", *capture.notes)),
        frozenset(range(1, 2 * len(found), 2)),
    )


def mean_cell(of: Side, token: int) -> str:
    """The mean weight between the one token and this; empty if no head sees it."""
    return cell(float(mean_of(of.values[:, token][of.visible[:, token]], 0)), of.method)


def most_cell(of: Side, token: int, names: Sequence[str]) -> str:
    """The head with the largest weight between them, and that weight."""
    values = np.where(of.visible[:, token], of.values[:, token], -np.inf)
    best = int(values.argmax())
    least = np.finfo(np.float64).min if of.method == SCORES else 0.0 if is_other(of.method) else FAINT
    return f"{names[best]} {cell(values[best], of.method)}" if values[best] >= least else ""


def cell(value: float, method: str) -> str:
    """A number of a map: a weight to two digits, a score with its sign, others to two digits of their own."""
    if method == SCORES and np.isfinite(value):
        return f"{value:+.2f}"
    if is_other(method) and 0 < value < 0.1:
        return f"{value:.2g}"
    return digits(value, "share")


def cell_heatmap(capture: Capture) -> Heatmap:
    """One cell through all layers and heads: a row a layer. The capture shows that query and that key alone."""
    parts = capture.maps
    (query, key), found = sides(parts[0]), list(places(parts))
    layers = tuple(dict.fromkeys(part.layers[i] for part, i, _ in found))
    heads = tuple(dict.fromkeys(part.heads[j] for part, _, j in found))
    values = np.zeros((len(layers), len(heads)), np.float32)
    visible = np.zeros(values.shape, bool)
    for part, i, j in found:
        at, one = (layers.index(part.layers[i]), heads.index(part.heads[j])), panel(part, i, j)
        values[at], visible[at] = one.values[0, 0], one.visible[0, 0]
    masked = sum(not panel(*place).visible.any() for place in found)
    shown = Panel(values, visible)
    line = f"masked in {'all' if masked == len(found) else masked} of the {len(found)} heads" if masked else ""
    return Heatmap(
        title(capture, *kind_title(parts[0]), f"{token_title(query)} to {token_title(key)}"),
        shown,
        Axis("layers", tuple(f"L{layer}" for layer in layers), layers),
        Axis("heads", tuple(map(column_name, heads)), tuple(range(len(heads)))),
        scale([(shown, np.zeros(len(heads), bool))], Look(), parts[0].method),
        told((line, *capture.notes)),
    )


def segments_table(
    capture: Capture, segments: Sequence[Segment], found: Shares, names: Sequence[str], query: Axis | None
) -> Table:
    """A row a segment: means over the heads of what it gets, with and without the tokens on which heads rest.

    found: of all heads, (head, segment). query: the one that was asked about, if there was one.
    """
    columns, levels = segment_columns(found)
    asked = (token_title(query),) if query else ()
    many = panels_title(len(names), capture.maps[0].heads)
    cells = [
        [*column, most_lift(found.rest_lift[:, i], names)]
        for i, column in enumerate(zip(*columns.values(), strict=True))
    ]
    return Table(
        title(capture, *kind_title(capture.maps[0]), f"{len(segments)} segments", *asked, many),
        "segment",
        (*columns, "most by"),
        tuple(escape(one.name) for one in segments),
        tuple(map(tuple, cells)),
        np.stack([levels.get(name, np.full(len(segments), np.nan)) for name in (*columns, "most by")], -1),
        told((*segment_lines(found, asked=query is not None), *capture.notes)),
        frozenset({len(columns)}),
    )


def segment_columns(found: Shares) -> tuple[dict[str, list[str]], dict[str, Floats]]:
    """The columns of segments by heading, and the places on the colours of those that are coloured, (segment,)."""
    share, even, rest, rest_even = (mean_of(values, 0) for values in found[:4])  # (segment,)
    lift, rest_lift = ratio(share, even), ratio(rest, rest_even)
    each = ratio(share, found.tokens.astype(float))
    top = max(largest(lift), largest(rest_lift), 1)
    columns = {
        "tokens": [str(count) for count in found.tokens.tolist()],
        "each": [small(value) for value in each],
        "share": [digits(value, "share") for value in share],
        "even": [digits(value, "share") for value in even],
        "lift": [digits(value) for value in lift],
        "rest": [digits(value, "share") for value in rest],
        "lift*": [digits(value) for value in rest_lift],
    }
    coloured = {"share": share, "lift": lift / top, "rest": rest, "lift*": rest_lift / top}
    return columns, {name: values.astype(np.float32) for name, values in coloured.items()}


def segment_lines(found: Shares, *, asked: bool) -> tuple[str, ...]:
    """What the columns of segments are, and why some are empty."""
    unseen = not np.isfinite(found.share).any(0).all()
    why = "this query sees nothing of it" if asked else "no query outside it sees it: --query -1 asks the last token"
    whose = "this query" if asked else "the queries outside a segment that see it"
    return (
        f"share: of the attention of {whose}; even: if spread evenly over the keys; lift: share / even; "
        "rest, lift*: without special and first tokens; each: share of a token; most by: the head of the largest lift*",
        f"empty: {why}" if unseen else "",
    )


def small(value: float) -> str:
    """A number to four digits after the point; nothing if undefined."""
    return f"{value:.4f}".removeprefix("0") if np.isfinite(value) else ""


def most_lift(values: Doubles, names: Sequence[str]) -> str:
    """The head of the largest lift, and that."""
    if not np.isfinite(values).any():
        return ""
    best = int(np.nanargmax(values))
    return f"{names[best]} {digits(values[best])}"
