"""The page of a comparison: every head of A and of B, and the difference from A to B."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from attnviz.analysis.comparison import Comparison, Name, Side
from attnviz.analysis.divergence import restricted
from attnviz.drawable import Axis, Grid, Heatmap, Page, Panel, Section
from attnviz.errors import InputError
from attnviz.record import AttentionMap, Capture, Visible
from attnviz.results.comparison import (
    ComparisonResult,
    difference,
    explain_signs,
    has_same_heads,
    heads_of_layer,
    list_coverage,
    make_difference_scale,
    map_of_side,
    method_of_side,
    pair_head,
    summarise_distances,
    title_comparison,
)
from attnviz.views.colour_scale import Look
from attnviz.views.heatmaps import PAGE, PLAIN, grid, heatmap, places
from attnviz.views.labels import column_name, head_name, model_title, sides


def make_comparison_page(result: ComparisonResult, look: Look = PLAIN) -> Page:
    """Make a page of all heads of both sides, and of what each head of A has more than that of B.

    Raises InputError for more words than a page holds.
    """
    comparison = result.first
    a, b = comparison.a, comparison.b
    if len(a.queries) > PAGE or len(a.keys) > PAGE:
        raise InputError(
            f"a page compares texts of {PAGE} words at most, and here are {len(a.keys)}: choose "
            "another format, or a shorter text"
        )
    sections = (
        make_side_section("A", a, b, look),
        make_side_section("B", b, a, look),
        make_difference_section(result, look),
    )
    caption = *list_coverage(comparison), *summarise_distances(result.distances)
    return Page(title_comparison(comparison), sections, caption)


def make_side_section(letter: str, side: Side, other: Side, look: Look) -> Section:
    """Draw all heads of one side, where the other side may attend too."""
    visible_to_other = other.mean(other.names)[1]
    maps = tuple(map_of_layer(side, layer, visible_to_other) for layer in side.layers)
    capture = Capture(side.capture.model, side.capture.text, maps)
    heatmaps: dict[Name, Heatmap] = {}
    for each, layer, head in places(maps):
        name = each.layers[layer], each.heads[head]
        heatmaps[name] = heatmap(capture, each, layer, head, look)
    return arrange_section(f"{letter} {model_title(capture)}", grid(capture, maps, look), heatmaps)


def map_of_layer(side: Side, layer: int, visible_to_other: Visible) -> AttentionMap:
    """Return the heads of a layer between common words, where the other side may attend too."""
    names = heads_of_layer(side, layer)
    matrices = [side.head(name) for name in names]
    visible = np.stack([visible for _, visible in matrices])[None] & visible_to_other
    weights = restricted(np.stack([weights for weights, _ in matrices])[None], visible)
    heads = tuple(head for _, head in names)
    return map_of_side(side, layer, heads, weights, visible)


def make_difference_section(result: ComparisonResult, look: Look) -> Section:
    """Draw each head of A less the head of B that stands beside it."""
    comparison = result.first
    method = method_of_side(comparison.a)
    queries, keys = label_axes(comparison)
    heatmaps: dict[Name, Heatmap] = {}
    for name in comparison.a.names:
        groups = pair_head(comparison, result.distances, name)
        a, b, visible = comparison.pair(*groups)
        title = f"A {head_name(*groups.a[0])} - B {head_name(*groups.b[0])}"
        heatmaps[name] = difference(title, Panel(a - b, visible), queries, keys, look, method)
    largest = max(each.scale.top for each in heatmaps.values())
    other = "the same of B" if has_same_heads(comparison) else "the nearest of B"
    layers = dict.fromkeys(layer for layer, _ in heatmaps)
    heads = dict.fromkeys(head for _, head in heatmaps)
    thumbnails = Grid(
        f"A - B: each head of A less {other}",
        tuple(f"L{layer}" for layer in layers),
        tuple(column_name(head) for head in heads),
        (),
        make_difference_scale(largest, largest, look, method),
        (explain_signs(method),),
        max(len(queries), len(keys)),
        queries.unit,
    )
    return arrange_section("A - B", thumbnails, heatmaps)


def label_axes(comparison: Comparison) -> tuple[Axis, Axis]:
    """Return the common queries and keys as axes."""
    a = comparison.a
    nothing = np.zeros((1, 1, len(a.queries), len(a.keys)), np.float32)
    return sides(map_of_side(a, 0, (0,), nothing, np.array(True)))


def arrange_section(title: str, thumbnails: Grid, heatmaps: Mapping[Name, Heatmap]) -> Section:
    """Return a section of heatmaps by layer and head, large, and small as the panels of a grid."""
    layers = tuple(dict.fromkeys(layer for layer, _ in heatmaps))
    heads = tuple(dict.fromkeys(head for _, head in heatmaps))
    rows = tuple(tuple(heatmaps.get((layer, head)) for head in heads) for layer in layers)
    panels = tuple(tuple(each.panel if each else None for each in row) for row in rows)
    return Section(title, replace(thumbnails, panels=panels), rows)
