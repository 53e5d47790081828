"""Matrices to be compared: differences around zero, several beside or below each other, one number a head."""

import io
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from attnviz.drawable import Axis, Grid, Heatmap, Panel, Scale, Series, Strip
from attnviz.escape import label_token
from attnviz.render.colour import SIGNED, make_palette, sample_colours
from attnviz.render.figure.figure import FigureStyle, compose_sheet, render_figure
from attnviz.render.figure.layout import choose_bar_ticks
from attnviz.render.figure.sheet import COLOURS
from attnviz.render.markdown import render_markdown
from attnviz.render.terminal.cells import (
    SIGNED_SHADES,
    ColourDepth,
    format_cell_difference,
    format_cell_weight,
)
from attnviz.render.terminal.draw import Screen, draw_picture_lines
from attnviz.render.terminal.text_width import count_columns
from tests.colour_vision import CONE_MATRICES, convert_to_lab
from tests.pictures import GOLDEN, HOSTILE_LABELS, draw_styled_text, draw_text, make_screen

DIFFERENCES = Scale(0.42, 0.42, signed=True)
WEIGHTS = Scale(1.0, 1.0)
PLAIN = FigureStyle()


def axis(name: str, labels: tuple[str, ...]) -> Axis:
    return Axis(name, labels, tuple(range(len(labels))), 1, (True,) * len(labels))


def weights(n: int, seed: int) -> np.ndarray:
    """Causal rows that sum to 1."""
    found = (
        np.random.default_rng(seed).random((n, n), np.float32) ** 4 * np.tri(n, dtype=np.float32)
        + np.eye(n) * 1e-3
    )
    return (found / found.sum(1, keepdims=True)).astype(np.float32)


def heatmap(title: str, values: np.ndarray, scale: Scale, labels: tuple[str, ...] = ()) -> Heatmap:
    labels = labels or tuple(f"w{i}" for i in range(len(values)))
    panel = Panel(values.astype(np.float32), np.tri(len(values), dtype=bool))
    return Heatmap(title, panel, axis("queries", labels), axis("keys", labels), scale, ())


def signed(n: int, labels: tuple[str, ...] = ()) -> Heatmap:
    return heatmap("B - A", weights(n, 2) - weights(n, 1), DIFFERENCES, labels)


def series(n: int, labels: tuple[str, ...] = ()) -> Series:
    shown = (
        heatmap("A: one", weights(n, 1), WEIGHTS, labels),
        heatmap("B: other", weights(n, 2), WEIGHTS, labels),
    )
    return Series("one and other", (*shown, signed(n, labels)), ("divergence 0.12 nats",))


def heads(layers: int, columns: int, scale: Scale = WEIGHTS) -> Heatmap:
    values = np.random.default_rng(0).random((layers, columns), np.float32) - 0.5 * scale.signed
    visible = np.ones(values.shape, bool)
    visible[0, 1] = False
    sides = (
        axis(name, tuple(f"{name[0].upper()}{i}" for i in range(n)))
        for name, n in (("layers", layers), ("heads", columns))
    )
    return Heatmap("induction", Panel(values, visible), *sides, scale, ())


def written(drawable: Heatmap | Series, style: FigureStyle = PLAIN) -> list[str]:
    """The texts of a figure."""
    with compose_sheet(drawable, style) as sheet:
        return [text.get_text() for text in sheet.axes.texts]


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("depth", ["truecolor", "256", "16", "shades", "ascii"])
@pytest.mark.parametrize("view", ["signed", "series"])
def test_golden_screens(
    width: int, depth: ColourDepth, view: str, request: pytest.FixtureRequest
) -> None:
    """Differences of 24 tokens, and three matrices of 8, look as they did, at every width and number of colours."""
    found = (draw_text if depth in ("shades", "ascii") else draw_styled_text)(
        {"signed": signed(24), "series": series(8)}[view], make_screen(width, depth)
    )
    golden = GOLDEN / f"{view}-{width}-{depth}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(found, "utf-8")
    assert found == golden.read_text("utf-8")


# Colours and signs of differences


def test_the_two_ends_are_as_dark_as_each_other() -> None:
    """Lightness falls evenly from the middle to both ends, and zero is a grey that is no paper."""
    lightness = convert_to_lab((sample_colours(steps=65, signed=True) / 255) ** 2.2)[:, 0]
    assert (np.diff(lightness[:33]) > 0).all()
    assert np.abs(lightness - lightness[::-1]).max() < 2
    middle = make_palette(steps=65, signed=True)[32, :3]
    assert len(set(middle.tolist())) == 1
    assert 5 < 100 - convert_to_lab((middle / 255) ** 2.2)[0] < 20


@pytest.mark.parametrize("cones", CONE_MATRICES)
def test_every_eye_tells_the_signs_apart(cones: str) -> None:
    """From a quarter of the scale on, a difference is far (20 in CIELAB) from its opposite, whatever cones one has."""
    seen = convert_to_lab(
        (sample_colours(steps=65, signed=True) / 255) ** 2.2 @ np.array(CONE_MATRICES[cones]).T
    )
    apart = np.linalg.norm(seen - seen[::-1], axis=1)[:24]
    assert apart.min() > 20


def test_the_256_colours_have_zero_in_their_middle() -> None:
    """As many for either sign, none twice, and a grey between them."""
    ramp = SIGNED.ramp_256
    assert len(set(ramp)) == len(ramp)
    assert len(ramp) % 2 == 1
    assert ramp[len(ramp) // 2] >= 232


@pytest.mark.parametrize("depth", ["shades", "ascii"])
def test_signs_are_told_apart_without_colour(depth: ColourDepth) -> None:
    """One value a cell from -top to top: each shade in turn, zero in the middle, masked blank."""
    n = len(SIGNED_SHADES[depth])
    levels = np.linspace(-1, 1, n)
    values = 0.42 * np.sign(levels) * levels**2
    row = Heatmap(
        "x",
        Panel(np.float32([[*values, 0]]), np.array([[True] * n + [False]])),
        axis("heads", ("one",)),
        axis("keys", ("k" * 9,) * (n + 1)),
        DIFFERENCES,
        (),
    )
    (line,) = (
        line
        for line in draw_text(
            row, Screen(4 + 2 * (n + 1), paint=make_screen(80, depth).paint)
        ).splitlines()
        if line.startswith("one")
    )
    assert line == "one " + "".join(2 * shade for shade in SIGNED_SHADES[depth])


def test_numbers_of_differences_have_signs() -> None:
    """Two digits in four columns; a dot within .005 of zero."""
    shown = {
        -0.314: "-.31",
        0.314: "+.31",
        0.004: " ·  ",
        -0.004: " ·  ",
        -1: "-1.0",
        0.996: "+1.0",
        -12: "-12 ",
        1e6: "+>1k",
    }
    assert {value: format_cell_difference(value) for value in shown} == shown


@given(st.floats(-1e9, 1e9))
@example(9.96)
@example(999.7)
def test_numbers_of_differences_take_four_columns(value: float) -> None:
    """Whatever the difference."""
    assert len(format_cell_difference(value)) == 4


@given(st.floats(0, 1e9))
@example(9.96)
@example(999.7)
def test_numbers_of_weights_take_four_columns(value: float) -> None:
    """Whatever the weight; norms and scores may be large."""
    assert len(format_cell_weight(value)) == 4


def test_the_bar_goes_from_minus_to_plus_over_zero() -> None:
    """On a terminal and on figures, with the same numbers on both sides."""
    assert re.search(
        r"-0\.42 ≡.*· 0 ·.*█ 0\.42  √ scale", draw_text(signed(8), make_screen(80, "shades"))
    )
    named = choose_bar_ticks(DIFFERENCES, 2, 0.1)
    assert named == [-weight for weight in named[::-1]]
    assert {"-0.42", "0", "0.42"} <= set(written(signed(8)))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.integers(1, 12))
def test_pooled_differences_are_the_largest_in_size(
    height: int, width: int, rows: int, columns: int
) -> None:
    """Of either sign: no cell of a block is larger in size than what stands for it, which is one of them."""
    values = (
        np.random.default_rng(height * 31 + width).normal(size=(height, width)).astype(np.float32)
    )
    found = Panel(values, np.ones(values.shape, bool)).pool(rows, columns)
    sizes = Panel(np.abs(values), found.visible).pool(rows, columns)
    np.testing.assert_array_equal(np.abs(found.values), sizes.values)
    assert np.isin(found.values, values).all()


@pytest.mark.parametrize("form", ["truecolor", "shades"])
def test_a_negative_difference_survives_a_small_screen(form: ColourDepth) -> None:
    """One cell of 200 x 200, in a heatmap and in a thumbnail, is drawn in the look of its sign."""
    values = np.full((200, 200), 0.001, np.float32)
    values[120, 60] = -0.42
    one = heatmap("x", values, DIFFERENCES)
    grid = Grid("x", ("L0",), ("H0",), ((one.panel,),), DIFFERENCES, (), 200)
    for drawable in (one, grid):
        cells = draw_styled_text(drawable, make_screen(60, form)).rsplit(
            "\n-0.42" if drawable is grid else "-0.42", 1
        )[0]
        assert ("#004884" in cells) if form == "truecolor" else ("≡" in cells)
        assert "each is the largest difference" in re.sub(
            r"\s+", " ", draw_text(drawable, make_screen(60, form))
        )


def test_texts_of_differences_have_their_signs() -> None:
    """A strip without colours gives each number with its sign, with colours red and blue."""
    tokens = axis("keys", ("cat", "sat"))
    strip = Strip(
        "x", tokens, Panel(np.float32([[-0.2, 0.2]]), np.ones((1, 2), bool)), None, DIFFERENCES, ()
    )
    assert "cat(-.20) sat(+.20)" in draw_text(strip, make_screen(80, "shades"))
    (below, above) = [
        part.style.bgcolor.triplet
        for part in next(iter(list(draw_picture_lines(strip, make_screen(80, "truecolor")))[1:]))
        if part.text.strip()
    ]
    assert below.blue > below.red
    assert above.red > above.blue


@pytest.mark.parametrize("colour_map", ["viridis", "gray"])
def test_figures_of_differences_have_their_own_colours(colour_map: str) -> None:
    """The dot in the middle of each cell is that of the signed map, whichever map is chosen for weights."""
    drawable, style = signed(6), FigureStyle("paper", colours=colour_map)
    with compose_sheet(drawable, style) as sheet:
        cells = sheet.axes.images[0].get_array()
    expected = make_palette(steps=COLOURS, signed=True)[DIFFERENCES.steps(drawable.panel, COLOURS)]
    np.testing.assert_array_equal(cells, expected)


def test_a_difference_of_nothing_is_drawn() -> None:
    """All zero, on a scale that ends there: the grey of zero in every cell, and no warning."""
    nothing = heatmap("x", np.zeros((30, 30)), Scale(0.0, 0.0, signed=True))
    assert "··" in draw_text(nothing, make_screen(80, "shades"))
    with compose_sheet(nothing, FigureStyle()) as sheet:
        np.testing.assert_array_equal(
            sheet.axes.images[0].get_array()[5, 2],
            make_palette(steps=COLOURS, signed=True)[COLOURS // 2],
        )


# Beside each other


@pytest.mark.parametrize(("width", "beside"), [(160, True), (80, False)])
def test_matrices_stand_beside_each_other_where_labels_fit(width: int, beside: bool) -> None:
    """Twelve tokens three times on 160 columns, on 80 below each other; all titles, bars and the caption are there."""
    lines = draw_text(series(12), make_screen(width, "shades")).splitlines()
    assert (
        any("A: one" in line and "B: other" in line and "B - A" in line for line in lines) == beside
    )
    assert max(map(count_columns, lines)) <= width
    assert "".join(lines).count("rows: queries, columns: keys") == 3
    assert lines[0] == "one and other"
    assert lines[-1] == "divergence 0.12 nats"


@pytest.mark.parametrize("depth", ["truecolor", "16", "ascii"])
@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("n", [1, 17, 41, 150])
def test_series_fit_the_screen(n: int, width: int, depth: ColourDepth) -> None:
    """No line is wider than the screen, whatever stands in it."""
    for height in (None, 24, 60):
        lines = draw_text(series(n), replace(make_screen(width, depth), height=height)).splitlines()
        assert max(map(count_columns, lines)) <= width


@pytest.mark.parametrize(
    ("width", "height", "n"), [(160, 24, 12), (160, 40, 12), (100, 70, 60), (100, 90, 20)]
)
def test_series_share_the_height_of_the_screen(width: int, height: int, n: int) -> None:
    """Beside each other each has all of it; below each other a third, unless that is too low to be read."""
    assert (
        len(
            draw_text(
                series(n), Screen(width, height, make_screen(80, "truecolor").paint)
            ).splitlines()
        )
        <= height
    )


def test_figures_of_series_stand_side_by_side_if_there_is_room() -> None:
    """On the page of a paper they do, on its column they do not; either way none covers another."""
    boxes = {}
    for inches in (6.75, 3.25):
        with compose_sheet(series(12), FigureStyle("paper", inches=inches)) as sheet:
            images = [
                image.get_extent()
                for image in sheet.axes.images
                if image.get_array().shape[:2] == (12, 12)
            ]
            boxes[inches] = images
            assert len(images) == 3
            assert sheet.figure.get_figwidth() == inches
            assert max(right for _, right, _, _ in images) < inches
    assert len({top for *_, top in boxes[6.75]}) == 1
    assert all(one[1] < other[0] for one, other in zip(boxes[6.75], boxes[6.75][1:], strict=False))
    assert all(one[2] < other[3] for one, other in zip(boxes[3.25], boxes[3.25][1:], strict=False))


def test_a_long_title_leaves_cells_at_one_height() -> None:
    """The rows of matrices beside each other stay in line, on a low screen and in a figure, however titles wrap."""
    shown = series(8)
    first, *others = shown.heatmaps
    shown = replace(shown, heatmaps=(replace(first, title="a title of many words " * 5), *others))
    for height in (None, 24):
        lines = draw_text(shown, Screen(140, height, make_screen(140, "shades").paint)).splitlines()
        assert [
            line.count(" w5 5 ") + line.startswith("w5 5 ") for line in lines if "w5" in line
        ] == [3]
        assert height is None or len(lines) < height
    with compose_sheet(shown, FigureStyle("paper")) as sheet:
        tops = {
            image.get_extent()[3]
            for image in sheet.axes.images
            if image.get_array().shape[:2] == (8, 8)
        }
    assert len(tops) == 1


def test_figures_of_series_say_all_there_is_to_say() -> None:
    """The titles, the two kinds of scale, the caption."""
    told = written(series(6))
    assert {
        "one and other",
        "A: one",
        "B: other",
        "B - A",
        "divergence 0.12 nats",
        "-0.42",
        "1",
    } <= set(told)


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_files_of_series_are_the_same_each_time(form: str) -> None:
    """The same bytes, with text that is text."""
    one, other = (render_figure(series(5), form).data for _ in range(2))
    assert one == other
    if form == "svg":
        assert "B - A" in "".join(ET.fromstring(one).itertext())


def test_hostile_labels_of_series_stay_text() -> None:
    """In figures and on every screen."""
    drawable = series(len(HOSTILE_LABELS), tuple(map(label_token, HOSTILE_LABELS)))
    texts = "".join(ET.fromstring(render_figure(drawable, "svg").data).itertext())
    assert "</scr" in texts
    for depth in ("truecolor", "ascii"):
        for width in (60, 160):
            shown = draw_text(drawable, make_screen(width, depth))
            assert "\x1b" not in shown
            assert "\u202e" not in shown
            assert depth != "ascii" or shown.isascii()


def test_markdown_has_a_table_for_each() -> None:
    """One after the other, differences with their signs; the caption last."""
    lines = render_markdown([series(2)]).splitlines()
    assert [line for line in lines if line.startswith("##")] == [
        "## one and other",
        "## A: one",
        "## B: other",
        "## B - A",
    ]
    assert sum(line.startswith("| queries") for line in lines) == 3
    assert re.search(r"\| 1 w1 \| [+-]0\.\d{4} \| [+-]0\.\d{4} \|", "\n".join(lines))
    assert lines[-1].strip() == "divergence 0.12 nats"
    assert "Numbers are differences of attention weights; nothing where masked.  " in lines


# A number a head


def test_a_map_of_heads_has_its_numbers_on_every_screen() -> None:
    """The names of heads stand level above numbers of two digits; what has no number is blank, and that is said."""
    lines = draw_text(heads(3, 12), make_screen(80, "shades")).splitlines()
    assert lines[1].split() == [f"H{i}" for i in range(12)]
    values = heads(3, 12).panel.values
    for row in (1, 2):
        name, *numbers = lines[2 + row].split()
        assert name == f"L{row}"
        np.testing.assert_allclose(
            [0 if number == "·" else float(number) for number in numbers], values[row], atol=0.006
        )
        assert lines[2 + row].index(numbers[3]) == lines[1].index(" H3 ")
    assert "rows: layers, columns: heads, blank: no value" in lines[-1]


@pytest.mark.parametrize(("layers", "columns"), [(3, 6), (12, 12), (32, 32)])
def test_a_map_of_heads_fits_narrow_and_low_screens(layers: int, columns: int) -> None:
    """Pooled if need be, when it is heads that are said to be pooled."""
    for width in (40, 80, 120):
        for depth in ("truecolor", "shades"):
            shown = draw_text(
                heads(layers, columns), Screen(width, 24, make_screen(80, depth).paint)
            )
            assert max(map(count_columns, shown.splitlines())) <= width
            assert len(shown.splitlines()) <= 24
            assert "tokens" not in shown
            assert "weight" not in shown


def test_a_figure_of_heads_has_its_numbers_where_they_fit() -> None:
    """In the colour that can be read, none where there is none, and none at all where they would be too small."""
    drawable = heads(3, 6)
    with compose_sheet(drawable, FigureStyle("paper")) as sheet:
        numbers = [
            text
            for text in sheet.axes.texts
            if re.fullmatch(r"0\.\d\d", text.get_text()) and text.get_color() in ("black", "white")
        ]
        assert [text.get_text() for text in numbers] == [
            f"{value:.2f}" for value in drawable.panel.values[drawable.panel.visible]
        ]
        assert {text.get_color() for text in numbers} == {"black", "white"}
        level = [text for text in sheet.axes.texts if text.get_text() == "H3"]
        assert [text.get_rotation() for text in level] == [0]
    small = written(heads(32, 32), FigureStyle("paper"))
    assert not [
        text for text in small if re.fullmatch(r"0\.\d\d", text) and text not in ("0.02", "0.05")
    ]
    assert "+0." in "".join(written(heads(2, 3, DIFFERENCES), FigureStyle("paper")))


def test_markdown_names_layers_and_heads_as_they_are() -> None:
    """Without numbers of tokens, and without calling scores weights."""
    told = render_markdown([heads(2, 3)])
    assert "| layers \\\\ columns" not in told
    assert "| H0 | H1 | H2 |" in told
    assert "\n| L0 | 0." in told
    assert "attention weights" not in told


def test_a_picture_in_png_is_not_blank() -> None:
    """Red, blue and grey are in the file of a series."""
    picture = (
        np.asarray(Image.open(io.BytesIO(render_figure(series(6), "png").data)).convert("RGB"))
        .reshape(-1, 3)
        .astype(int)
    )
    assert ((picture[:, 0] - picture[:, 2]) > 100).any()
    assert ((picture[:, 2] - picture[:, 0]) > 100).any()


def test_matrices_beside_each_other_are_of_one_size() -> None:
    """However wide the labels of their colour bars are."""
    with compose_sheet(series(6), FigureStyle(inches=9)) as sheet:
        extents = [image.get_extent() for image in sheet.axes.images]
    wide = [right - left for left, right, _, _ in extents]
    cells = [round(width, 6) for width in wide if width > 1]
    assert (len(cells), len(set(cells))) == (3, 1)
