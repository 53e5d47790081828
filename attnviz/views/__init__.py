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
from attnviz.views.heatmaps import PAGE, grids, heatmaps, page, rows, strips

__all__ = [
    "PAGE",
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
    "grids",
    "heatmaps",
    "page",
    "rows",
    "strips",
]
