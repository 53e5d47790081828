"""The page of a comparison: every head of A and of B, and the difference from A to B."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from attnviz.analysis.comparison import Comparison, HeadName, Side
from attnviz.analysis.divergence import restrict_rows
from attnviz.drawable import Axis, Grid, Heatmap, Page, Panel, Section
from attnviz.errors import InputError
from attnviz.record import AttentionMap, Capture, Visible
from attnviz.results.comparison import (
    ComparisonResult,
    draw_difference,
    explain_signs,
    has_same_heads,
    list_coverage,
    make_difference_scale,
    make_side_map,
    pair_head,
    read_method,
    select_layer_heads,
    summarise_distances,
    title_comparison,
)
from attnviz.views.colour_scale import Look
from attnviz.views.heatmaps import (
    DEFAULT_LOOK,
    PAGE_CELLS,
    arrange_by_layer,
    index_matrices,
    make_grid,
    make_heatmap,
    read_head_key,
)
from attnviz.views.labels import (
    abbreviate_head,
    abbreviate_head_column,
    make_axes,
    name_model,
)


def make_comparison_page(result: ComparisonResult, look: Look = DEFAULT_LOOK) -> Page:
    """Make a page with all heads of A, all heads of B, and a section of their differences.

    A and B are the two compared captures. A difference is of a head of A and the head of B of the
    same name, or the nearest head of B if the two have different heads. look: how maps are
    coloured. Raises InputError for more words than a page can hold.
    """
    comparison = result.first
    a, b = comparison.a, comparison.b
    require_page_size(a)
    section_a = make_side_section("A", a, b, look)
    section_b = make_side_section("B", b, a, look)
    section_of_differences = make_difference_section(result, look)
    sections = section_a, section_b, section_of_differences
    coverage = list_coverage(comparison)
    summary = summarise_distances(result.distances)
    return Page(title_comparison(comparison), sections, (*coverage, *summary))


def require_page_size(side: Side) -> None:
    """Raise InputError if two compared captures have more words in common than a page can hold.

    side: one of the two.
    """
    query_count = len(side.queries)
    key_count = len(side.keys)
    if query_count > PAGE_CELLS or key_count > PAGE_CELLS:
        limit = f"a page compares texts of {PAGE_CELLS} words at most"
        advice = "choose another format, or a shorter text"
        raise InputError(f"{limit}, and here are {key_count}: {advice}")


def make_side_section(letter: str, side: Side, other: Side, look: Look) -> Section:
    """Draw all heads of one of two compared captures, in the cells that the other may attend to.

    letter: A or B, the name of the capture that is drawn. side: that capture. other: the other one;
    a cell counts if any of its heads may attend to it.
    """
    _, visible_to_other = other.mean(other.names)
    maps = tuple(make_layer_map(side, layer, visible_to_other) for layer in side.layers)
    capture = Capture(side.capture.model, side.capture.text, maps)
    heatmaps: dict[HeadName, Heatmap] = {}
    for index in index_matrices(maps):
        heatmaps[read_head_key(*index)] = make_heatmap(capture, *index, look)
    title = f"{letter} {name_model(capture)}"
    thumbnails = make_grid(capture, maps, look)
    return arrange_section(title, thumbnails, heatmaps)


def make_layer_map(side: Side, layer: int, visible_to_other: Visible) -> AttentionMap:
    """Make a map of all heads of one layer, between the words that two compared captures have.

    side: the capture of the layer. visible_to_other: (query, key), True where a head of the other
    capture may attend. Cells are visible only there, and the rows of each head are made to sum to 1
    over its visible cells.
    """
    names = select_layer_heads(side, layer)
    weights_of_heads, visible_of_heads = [], []
    for name in names:
        weights_of_head, visible_of_head = side.head(name)
        weights_of_heads.append(weights_of_head)
        visible_of_heads.append(visible_of_head)
    visible = np.stack(visible_of_heads)[None] & visible_to_other
    weights = restrict_rows(np.stack(weights_of_heads)[None], visible)
    heads = tuple(head for _, head in names)
    return make_side_map(side, layer, heads, weights, visible)


def make_difference_section(result: ComparisonResult, look: Look) -> Section:
    """Draw each head of A less a head of B: that of the same name, or the nearest to it.

    A and B are the two compared captures. The nearest is taken if they have different heads.
    """
    comparison = result.first
    heatmaps = draw_differences(result, look)
    queries, keys = label_axes(comparison)
    method = read_method(comparison.a)
    largest = max(heatmap.scale.largest for heatmap in heatmaps.values())
    # Where all heads are equal, the colours need an end nonetheless.
    top = largest or 1.0
    scale = make_difference_scale(top, largest, look, method)
    layers, heads, _ = arrange_by_layer(heatmaps)
    row_names = tuple(f"L{layer}" for layer in layers)
    column_names = tuple(abbreviate_head_column(head) for head in heads)
    head_of_b = "the same of B" if has_same_heads(comparison) else "the nearest of B"
    title = f"A - B: each head of A less {head_of_b}"
    longest = max(len(queries), len(keys))
    thumbnails = Grid(
        title=title,
        rows=row_names,
        columns=column_names,
        panels=(),
        scale=scale,
        caption=(explain_signs(method),),
        tokens=longest,
        unit=queries.unit,
    )
    return arrange_section("A - B", thumbnails, heatmaps)


def draw_differences(result: ComparisonResult, look: Look) -> dict[HeadName, Heatmap]:
    """Draw each head of A less a head of B, as heatmaps by the name (layer, head) of that of A.

    A and B are the two compared captures. The head of B has the same name, or is the nearest if A
    and B have different heads.
    """
    comparison = result.first
    queries, keys = label_axes(comparison)
    method = read_method(comparison.a)
    heatmaps: dict[HeadName, Heatmap] = {}
    for name in comparison.a.names:
        groups = pair_head(comparison, result.distances, name)
        a, b, visible = comparison.pair(*groups)
        name_of_a = abbreviate_head(*groups.a[0])
        name_of_b = abbreviate_head(*groups.b[0])
        title = f"A {name_of_a} - B {name_of_b}"
        panel = Panel(a - b, visible)
        heatmaps[name] = draw_difference(title, panel, queries, keys, look, method)
    return heatmaps


def label_axes(comparison: Comparison) -> tuple[Axis, Axis]:
    """Make the axes of the queries and keys that two compared captures have in common."""
    a = comparison.a
    shape = 1, 1, len(a.queries), len(a.keys)
    no_weights = np.zeros(shape, np.float32)
    # The axes are those of any layer and head.
    empty_map = make_side_map(a, 0, (0,), no_weights, np.array(True))
    return make_axes(empty_map)


def arrange_section(title: str, thumbnails: Grid, heatmaps: Mapping[HeadName, Heatmap]) -> Section:
    """Make a section of a page: heatmaps by layer and head, all small in a grid, and each large.

    thumbnails: the grid without its panels. heatmaps: by (layer, head).
    """
    _, _, rows_of_heatmaps = arrange_by_layer(heatmaps)
    panels = {name: heatmap.panel for name, heatmap in heatmaps.items()}
    _, _, rows_of_panels = arrange_by_layer(panels)
    return Section(title, replace(thumbnails, panels=rows_of_panels), rows_of_heatmaps)
