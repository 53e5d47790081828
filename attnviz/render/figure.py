"""Drawables as PNG figures, by matplotlib's object interface: one axes, cells pooled and coloured by us."""

import io
import warnings
from functools import cache, singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from attnviz.render.colour import viridis
from attnviz.views.drawable import Drawable, Grid, Heatmap, Panel, levels

Pixels = npt.NDArray[np.uint8]

COLOURS = 256
DPI = 200
CELL = 0.16  # inches of a labelled cell
SIDE = 4.5, 9.0  # inches of the picture, least and most
MOST_LABELS = 60
MOST_CELLS = 1200  # of a side; more are pooled, since no figure shows them
THUMBNAIL = 48  # cells of a side
FONT_SIZE = 7
FONTS = "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans", "Noto Sans Arabic", "Noto Emoji"


def png(drawable: Drawable) -> bytes:
    """A PNG file: the same bytes for the same drawable."""
    figure = draw(drawable)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # drawn as a box
        FigureCanvasAgg(figure)
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


@singledispatch
def draw(drawable: Drawable) -> Figure:
    """The figure of a drawable."""
    raise TypeError(f"no way to draw {type(drawable).__name__} as a figure")


@draw.register
def draw_heatmap(drawable: Heatmap) -> Figure:
    """One matrix, with token labels where they can be read, else every so many."""
    panel = drawable.panel.pooled(MOST_CELLS, MOST_CELLS)
    figure, axes = canvas(
        drawable, pixels(panel, drawable.top), min(max(len(drawable.columns) * CELL, SIDE[0]), SIDE[1])
    )
    for axis, labels, cells in (
        (axes.xaxis, drawable.columns, panel.values.shape[1]),
        (axes.yaxis, drawable.rows, panel.values.shape[0]),
    ):
        every = -(-len(labels) // MOST_LABELS)
        shown = range(0, len(labels), every)
        axis.set_ticks([i * cells / len(labels) for i in shown], [labels[i] for i in shown], **style())
    axes.tick_params(axis="x", rotation=90)
    return figure


@draw.register
def draw_grid(drawable: Grid) -> Figure:
    """All thumbnails on one canvas: an axes each costs ten times as much."""
    side = min(THUMBNAIL, max(max(panel.values.shape) for row in drawable.panels for panel in row if panel))
    scale = max(1, THUMBNAIL // side)
    step = side * scale + max(2, side * scale // 10)
    picture = np.full((len(drawable.rows) * step, len(drawable.columns) * step, 4), 0, np.uint8)
    for i, row in enumerate(drawable.panels):
        for j, panel in enumerate(row):
            if panel:
                cells = pixels(panel.pooled(side, side), drawable.top).repeat(scale, 0).repeat(scale, 1)
                picture[i * step :, j * step :][: cells.shape[0], : cells.shape[1]] = cells
    figure, axes = canvas(drawable, picture, min(max(len(drawable.columns) * 0.7, SIDE[0]), SIDE[1]))
    axes.xaxis.set_ticks(
        [j * step + side * scale / 2 for j in range(len(drawable.columns))], drawable.columns, **style()
    )
    axes.yaxis.set_ticks([i * step + side * scale / 2 for i in range(len(drawable.rows))], drawable.rows, **style())
    axes.spines[:].set_visible(False)
    return figure


def canvas(drawable: Drawable, picture: Pixels, wide: float) -> tuple[Figure, Any]:
    """A figure with the picture, so many inches wide, its title, caption and colour bar; room for labels around."""
    high = min(max(wide * picture.shape[0] / picture.shape[1], 0.6), 3 * SIDE[1])
    left = top = 0.25 + 0.075 * min(max(map(len, drawable.rows)), 24)
    top += 0.3
    width, height = left + wide + 0.9, top + high + 0.7
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((left / width, 0.7 / height, wide / width, high / height))
    axes.imshow(picture, interpolation="none", aspect="auto")
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, pad=2)
    add_bar(figure, drawable.top, ((left + wide + 0.15) / width, 0.7 / height, 0.12 / width, high / height))
    figure.text(0.1 / width, 1 - 0.08 / height, drawable.title, va="top", **style(FONT_SIZE + 2))
    caption = "\n".join(("rows: queries, columns: keys", *drawable.caption))
    figure.text(left / width, 0.6 / height, caption, va="top", color="0.35", **style())
    return figure, axes


def add_bar(figure: Figure, top: float, place: tuple[float, float, float, float]) -> None:
    """The colour bar, its ticks at weights, its spacing that of the square-root scale."""
    axes = figure.add_axes(place)
    axes.imshow(viridis(COLOURS)[::-1, None], aspect="auto", extent=(0, 1, 0, 1))
    weights = np.array([0, 0.05, 0.25, 0.5, 1], np.float32) * (top or 1)
    axes.yaxis.tick_right()
    axes.yaxis.set_ticks(levels(weights, top or 1), [f"{weight:.2g}" for weight in weights], **style())
    axes.xaxis.set_ticks([])
    axes.set_title("√ scale", loc="left", **style())


def pixels(panel: Panel, top: float) -> Pixels:
    """Red, green, blue and alpha of each cell (row, column, 4); nothing at all where masked."""
    shades = np.minimum((levels(panel.values, top) * COLOURS).astype(int), COLOURS - 1)
    opaque = np.where(panel.visible, 255, 0).astype(np.uint8)
    return np.dstack([viridis(COLOURS)[shades], opaque])


@cache
def style(size: float = FONT_SIZE) -> dict[str, Any]:
    """How text is set: in fonts of this machine, one after the other, and literally: a token may hold dollar signs."""
    here = {font.name for font in font_manager.fontManager.ttflist}
    return {"fontsize": size, "fontfamily": [font for font in FONTS if font in here], "parse_math": False}
