"""Capture -> drawable: pure data, of no medium. A renderer draws drawables and knows no capture."""

from attnviz.drawable import (
    Axis,
    Drawable,
    Grid,
    Heatmap,
    Page,
    Panel,
    Picture,
    Scale,
    Section,
    Series,
    Strip,
    Table,
)
from attnviz.views.colour_scale import Look
from attnviz.views.heatmaps import (
    PAGE_CELLS,
    make_capture_page,
    make_grids,
    make_heatmaps,
    make_query_heatmaps,
    make_strips,
)

__all__ = [
    "PAGE_CELLS",
    "Axis",
    "Drawable",
    "Grid",
    "Heatmap",
    "Look",
    "Page",
    "Panel",
    "Picture",
    "Scale",
    "Section",
    "Series",
    "Strip",
    "Table",
    "make_capture_page",
    "make_grids",
    "make_heatmaps",
    "make_query_heatmaps",
    "make_strips",
]
