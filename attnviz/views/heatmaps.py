"""The views: which matrices of a capture are drawn, and what is said of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from attnviz.analysis.statistics import tile, tiled
from attnviz.drawable import Axis, Grid, Heatmap, Page, Panel, Scale, Section, Strip
from attnviz.escape import escape
from attnviz.record import SCORES, AttentionMap, Capture, Floats, Unit, Visible
from attnviz.views.colour_scale import Look, beyond_line, covered, scale, shares, sink_line, sinks
from attnviz.views.labels import (
    KINDS,
    column_name,
    head_name,
    head_titles,
    kind_title,
    model_title,
    panels_title,
    short,
    sides,
    tokens_title,
)

Place: TypeAlias = tuple[
    AttentionMap, int, int
]  # a head of a capture: its map, and its place there
PLAIN = Look()
PAGE = 512  # cells on a side: what a browser loads at once, and an eye can tell apart
NAMED = 5  # tokens that are named as the strongest
FINITE = np.finfo(np.float32).min


def heatmaps(capture: Capture, look: Look = PLAIN) -> list[Heatmap]:
    """A heatmap for every layer and head of the capture."""
    return [heatmap(capture, *place, look) for place in places(capture.maps)]


def places(parts: Sequence[AttentionMap]) -> Iterator[Place]:
    """Every layer and head of maps."""
    return (
        (part, i, j)
        for part in parts
        for i in range(len(part.layers))
        for j in range(len(part.heads))
    )


def heatmap(
    capture: Capture, part: AttentionMap, layer: int, head: int, look: Look = PLAIN
) -> Heatmap:
    """One matrix of a map, by the places of its layer and head."""
    shown, taken, hidden = seen(part, layer, head)
    colours = scale([(shown, covered(part, hidden))], look, part.method)
    caption = (
        beyond_line(part, taken, hidden, colours) or sink_line([part], [(layer, head)]),
        pooled_line(part),
        *capture.notes,
    )
    return Heatmap(
        title(capture, *head_titles(part, layer, head)), shown, *sides(part), colours, told(caption)
    )


def grids(capture: Capture, look: Look = PLAIN) -> list[Grid]:
    """All layers and heads of the capture as thumbnails, a grid for each kind of map."""
    return [grid(capture, parts, look) for parts in by_kind(capture)]


def by_kind(capture: Capture) -> list[list[AttentionMap]]:
    """The maps of each kind."""
    kinds = dict.fromkeys(part.kind for part in capture.maps)
    return [[part for part in capture.maps if part.kind == kind] for kind in kinds]


def grid(capture: Capture, parts: Sequence[AttentionMap], look: Look = PLAIN) -> Grid:
    """The layers and heads of maps of one kind, on one colour scale."""
    found = {
        (part.layers[i], part.heads[j]): (part, *seen(part, i, j)) for part, i, j in places(parts)
    }
    layers = tuple(dict.fromkeys(layer for layer, _ in found))
    heads = tuple(dict.fromkeys(head for _, head in found))
    colours = scale(
        ((shown, covered(part, hidden)) for part, shown, _, hidden in found.values()),
        look,
        parts[0].method,
    )
    sunk = sink_line(parts)
    caption = (
        sunk and f"{sunk}, over all heads shown",
        "beyond the colours: sinks" if colours.has_beyond else "",
        pooled_line(parts[0]),
        *capture.notes,
    )
    panels = {place: shown for place, (_, shown, _, _) in found.items()}
    return Grid(
        title(
            capture, *kind_title(parts[0]), panels_title(len(panels), heads), tokens_title(parts)
        ),
        tuple(f"L{layer}" for layer in layers),
        tuple(map(column_name, heads)),
        tuple(tuple(panels.get((layer, head)) for head in heads) for layer in layers),
        colours,
        told(caption),
        max(len(side) for part in parts for side in (part.queries, part.keys)),
        f"{parts[0].unit}s",
    )


def strips(capture: Capture, look: Look = PLAIN, *, incoming: bool = False) -> list[Strip]:
    """For every layer and head, the text coloured by what one token attends to, or what attends to it.

    The capture shows that one query alone, or with ``incoming`` that one key.
    """
    return [strip(capture, *place, look, incoming=incoming) for place in places(capture.maps)]


def strip(
    capture: Capture, part: AttentionMap, layer: int, head: int, look: Look, *, incoming: bool
) -> Strip:
    """One of them."""
    shown, taken, hidden = seen(part, layer, head)
    one, tokens = sides(part)
    if incoming:
        one, tokens, shown, hidden = (
            tokens,
            one,
            Panel(shown.values.T, shown.visible.T),
            np.zeros(len(one), bool),
        )
    colours = scale([(shown, hidden)], look, part.method)
    token = token_title(one, part.unit)
    named = f"what attends to {token}" if incoming else f"what {token} attends to"
    chosen = (
        tokens.numbers.index(one.numbers[0])
        if part.kind != "cross" and one.numbers[0] in tokens.numbers
        else None
    )
    strongest = strongest_line(tokens, shown, colours)
    caption = strongest, beyond_line(part, taken, hidden, colours), *capture.notes
    return Strip(
        title(capture, *head_titles(part, layer, head), named),
        tokens,
        shown,
        chosen,
        colours,
        told(caption),
    )


def rows(capture: Capture, look: Look = PLAIN) -> list[Heatmap]:
    """One query over all layers and heads, a row a head: a picture for each kind of map and its keys.

    The capture shows that query alone.
    """
    found: dict[tuple[object, ...], list[AttentionMap]] = {}
    for part in capture.maps:
        found.setdefault((part.kind, part.keys), []).append(part)
    return [query_rows(capture, parts, look) for parts in found.values()]


def query_rows(capture: Capture, parts: Sequence[AttentionMap], look: Look = PLAIN) -> Heatmap:
    """The one query of maps of one kind, with the same keys."""
    first, found = parts[0], list(places(parts))
    panels = [panel(*place) for place in found]
    together = Panel(
        np.vstack([shown.values for shown in panels]),
        np.vstack([shown.visible for shown in panels]),
    )
    taken = together.values.sum(0) / (together.values.sum() or 1) * (first.method != SCORES)
    hidden = sinks(first, taken)
    colours = scale([(together, hidden)], look, first.method)
    one, keys = sides(first)
    names = tuple(head_name(part.layers[i], part.heads[j]) for part, i, j in found)
    return Heatmap(
        title(
            capture,
            *kind_title(first),
            token_title(one, first.unit),
            f"in {panels_title(len(found), first.heads)}",
        ),
        together,
        Axis("heads", names, tuple(range(len(names)))),
        keys,
        colours,
        told((beyond_line(first, taken, hidden, colours), *capture.notes)),
    )


def page(capture: Capture, look: Look = PLAIN, most: int = PAGE) -> Page:
    """Everything that the capture holds, in tiles where a text has more than so many tokens."""
    capture = replace(capture, maps=tuple(in_tiles(part, most) for part in capture.maps))
    sections = tuple(section(capture, parts, look) for parts in by_kind(capture))
    return Page(model_title(capture), sections, told(capture.notes))


def in_tiles(part: AttentionMap, most: int) -> AttentionMap:
    """A map in tiles, at most so many on a side, which are shown by the number of the largest size in each."""
    found = tiled(part, most)
    if part.method != SCORES or part.weights is None or found.tiles is None:
        return found
    high, low = found.tiles.max, -tile(-part.weights, most).max
    return replace(found, tiles=replace(found.tiles, max=np.where(high >= -low, high, low)))


def section(capture: Capture, parts: Sequence[AttentionMap], look: Look) -> Section:
    """The maps of one kind."""
    small = grid(capture, parts, look)
    large = {
        (part.layers[i], part.heads[j]): heatmap(capture, part, i, j, look)
        for part, i, j in places(parts)
    }
    layers = tuple(dict.fromkeys(layer for layer, _ in large))
    heads = tuple(dict.fromkeys(head for _, head in large))
    return Section(
        KINDS[parts[0].kind],
        small,
        tuple(tuple(large.get((layer, head)) for head in heads) for layer in layers),
    )


def seen(part: AttentionMap, layer: int, head: int) -> tuple[Panel, Floats, Visible]:
    """The panel of a head, the share of the weight that each key takes (key), and which are sinks (key)."""
    shown = panel(part, layer, head)
    taken = shares(part, layer, head, shown)
    return shown, taken, sinks(part, taken)


def panel(part: AttentionMap, layer: int, head: int) -> Panel:
    """The weights of a head, or the largest of each tile. Raises ValueError if only statistics were kept."""
    shown = part.tiles.max if part.weights is None and part.tiles else part.weights
    if shown is None:
        raise ValueError("this capture has no weights and no tiles to draw")
    return Panel(shown[layer, head], part.visible[layer, head])


def title(capture: Capture, *parts: str) -> str:
    """What is drawn, from the model on."""
    return " · ".join((model_title(capture), *parts))


def token_title(axis: Axis, unit: Unit = "token") -> str:
    """The one token, or word, of an axis."""
    return f"{unit} {axis.numbers[0]} {short(axis.labels[0])}"


def told(lines: Sequence[str]) -> tuple[str, ...]:
    """The lines of a caption that say something; notes may come from anyone."""
    return tuple(escape(line) for line in lines if line)


def pooled_line(part: AttentionMap) -> str:
    """What a mean over heads of tiles is, which is not a mean of weights; empty where there is no such thing."""
    averaged = part.weights is None and part.tiles is not None and "mean" in part.heads
    return (
        "a cell is the mean over the heads of the largest weight that each has in it"
        if averaged
        else ""
    )


def strongest_line(tokens: Axis, shown: Panel, colours: Scale) -> str:
    """The tokens with the largest weights of a row, by name and number; of other numbers, that sinks are among them."""
    values = np.where(shown.visible[0], shown.values[0], -np.inf)
    least = (
        -np.inf if colours.signed else 0.005 * (min(colours.largest, 1.0) if colours.of else 1.0)
    )
    order = [
        i for i in np.argsort(-values, kind="stable")[:NAMED] if values[i] >= max(least, FINITE)
    ]
    named = ", ".join(
        f"{short(tokens.labels[i])} ({tokens.numbers[i]}) {told_of(values[i], colours)}"
        for i in order
    )
    return f"strongest{', sinks included' * bool(colours.of)}: {named}" if named else ""


def told_of(value: float, colours: Scale) -> str:
    """A number to two digits after the point, or as many in all where numbers may be of any size."""
    return f"{value:.2g}" if colours.small else f"{value:.2f}"
