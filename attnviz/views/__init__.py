"""Capture -> drawable: pure data, of no medium. A renderer draws drawables and knows no capture."""

from attnviz.views.drawable import Drawable, Grid, Heatmap, Panel
from attnviz.views.views import grids, heatmaps

__all__ = ["Drawable", "Grid", "Heatmap", "Panel", "grids", "heatmaps"]
