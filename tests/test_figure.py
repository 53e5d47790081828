"""Figures: every cell has its colour, every text has its room, and a file is the same wherever it is written."""

import hashlib
import io
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from fontTools.pens.areaPen import AreaPen
from fontTools.ttLib import TTFont
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.colors import to_rgba_array
from matplotlib.text import Text
from PIL import Image

from attnviz.drawable import MASKED, Axis, Grid, Heatmap, Panel, Picture, Scale, Strip
from attnviz.errors import UsageError
from attnviz.escape import label_token
from attnviz.render.colour import MAPS, is_light, make_palette
from attnviz.render.figure import fonts as installed
from attnviz.render.figure.figure import (
    FIGURE_FORMATS,
    STYLES,
    FigureStyle,
    compose_sheet,
    render_figure,
)
from attnviz.render.figure.layout import LEAST_POINTS, choose_bar_ticks, cut_text, wrap_text
from attnviz.render.figure.sheet import COLOURS, Sheet
from attnviz.render.figure.truetype import convert_font
from tests.pictures import HOSTILE_LABELS, find_overlaps, measure_text_boxes

ROOT = Path(__file__).parent.parent
WORDS = (
    "[CLS]",
    "the",
    "quick",
    "brown",
    "fox",
    "jumped",
    "over",
    "a",
    "lazy",
    "dog",
    ",",
    "because",
    "internationalised",
)
SINK = Scale(0.4, 0.9)
PLAIN = FigureStyle()


def panel(rows: int, columns: int, *, causal: bool = False) -> Panel:
    """Weights of rows that sum to 1, with a sink, all cells visible or the lower triangle."""
    visible = (
        np.tri(rows, columns, columns - rows, dtype=bool)
        if causal
        else np.ones((rows, columns), bool)
    )
    weights = np.where(
        visible, np.random.default_rng(rows).random((rows, columns), np.float32) ** 4, 0
    )
    weights[:, 0] += weights.sum(1)
    return Panel((weights / weights.sum(1, keepdims=True)).astype(np.float32), visible)


def axis(name: str, labels: tuple[str, ...], first: int = 0, step: int = 1) -> Axis:
    return Axis(name, labels, tuple(range(first, first + len(labels))), step, (True,) * len(labels))


def words(n: int) -> tuple[str, ...]:
    return tuple(WORDS[i % len(WORDS)] for i in range(n))


def heatmap(
    n: int = 12, *, labels: tuple[str, ...] | None = None, scale: Scale = SINK, causal: bool = True
) -> Heatmap:
    labels = tuple(map(label_token, labels)) if labels else words(n)
    n = len(labels)
    sides = axis("queries", labels), axis("keys", labels)
    return Heatmap(
        "toy · layer 0 · head 1",
        panel(n, n, causal=causal),
        *sides,
        scale,
        ("50% on the sink [CLS]",),
    )


def rows(n: int) -> Heatmap:
    heads = tuple(f"L{i // 12}H{i % 12}" for i in range(72))
    sides = axis("heads", heads), axis("keys", words(n))
    return Heatmap("toy · token 3 brown · in 72 heads", panel(72, n), *sides, SINK, ())


def grid(n: int = 12, layers: int = 3, heads: int = 6) -> Grid:
    shown = panel(n, n, causal=True)
    names = tuple(f"L{i}" for i in range(layers)), tuple(f"H{i}" for i in range(heads))
    return Grid("toy · heads", *names, ((shown,) * heads,) * layers, SINK, ("beyond: sinks",), n)


def strip(n: int = 12, labels: tuple[str, ...] | None = None) -> Strip:
    labels = tuple(map(label_token, labels)) if labels else words(n)
    shown = panel(4, len(labels), causal=len(labels) > 4)
    one = Panel(shown.values[1:2], shown.visible[1:2])
    return Strip(
        "toy · what token 3 attends to", axis("keys", labels), one, 0, SINK, ("strongest: a",)
    )


MAKERS = {"heatmap": heatmap, "rows": rows, "grid": grid, "strip": strip}


def dots(drawable: Picture, style: FigureStyle = PLAIN) -> np.ndarray:
    """The picture as (row, column) of red, green, blue and alpha."""
    return np.asarray(
        Image.open(io.BytesIO(render_figure(drawable, "png", style).data)).convert("RGBA")
    )


def middles(sheet: Sheet, image: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Where the middles of an image's cells are, in dots from the top and from the left."""
    found = sheet.axes.images[image]
    left, right, bottom, top = found.get_extent()
    down, along = found.get_array().shape[:2]
    y, x = (
        top + (np.arange(down) + 0.5) * (bottom - top) / down,
        left + (np.arange(along) + 0.5) * (right - left) / along,
    )
    return (y * sheet.dpi).astype(int), (x * sheet.dpi).astype(int)


def expected(shown: Panel, scale: Scale, colours: str = "viridis") -> np.ndarray:
    """The colours of cells on white."""
    found = make_palette(colours, COLOURS)[scale.steps(shown, COLOURS)].copy()
    found[~shown.visible] = 255
    return found


@pytest.mark.parametrize("colours", MAPS)
@pytest.mark.parametrize("n", [1, 5, 40])
def test_every_cell_has_its_colour(n: int, colours: str) -> None:
    """The dot in the middle of a cell is the colour of its weight; beyond the scale another, masked the background."""
    drawable, style = heatmap(n), FigureStyle("paper", colours=colours)
    with compose_sheet(drawable, style) as sheet:
        y, x = middles(sheet)
    np.testing.assert_array_equal(
        dots(drawable, style)[np.ix_(y, x)], expected(drawable.panel, drawable.scale, colours)
    )
    assert (drawable.scale.steps(drawable.panel, COLOURS) == COLOURS).any()


@pytest.mark.parametrize(
    "look", [Scale(0.4, 0.9, linear=True), Scale(1, 1), Scale(0, 0), Scale(0.003, 0.9)]
)
def test_every_scale_has_its_colours(look: Scale) -> None:
    """Linear and √, tiny and empty: cells as the scale says."""
    drawable = heatmap(5, scale=look)
    with compose_sheet(drawable, FigureStyle()) as sheet:
        y, x = middles(sheet)
    np.testing.assert_array_equal(dots(drawable)[np.ix_(y, x)], expected(drawable.panel, look))


def test_nothing_is_painted_where_masked_or_transparent() -> None:
    """With ``transparent`` the background and masked cells let through what is behind, and cells do not."""
    drawable, style = heatmap(5), FigureStyle(transparent=True)
    with compose_sheet(drawable, style) as sheet:
        y, x = middles(sheet)
    alpha = dots(drawable, style)[..., 3]
    np.testing.assert_array_equal(alpha[np.ix_(y, x)] == 255, drawable.panel.visible)
    assert alpha[0, 0] == 0
    assert dots(drawable)[..., 3].min() == 255


def test_every_thumbnail_has_its_cells() -> None:
    """Each panel of a grid stands at its layer and head, and there is nothing where there is no head."""
    drawable = grid(7, layers=2, heads=3)
    panels = tuple(
        tuple(panel(7, 7, causal=True) if i != j else None for j in range(3)) for i in range(2)
    )
    panels = tuple(
        tuple(p and Panel(np.roll(p.values, 3 * i + j, 1), p.visible) for j, p in enumerate(row))
        for i, row in enumerate(panels)
    )
    drawable = replace(drawable, panels=panels)
    picture = dots(drawable)
    with compose_sheet(drawable, FigureStyle()) as sheet:
        places = [middles(sheet, i) for i in range(4)]
        names = {text.get_text(): text.get_position() for text in sheet.axes.texts}
    shown = [(i, j, p) for i, row in enumerate(panels) for j, p in enumerate(row) if p]
    for (i, j, one), (y, x) in zip(shown, places, strict=True):
        np.testing.assert_array_equal(picture[np.ix_(y, x)], expected(one, drawable.scale))
        assert x[3] == pytest.approx(names[f"H{j}"][0] * sheet.dpi, abs=1)
        assert y[3] == pytest.approx(names[f"L{i}"][1] * sheet.dpi, abs=1)


def test_one_head_a_layer_is_no_tower() -> None:
    """Layers with one head each stand beside each other, each under its name."""
    with compose_sheet(grid(7, layers=8, heads=1), FigureStyle("paper")) as sheet:
        assert sheet.figure.get_figheight() < sheet.width
        assert {f"L{i}H0" for i in range(8)} <= {text.get_text() for text in sheet.axes.texts}


@pytest.mark.parametrize("n", [700, 2000])
def test_pooled_cells_are_the_largest(n: int) -> None:
    """Where there are more cells than dots, a cell is the largest weight of its block, and the caption says so."""
    drawable = heatmap(n)
    style = FigureStyle("paper")
    with compose_sheet(drawable, style) as sheet:
        drawn = sheet.axes.images[0].get_array()
        told = [text.get_text() for text in sheet.axes.texts]
    each = -(-n // len(drawn))
    assert each == (2 if n == 700 else 4)
    pooled = drawable.panel.pool(len(drawn), len(drawn))
    np.testing.assert_array_equal(
        drawn, make_palette(steps=COLOURS)[drawable.scale.steps(pooled, COLOURS)]
    )
    assert f"each cell is the largest weight of up to {each} x {each} tokens" in told


def test_strips_colour_each_token() -> None:
    """A box a token in the colour of its weight, its text black or white; masked text has none and is dim."""
    drawable = strip(40)
    with compose_sheet(drawable, FigureStyle()) as sheet:
        boxes, chosen = sheet.axes.collections[:2]
        written = sheet.axes.texts[1:41]
    visible = drawable.panel.visible[0]
    steps = drawable.scale.steps(drawable.panel, COLOURS)[0]
    assert 0 < visible.sum() < 40
    assert [text.get_text() for text in written] == list(drawable.tokens.labels)
    assert len(boxes.get_paths()) == visible.sum()
    picture = dots(drawable)
    for path, step, text in zip(
        boxes.get_paths(), steps[visible], np.array(written, object)[visible], strict=True
    ):
        box = path.get_extents()
        x, y = (
            int((box.x0 + 0.014) * sheet.dpi),
            int((box.y0 + box.y1) / 2 * sheet.dpi),
        )  # beside the text
        red, green, blue, _ = make_palette(steps=COLOURS)[step]
        np.testing.assert_array_equal(picture[y, x], (red, green, blue, 255))
        assert text.get_color() == ("black" if is_light(red, green, blue) else "white")
        assert box.contains(*text.get_position())
    assert {text.get_color() for text in np.array(written, object)[~visible]} == {(0.5, 0.5, 0.5)}
    assert steps[~visible].tolist() == [MASKED] * (~visible).sum()
    assert chosen.get_paths()[0].get_extents().contains(*written[0].get_position())


@pytest.mark.parametrize("form", FIGURE_FORMATS)
@pytest.mark.parametrize(
    ("drawable", "style", "inches"),
    [
        (heatmap(), FigureStyle("paper"), 3.25),
        (grid(), FigureStyle("paper"), 6.75),
        (grid(heads=4), FigureStyle("paper"), 3.25),
        (strip(), FigureStyle("slide"), 10),
        (heatmap(), FigureStyle(), 6.75),
        (grid(), FigureStyle(), 9),
        (heatmap(90), FigureStyle("paper", inches=3.3, dpi=610), 3.3),
    ],
)
def test_the_width_is_exact(
    drawable: Picture, style: FigureStyle, inches: float, form: str
) -> None:
    """A figure is as wide as its style or ``inches`` says, whatever the dots an inch."""
    data = render_figure(drawable, form, style).data
    if form == "png":
        image = Image.open(io.BytesIO(data))
        dpi = style.dpi or {"paper": 300, "slide": 150, "screen": 200}[style.name]
        assert image.width == int(inches * dpi)
        assert image.info["dpi"] == pytest.approx((dpi, dpi), abs=0.02)
    elif form == "svg":
        assert float(re.search(rb'width="([\d.]+)pt"', data)[1]) == pytest.approx(inches * 72)
    else:
        assert float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", data)[1]) == pytest.approx(
            inches * 72
        )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("n", [1, 2, 12, 40, 90, 700])
@pytest.mark.parametrize("kind", MAKERS)
def test_every_text_has_its_room(kind: str, n: int, style: str) -> None:
    """No text is cut off, none overlaps another, and none stands on cells, in running text aside."""
    drawable = replace(
        MAKERS[kind](n),
        title="a model with a name · layer 10 · head 11 · of what there is to see " * 2,
    )
    drawable = replace(drawable, scale=Scale(0.9, 0.9)) if n == 12 else drawable
    with compose_sheet(drawable, FigureStyle(style, dpi=100)) as sheet:
        texts = measure_text_boxes(sheet)
        cells = np.array([image.get_window_extent().extents for image in sheet.axes.images])
        page = sheet.figure.bbox
        sizes = [text.get_fontsize() for text in sheet.axes.texts]
    assert texts[:, :2].min() > 0
    assert (texts[:, 2:].max(0) < (page.width, page.height)).all()
    assert min(sizes) >= LEAST_POINTS
    assert not find_overlaps(texts, cells).any()
    assert not np.triu(find_overlaps(texts, texts), 1).any()
    assert texts[:, 1].min() < page.height - texts[:, 3].max() + 5


def test_labels_name_their_cells() -> None:
    """Each label stands at its row and its column; of many every so many, with the number of its token."""
    part = heatmap(labels=tuple(f"w{i}" for i in range(90)))
    numbered = replace(
        part,
        rows=axis("queries", part.rows.labels, 100),
        columns=axis("keys", part.columns.labels, 100),
    )
    for drawable, every in ((heatmap(12), 1), (numbered, 5)):
        with compose_sheet(drawable, FigureStyle("paper")) as sheet:
            y, x = middles(sheet)
            found = {
                (text.get_text(), text.get_rotation()): text.get_position()
                for text in sheet.axes.texts
            }
        for i in range(0, len(drawable.rows), every):
            name, number = drawable.rows.labels[i], drawable.rows.numbers[i]
            left, above = (f"{name} {number}", f"{number} {name}") if every > 1 else (name, name)
            assert found[left, 0][1] * sheet.dpi == pytest.approx(y[i], abs=1.5)
            assert found[above, 90][0] * sheet.dpi == pytest.approx(x[i], abs=1.5)


def test_tiles_are_labelled_by_their_first_token() -> None:
    """Where a cell stands for a tile of tokens, labels have numbers and stand at the tiles that begin there."""
    sides = (
        Axis(name, words(50), tuple(range(50)), 8, (True,) * 50) for name in ("queries", "keys")
    )
    drawable = Heatmap("", panel(7, 7), *sides, Scale(1, 1), ())
    with compose_sheet(drawable, FigureStyle()) as sheet:
        y, _ = middles(sheet)
        found = {text.get_text(): text.get_position() for text in sheet.axes.texts}
    assert [
        found[f"{WORDS[i % len(WORDS)]} {i}"][1] * sheet.dpi for i in range(0, 50, 8)
    ] == pytest.approx(y, abs=1.5)
    assert "each cell is the largest weight of up to 8 x 8 tokens" in found


@pytest.mark.parametrize("drawable", [heatmap(), strip()], ids=["upright", "lying"])
@pytest.mark.parametrize(
    "scale", [Scale(0.4, 0.9), Scale(0.87, 0.87), Scale(0.5, 0.9, linear=True)]
)
def test_the_colour_bar_tells_the_truth(drawable: Picture, scale: Scale) -> None:
    """Beside each weight that the bar names is the colour of that weight; what is beyond it has a swatch."""
    drawable = replace(drawable, scale=scale)
    with compose_sheet(drawable, FigureStyle()) as sheet:
        written = {text.get_text(): text.get_position() for text in sheet.axes.texts}
        bars = [image for image in sheet.axes.images if image.get_array().size == COLOURS * 4]
        swatches = [image for image in sheet.axes.images if image.get_array().size == 4]
    picture, lying = dots(drawable), isinstance(drawable, Strip)
    left, right, bottom, top = bars[0].get_extent()
    named = [weight for weight in choose_bar_ticks(scale, 1, 0.01) if f"{weight:.2g}" in written]
    assert len(named) > 3
    assert (named[0], named[-1]) == (0, scale.top)
    for weight in named:
        x, y = written[f"{weight:.2g}"]
        x, y = (x, (top + bottom) / 2) if lying else ((left + right) / 2, y)
        x, y = (
            np.clip(x, left + 0.02, right - 0.02),
            np.clip(y, top + 0.02, bottom - 0.02),
        )  # within the frame
        shade = int(np.clip(scale.levels(weight) * COLOURS, 0, COLOURS - 1))
        near = sheet.choose_palette()[max(shade - 5, 0) : min(shade + 6, COLOURS)].astype(int)
        assert np.abs(near - picture[int(y * sheet.dpi), int(x * sheet.dpi)]).sum(1).min() < 8
    assert scale.name in written
    assert (f"> {scale.top:.2g}" in written) == (len(swatches) == 1) == scale.has_beyond
    for swatch in swatches:
        assert tuple(swatch.get_array()[0, 0]) == (*MAPS["viridis"].beyond, 255)
        assert not swatch.get_window_extent().padded(2).overlaps(bars[0].get_window_extent())


@given(st.floats(1e-6, 1), st.floats(0.5, 20), st.booleans())
def test_ticks_do_not_touch(top: float, length: float, linear: bool) -> None:
    """Marks of a colour bar begin at 0, end at the top, and keep their distance."""
    scale = Scale(top, top, linear)
    found = choose_bar_ticks(scale, length, 0.4)
    assert found[0] == 0
    assert found[-1] == top
    assert (np.diff(scale.levels(found)) * length >= 0.39).all()


@given(st.text(st.characters(codec="utf-8"), max_size=80), st.floats(1, 30))
def test_wrapped_lines_fit_and_lose_nothing(text: str, room: float) -> None:
    """Lines are no wider than the room, words stay in order, and what is cut ends with an ellipsis."""
    lines = wrap_text(text, room, lambda part: 0.6 * len(part), 200)
    assert all(0.6 * len(line) <= room for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
    few = wrap_text(text, room, lambda part: 0.6 * len(part), 2)
    assert few == lines if len(lines) <= 2 else few[-1].endswith("…")
    short = cut_text(text, room, lambda part: 0.6 * len(part))
    assert short == text or short.endswith("…")
    assert 0.6 * len(short) <= max(room, 1.2)


def colours_of(texts: list[Text]) -> np.ndarray:
    return to_rgba_array([text.get_color() for text in texts])


def test_a_style_file_is_honoured(tmp_path: Path) -> None:
    """Font, sizes, colours, dots and width come from it; what would run LaTeX or change the width does not."""
    path = tmp_path / "mine.mplstyle"
    path.write_text(
        "font.size: 5\nxtick.labelsize: 5\nfont.family: DejaVu Serif\ntext.color: red\naxes.labelcolor: red\n"
        "xtick.color: red\nfigure.facecolor: 00ff00\nfigure.figsize: 4, 3\nfigure.dpi: 70\n"
        "text.usetex: True\nsavefig.bbox: tight\ntext.parse_math: True\nbackend: pdf\n"
    )
    with compose_sheet(heatmap(5), FigureStyle(str(path))) as sheet:
        assert {text.get_fontfamily()[0] for text in sheet.axes.texts} == {"DejaVu Serif"}
        assert (colours_of(sheet.axes.texts) == (1, 0, 0, 1)).all()
        assert {text.get_fontsize() for text in sheet.axes.texts if text.get_text() == "[CLS]"} == {
            5
        }
        assert not any(text.get_usetex() for text in sheet.axes.texts)
    picture = dots(heatmap(5), FigureStyle(str(path)))
    assert picture.shape[1] == 4 * 70
    assert tuple(picture[0, 0]) == (0, 255, 0, 255)
    assert dots(heatmap(5), FigureStyle(str(path), dpi=100, inches=2)).shape[1] == 200


def test_own_settings_of_matplotlib_are_honoured_and_kept() -> None:
    """What a user set in matplotlib holds where the style says nothing, and is as it was afterwards."""
    with mpl.rc_context({"figure.facecolor": "blue", "font.size": 33.0}):
        assert tuple(dots(heatmap(5), FigureStyle("paper"))[0, 0]) == (0, 0, 255, 255)
        assert mpl.rcParams["font.size"] == 33
    before = dict(mpl.rcParams)
    render_figure(heatmap(5), "pdf", FigureStyle("slide"))
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    "content", [None, b"", b"once upon a time\nthere was: a style\n", b"\x89PNG\xff\xfe", "folder"]
)
def test_no_style_is_refused_in_a_line(
    content: bytes | str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A style file that is not there, or is something else, is the user's mistake, told once."""
    path = tmp_path / "some.mplstyle"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"some\.mplstyle") as raised:
        render_figure(heatmap(), "png", FigureStyle(str(path)))
    assert "\n" not in str(raised.value)
    assert "style" in str(raised.value)
    assert capsys.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize(
    ("style", "told"),
    [
        (FigureStyle("glossy"), "no style glossy: it must be paper, slide, screen"),
        (FigureStyle(inches=0.5), "1.5 to 100 inches"),
        (FigureStyle(inches=float("nan")), "1.5 to 100 inches"),
        (FigureStyle(dpi=10**6), "dots is too large"),
    ],
)
def test_what_cannot_be_drawn_is_refused(style: FigureStyle, told: str) -> None:
    """A style that is not there, a width for nothing, more dots than memory holds."""
    with pytest.raises(UsageError, match=told):
        render_figure(heatmap(), "png", style)


@pytest.mark.parametrize(
    ("title", "shown"), [(None, "toy · layer 0 · head 1"), ("a\x1b $x$", r"a\x1b $x$"), ("", None)]
)
def test_titles(title: str | None, shown: str | None) -> None:
    """The title is the drawable's, or another, escaped and literal, or none."""
    with compose_sheet(heatmap(), FigureStyle(title=title)) as sheet:
        first = sheet.axes.texts[0].get_text()
    assert first == (shown or WORDS[0])


def svg_texts(data: bytes) -> list[str]:
    return [
        element.text or ""
        for element in ET.fromstring(data).iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.mark.parametrize("name", MAKERS)
def test_svg_is_well_formed_and_text_is_text(name: str) -> None:
    """Labels, title and caption are elements of text, in the order that they are drawn; cells stay sharp."""
    drawable = MAKERS[name](12)
    data = render_figure(drawable, "svg").data
    with compose_sheet(drawable, FigureStyle()) as sheet:
        assert svg_texts(data) == [text.get_text() for text in sheet.axes.texts]
    images = list(ET.fromstring(data).iter("{http://www.w3.org/2000/svg}image"))
    assert images
    assert all("pixelated" in image.get("style") for image in images)
    scales = [
        float(n) for image in images for n in re.findall(r"[-\d.]+", image.get("transform"))[:4]
    ]
    assert (
        max(scales) <= 72 / sheet.dpi
    )  # as many dots as a screen shows, for viewers that blur all the same
    assert set(re.findall(rb"\w+://[^\"' <]*", data)) == {
        b"http://www.w3.org/1999/xlink",
        b"http://www.w3.org/2000/svg",
    }


def streams(pdf: bytes) -> list[bytes]:
    """What the streams of a PDF hold."""
    return [
        zlib.decompress(found)
        for found in re.findall(rb"/FlateDecode[^>]*>>\s*stream\r?\n(.*?)\nendstream", pdf, re.S)
    ]


def signs(pdf: bytes) -> set[str]:
    """The signs that can be copied from a PDF: those to which the glyphs of its fonts are mapped."""
    maps = [
        re.findall(rb"<[0-9a-f]+> <[0-9a-f]+> \[([^\]]*)\]", stream)
        for stream in streams(pdf)
        if b"beginbfrange" in stream
    ]
    found = re.findall(r"<([0-9a-f]+)>", b" ".join(b" ".join(one) for one in maps).decode())
    return set("".join(bytes.fromhex(code).decode("utf-16-be") for code in found))


@pytest.mark.parametrize("name", MAKERS)
def test_pdf_has_truetype_fonts_and_text(name: str) -> None:
    """Fonts are embedded as TrueType, never Type 3, and every sign can be copied."""
    drawable = MAKERS[name](12)
    data = render_figure(drawable, "pdf").data
    assert b"/Type0" in data
    assert b"/FontFile2" in data
    assert b"/Type3" not in data
    with compose_sheet(drawable, FigureStyle()) as sheet:
        drawn = set().union(*(text.get_text() for text in sheet.axes.texts))
    assert drawn <= signs(data)


@pytest.mark.parametrize("form", FIGURE_FORMATS)
@pytest.mark.parametrize("make", [heatmap, strip])
def test_hostile_labels_are_shown_and_not_obeyed(make: type, form: str) -> None:
    """Markup, formulas, escape sequences, bidi controls and ten thousand letters are drawn as what they are."""
    drawable = make(labels=HOSTILE_LABELS)
    data = render_figure(drawable, form, FigureStyle("paper")).data
    if form == "png":
        assert Image.open(io.BytesIO(data)).width == 975
        return
    if form == "pdf":
        assert set("</script>$&#;") <= signs(data)
        assert not re.search(rb"/(URI|JavaScript|Annots \[ [^\]])", data)
        return
    shown = " ".join(svg_texts(data))
    for part in (
        "</script><i",
        "&amp;&#0;",
        r"$\alpha$",
        r"\x1b[31m\x00",
        "xxxxx…",
        "'\"<![CDATA[",
        "مرحبا",
        r"\u202eabc",
    ):
        assert part in shown
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]|<script|<img", data)
    assert not re.search("[\u202a-\u202e]", data.decode())


def test_formulas_are_not_set() -> None:
    """A label in dollar signs is as wide as its letters."""
    with compose_sheet(heatmap(labels=(r"$\alpha$", "b")), FigureStyle()) as sheet:
        text = next(text for text in sheet.axes.texts if text.get_text() == r"$\alpha$")
        assert text.get_window_extent().width == pytest.approx(
            sheet.ems(r"$\alpha$") * text.get_fontsize() / 72 * sheet.dpi, abs=2
        )


def digests() -> str:
    """One line for what is written of each drawable in each format."""
    drawables = heatmap(labels=HOSTILE_LABELS), grid(4, layers=2, heads=2), strip()
    return " ".join(
        hashlib.sha256(render_figure(drawable, form, FigureStyle("paper")).data).hexdigest()
        for drawable in drawables
        for form in FIGURE_FORMATS
    )


@pytest.mark.slow
def test_the_same_bytes_in_every_process() -> None:
    """The same drawable gives the same bytes, now, later and in another process; nothing tells when or by whom."""
    found = digests()
    assert digests() == found
    code = "from tests.test_figure import digests; print(digests())"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, env=environment, check=True
    )
    assert done.stdout.decode().strip() == found
    svg, pdf, png = (render_figure(heatmap(), form).data for form in ("svg", "pdf", "png"))
    assert not re.search(rb"CreationDate|ModDate|/Producer|/Creator", pdf)
    assert b"metadata" not in svg
    assert set(re.findall(rb"(IHDR|pHYs|IDAT|IEND|tEXt|iTXt|zTXt|tIME|eXIf)", png)) == {
        b"IHDR",
        b"pHYs",
        b"IDAT",
        b"IEND",
    }


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with those fonts alone that come with matplotlib."""
    own = [
        font
        for font in font_manager.fontManager.ttflist
        if font.fname.startswith(mpl.get_data_path())
    ]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)


@pytest.mark.usefixtures("bundled")
def test_signs_that_the_usual_font_lacks_come_from_others() -> None:
    """Another font is taken where one has the sign, and text that needs none opens none."""
    drawable = heatmap(labels=("⌽", "a"))  # of DejaVu Sans Mono
    with compose_sheet(drawable, FigureStyle()) as sheet:
        assert sheet.axes.texts[1].get_fontfamily()[-1] == "DejaVu Sans Mono"
    drawn = render_figure(drawable, "pdf")
    assert drawn.notes == ()
    assert "⌽" in signs(drawn.data)
    assert b"DejaVuSansMono" in drawn.data
    assert installed.choose_fonts(["plain, é Ω م √"]) == ((), frozenset(), ())


@pytest.mark.usefixtures("bundled")
def test_signs_that_no_font_has_are_told() -> None:
    """A note names them, few of many, and what would help; of a label that is not drawn it says nothing."""
    assert render_figure(heatmap(labels=("𓂀", "a")), "png").notes == (
        "no installed font has 𓂀 (U+13080): it is drawn as a box; a Noto font would have it",
    )
    (told,) = render_figure(strip(labels=("猫犬魚鳥馬牛羊", "a")), "svg").notes
    assert told.startswith("no installed font has 牛 (U+725B), 犬 (U+72AC), ")
    assert told.endswith(" and 2 more: they are drawn as boxes; Noto fonts would have them")
    hidden = heatmap(labels=tuple("猫" if i == 1 else "a" for i in range(90)))
    assert render_figure(hidden, "png").notes == ()
    assert installed.choose_fonts(["猫"]) == ((), {"猫"}, ())


@pytest.fixture
def postscript(tmp_path: Path) -> Iterator[str]:
    """The family of a font of PostScript outlines that has one sign, half an em wide."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.t2CharStringPen import T2CharStringPen

    pen = T2CharStringPen(500, None)
    pen.moveTo((0, 0))
    pen.curveTo((0, 400), (100, 500), (400, 500))
    pen.lineTo((400, 0))
    pen.closePath()
    made = FontBuilder(1000, isTTF=False)
    made.setupGlyphOrder([".notdef", "sign"])
    made.setupCharacterMap({ord(SIGN): "sign"})
    made.setupCFF(
        "Curves",
        {},
        {".notdef": T2CharStringPen(500, None).getCharString(), "sign": pen.getCharString()},
        {},
    )
    made.setupHorizontalMetrics({".notdef": (500, 0), "sign": (500, 0)})
    made.setupHorizontalHeader(ascent=800, descent=-200)
    made.setupNameTable({"familyName": "Curves", "styleName": "Regular", "psName": "Curves"})
    made.setupOS2()
    made.setupPost()
    made.save(tmp_path / "curves.otf")
    listed = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "curves.otf")
    yield "Curves"
    font_manager.fontManager.ttflist[:] = listed


SIGN = "\u16a0"  # a rune, which the bundled fonts lack


@pytest.mark.usefixtures("bundled")
def test_fonts_without_truetype_outlines_are_embedded_as_truetype(postscript: str) -> None:
    """A copy of what a PDF needs of them: no Type 3, every sign can be copied, the same bytes; fonts left as found."""
    before = list(font_manager.fontManager.ttflist)
    drawn = render_figure(heatmap(labels=(SIGN, "a")), "pdf")
    assert drawn.notes == ()
    assert b"/Type3" not in drawn.data
    assert b"CurvesTrueType" in drawn.data
    assert {SIGN, "a"} <= signs(drawn.data)
    assert render_figure(heatmap(labels=(SIGN, "a")), "pdf").data == drawn.data
    assert font_manager.fontManager.ttflist == before
    with compose_sheet(heatmap(labels=(SIGN, "a")), FigureStyle()) as sheet:
        assert sheet.axes.texts[1].get_fontfamily()[-1] == postscript


@pytest.mark.usefixtures("bundled")
def test_copies_have_the_outlines_and_widths(postscript: str) -> None:
    """Curves to a thousandth of the em, and the same advance."""
    path = font_manager.FontPath(font_manager.findfont(postscript), 0)
    with (
        io.BytesIO(convert_font(path, {SIGN}, "Copy")) as file,
        TTFont(file) as copy,
        TTFont(path) as original,
    ):
        assert "glyf" in copy
        assert copy["name"].getDebugName(6) == "Copy"
        pens = AreaPen(), AreaPen()
        for font, pen in zip((copy, original), pens, strict=True):
            glyph = font.getBestCmap()[ord(SIGN)]
            font.getGlyphSet()[glyph].draw(pen)
            assert font["hmtx"][glyph] == (500, 0)
        assert abs(pens[0].value) == pytest.approx(abs(pens[1].value), rel=0.005)
        assert abs(pens[1].value) > 100_000


def test_fonts_that_cannot_be_copied_do_not_break_a_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a PDF has fonts of Type 3, and a note; its text is text. Other formats need no copy."""
    monkeypatch.setattr(installed, "has_truetype_outlines", lambda path: False)
    monkeypatch.setattr("attnviz.render.figure.truetype.convert_font", lambda *font: b"no font")
    drawn = render_figure(heatmap(), "pdf")
    assert b"/Type3" in drawn.data
    assert b"/Type0" not in drawn.data
    assert set("brown") <= signs(drawn.data)
    assert len(drawn.notes) == 1
    assert "Type 3" in drawn.notes[0]
    assert render_figure(heatmap(), "svg").notes == ()


def test_outlines_are_told_by_the_head_of_a_font(tmp_path: Path) -> None:
    """OTTO is PostScript, 0x00010000 or true is TrueType, and a collection has several."""
    heads = {"a.otf": b"OTTO", "a.ttf": b"\0\1\0\0", "b.ttf": b"true"}
    heads["a.ttc"] = (
        b"ttcf\0\1\0\0\0\0\0\2"
        + (20).to_bytes(4, "big")
        + (24).to_bytes(4, "big")
        + b"OTTO\0\1\0\0"
    )
    for name, head in heads.items():
        (tmp_path / name).write_bytes(head + bytes(8))
    found = [
        installed.has_truetype_outlines(font_manager.FontPath(str(tmp_path / name), face))
        for name, face in (("a.otf", 0), ("a.ttf", 0), ("b.ttf", 0), ("a.ttc", 0), ("a.ttc", 1))
    ]
    assert found == [False, True, True, False, True]
