"""Pictures: drawables as data, golden screens at fixed widths, figures."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnviz.drawable import pool_matrix
from attnviz.models import load_model
from attnviz.record import Capture
from attnviz.render.colour import MAPS, sample_colours
from attnviz.render.terminal.cells import CellPaint, ColourDepth
from attnviz.render.terminal.draw import Screen, draw_picture_lines
from attnviz.render.terminal.text_width import (
    count_columns,
    fit_columns,
    fix_width,
    stack_labels,
    wrap_columns,
)
from attnviz.request import Prompt, Request
from attnviz.views import Look, Scale, make_grids, make_heatmaps, make_query_heatmaps, make_strips
from tests.captures import make_capture, make_tokens
from tests.colour_vision import CONE_MATRICES, convert_to_lab
from tests.conftest import SENTENCE
from tests.pictures import GOLDEN, WIDE_LABELS, draw_styled_text, draw_text, make_screen


def long_capture(n: int, heads: int = 1) -> Capture:
    """A capture of n tokens with a sink, a diagonal and a stripe."""
    weights = np.full((1, heads, n, n), 0.1 / n, np.float32) + np.eye(n, dtype=np.float32) * 0.5
    weights[..., 0] += 0.3
    weights = np.tril(weights)
    weights /= weights.sum(-1, keepdims=True)
    return make_capture(weights, visible=np.tri(n, dtype=bool), measured=True)


def every_view(capture: Capture) -> dict[str, object]:
    """A picture of each view, of the first head, all heads, or token 9."""
    part = capture.maps[0]
    one = replace(capture, maps=(part.window(range(9, 10), range(len(part.keys))),))
    return {
        "heatmap": make_heatmaps(capture)[0],
        "grid": make_grids(capture)[0],
        "tokens": make_strips(one)[0],
        "rows": make_query_heatmaps(one)[0],
    }


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("depth", ["truecolor", "256", "16", "shades", "ascii"])
@pytest.mark.parametrize("view", ["heatmap", "grid", "tokens", "rows"])
def test_golden_screens(
    width: int, depth: ColourDepth, view: str, request: pytest.FixtureRequest
) -> None:
    """A picture of 24 tokens with a sink looks as it did, at every width, in every number of colours."""
    drawable = every_view(long_capture(24, heads=3))[view]
    found = (draw_text if depth in ("shades", "ascii") else draw_styled_text)(
        drawable, make_screen(width, depth)
    )
    golden = GOLDEN / f"{view}-{width}-{depth}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(found, "utf-8")
    assert found == golden.read_text("utf-8")


def test_long_model_names_keep_layer_and_head(capture: Capture) -> None:
    """The title wraps rather than lose its end."""
    named = replace(capture, model="owner/" + "a-very-long-name-" * 4)
    shown = draw_text(make_heatmaps(named)[0], make_screen(40, "shades"))
    assert "layer 0 · head 0" in re.sub(r"\s+", " ", shown)
    assert max(map(count_columns, shown.splitlines())) <= 40


@pytest.mark.parametrize("depth", ["truecolor", "256", "16", "shades", "ascii"])
@pytest.mark.parametrize("width", [40, 57, 80, 200])
@pytest.mark.parametrize("n", [1, 2, 17, 41, 150, 700])
def test_pictures_fit_the_screen(n: int, width: int, depth: ColourDepth) -> None:
    """No line of any view is wider than the screen, however long the text, and a picture is never empty."""
    capture = long_capture(n, heads=13)
    for drawable in (make_heatmaps(capture)[0], make_grids(capture)[0]):
        lines = draw_text(drawable, make_screen(width, depth)).splitlines()
        assert max(map(count_columns, lines)) <= width
        assert len(lines) >= 4


@pytest.mark.parametrize("depth", ["truecolor", "shades"])
@pytest.mark.parametrize("height", [20, 24, 50])
@pytest.mark.parametrize("n", [3, 17, 41, 700])
def test_pictures_fit_a_low_screen(n: int, height: int, depth: ColourDepth) -> None:
    """A picture and a prompt below it are no higher than a terminal, whatever the text; a text itself may scroll."""
    for width in (40, 90, 300):
        low = Screen(width, height, CellPaint(depth))
        for drawable in (
            make_heatmaps(long_capture(n))[0],
            make_grids(long_capture(n, heads=3))[0],
        ):
            assert len(draw_text(drawable, low).splitlines()) < height


def test_pooling_for_a_low_screen_is_told() -> None:
    """Rows and columns may be pooled differently, and the caption gives both."""
    low = draw_text(make_heatmaps(long_capture(60))[0], Screen(90, 24, CellPaint("truecolor")))
    assert "60 tokens on 34 x 60 cells: each is the largest weight that it stands for" in low, low
    high = draw_text(make_heatmaps(long_capture(60))[0], Screen(90, 80, CellPaint("truecolor")))
    assert "largest" not in high


def test_full_pictures_have_a_cell_for_every_token() -> None:
    """However wide that is: a row and two columns a token, labels and all; thumbnails likewise."""
    full = Screen(60, paint=CellPaint("shades"), full=True)
    lines = draw_text(make_heatmaps(long_capture(150))[0], full).splitlines()
    body = [line for line in lines if re.match(r" *w\d+ [░▒▓█·▲]", line)]
    assert len(body) == 150
    assert len(body[-1]) == len("w149 ") + 2 * 150
    assert "largest" not in "".join(lines)
    small = draw_text(make_grids(long_capture(150, heads=2))[0], full).splitlines()
    assert sum(len(line) == len("L0 ") + 150 for line in small) == 2  # the last row of each
    assert "largest" not in "".join(small)


def test_sinks_are_beyond_the_colours() -> None:
    """A column that takes most of the weight has a look of its own, in the picture and at the colour bar."""
    weights = np.full((30, 30), 0.1 / 29, np.float32)
    weights[:, 0] = 0.9
    capture = make_capture(weights)
    shown = draw_text(make_heatmaps(capture)[0], make_screen(100, "shades"))
    assert shown.count("▲▲" + "██" * 29) == 30
    assert "0.0034  ▲▲ beyond  √ scale" in shown
    assert "90% of the weight is on the sink w0 (even share: 3%): beyond the colours" in shown
    assert "<on #c77dff>" in draw_styled_text(
        make_heatmaps(capture)[0], make_screen(100, "truecolor")
    )
    whole = draw_text(make_heatmaps(capture, Look(whole=True))[0], make_screen(100, "shades"))
    assert "▲" not in whole
    assert " 0.9  √ scale" in whole


def test_a_linear_scale_is_named() -> None:
    """The colour bar says which scale it is."""
    assert "linear scale" in draw_text(
        make_heatmaps(long_capture(30), Look(linear=True))[0], make_screen(80, "shades")
    )


@pytest.mark.parametrize("depth", ["truecolor", "shades", "ascii"])
@pytest.mark.parametrize("width", [40, 100])
def test_texts_are_wrapped_with_every_token_in_order(width: int, depth: ColourDepth) -> None:
    """Tokens coloured by one query, or with their weights where there are no colours; the one token is marked."""
    drawable = every_view(long_capture(24))["tokens"]
    lines = draw_text(drawable, make_screen(width, depth)).splitlines()
    assert max(map(count_columns, lines)) <= width
    body = " ".join(lines).split("what token 9 w9 attends to ")[1]
    assert re.findall(r"\bw\d+\b", body)[:24] == [f"w{i}" for i in range(24)]
    if depth == "truecolor":
        styles = {
            part.text: str(part.style)
            for line in draw_picture_lines(drawable, make_screen(width, depth))
            for part in line
        }
        assert styles["w9"].startswith("bold underline")
        assert styles["w10"] == "dim"
    else:
        weights = drawable.panel.values[0]
        assert f"w0(.{weights[0] * 100:.0f})" in body
        assert f">w9(.{weights[9] * 100:.0f})<" in body


def test_maps_between_two_texts_show_numbers() -> None:
    """Where rows and columns are different tokens, columns have their labels above their numbers."""
    capture = make_capture(np.full((4, 4), 0.25), "k0 k1 k2 k3", kind="cross")
    assert "    k   k   k   k\n    0   1   2   3\nq0 .25 .25" in draw_text(
        make_heatmaps(capture)[0], make_screen(80, "shades")
    )


def test_numbers_are_those_of_the_whole_text() -> None:
    """A window is numbered by where it stands."""
    capture = long_capture(40)
    window = replace(capture, maps=(capture.maps[0].window(range(30, 36), range(30, 36)),))
    assert "        30  31  32  33  34  35\nw30 30 .57" in draw_text(
        make_heatmaps(window)[0], make_screen(80, "shades")
    )


def test_right_to_left_labels_do_not_turn_what_follows() -> None:
    """A label from right to left is closed by a mark of no width; others have none."""
    assert fit_columns("مرحبا", 8) == "   مرحبا\u200e"
    assert count_columns(fit_columns("مرحبا", 8)) == 8
    assert fit_columns("cat", 4, left=True) == "cat "
    assert "\u200e" in stack_labels(("مر", "b"))[0]


def test_signs_that_terminals_do_not_agree_on_are_written_out() -> None:
    """Skin tones and flags as escapes, selectors not at all."""
    assert fix_width("👍🏽") == "👍\\U0001f3fd"
    assert fix_width("🇩🇪") == "\\U0001f1e9\\U0001f1ea"
    assert fix_width("❤️") == "❤"


@given(st.text(max_size=80), st.integers(4, 40))
def test_wrapped_lines_fit_and_lose_nothing(text: str, width: int) -> None:
    """Every line fits, and all but white space is there in order."""
    lines = list(wrap_columns(text, width))
    assert max(map(count_columns, lines), default=0) <= width
    assert "".join("".join(lines).split()) == "".join(fix_width(text).split())


def test_layout_goes_by_what_fits() -> None:
    """Numbers for few tokens, stacked labels for more, half blocks with ticks for many, pooled beyond the width."""
    few, more, many, most = (
        draw_text(make_heatmaps(long_capture(n))[0], make_screen(100, "truecolor"))
        for n in (18, 40, 80, 300)
    )
    assert " .3" in few
    assert "w\n" not in few
    assert "w w w" in more
    assert "▀" not in more
    assert "╷10" in many
    assert "▀" in many
    assert "largest weight" in most
    assert "largest weight" not in many


def test_values_in_cells_are_the_weights(capture: Capture) -> None:
    """The numbers drawn are the weights to two digits; masked cells are blank."""
    panel = make_heatmaps(capture)[0].panel
    lines = draw_text(make_heatmaps(capture)[0], make_screen(80, "shades")).splitlines()[2:6]
    for row, line in enumerate(lines):
        shown = [float(word) for word in line.split()[2:]]
        np.testing.assert_allclose(shown, panel.values[row, : row + 1], atol=0.006)


def test_masked_is_not_zero() -> None:
    """A visible weight of zero has a look of its own, a masked cell is blank, without colours too."""
    weights = np.zeros((30, 30))
    weights[:, 0] = 1
    capture = make_capture(weights, visible=np.tri(30, dtype=bool))
    for depth, zero in (("shades", "·"), ("ascii", ".")):
        line = draw_text(make_heatmaps(capture)[0], make_screen(100, depth)).splitlines()[1 + 3 + 4]
        assert line.endswith(zero * 8)
        assert line.count(zero) == 8


def test_captions_tell_what_is_seen(capture: Capture) -> None:
    """Model, layer, head, what rows and columns are, scale and range; of even attention no sink."""
    drawable = make_heatmaps(capture)[3]
    shown = draw_text(drawable, make_screen(80, "shades"))
    part = capture.maps[0]
    assert "toy · layer 1 · head 1" in shown
    assert "rows: queries, columns: keys, blank: masked" in shown
    assert "√ scale" in shown
    assert "sink" not in shown
    mean = replace(capture, maps=(part.reduced("mean"),), notes=("a note",))
    assert "layer 0 · mean over heads" in draw_text(
        make_heatmaps(mean)[0], make_screen(80, "shades")
    )
    assert "a note" in draw_text(make_heatmaps(mean)[0], make_screen(80, "shades"))


def test_ragged_heads_have_gaps() -> None:
    """L0H1,L2H0 is a grid with a panel for each and gaps between."""
    from attnviz.selection import ALL, parse_heads

    drawable = make_grids(
        load_model().capture(Prompt(SENTENCE), Request(ALL, parse_heads("L0H1,L2H0")))
    )[0]
    assert (drawable.rows, drawable.columns) == (("L0", "L2"), ("H1", "H0"))
    assert [[panel is not None for panel in row] for row in drawable.panels] == [
        [True, False],
        [False, True],
    ]


@pytest.mark.parametrize("width", [40, 100])
def test_wide_and_hostile_labels_keep_columns_aligned(width: int) -> None:
    """CJK, emoji, combining marks, right-to-left, control characters, nothing: each line is as wide as the others."""
    tokens = make_tokens(WIDE_LABELS * 3)
    n = len(tokens)
    drawable = make_heatmaps(make_capture(np.full((n, n), 1 / n), tokens))[0]
    lines = list(draw_picture_lines(drawable, make_screen(width, "truecolor")))
    body = [line for line in lines if line and line[-1].style and line[-1].style.bgcolor][:-1]
    assert len({sum(count_columns(segment.text) for segment in line) for line in body}) == 1
    assert "\x1b" not in "".join(segment.text for line in lines for segment in line)


@given(st.text(max_size=20), st.integers(2, 20))
def test_fit_gives_exactly_the_width(text: str, width: int) -> None:
    """Whatever the text, what is shown takes exactly its columns."""
    from attnviz.escape import escape

    assert count_columns(fit_columns(escape(text), width)) == width


def test_stacked_labels_end_at_the_bottom() -> None:
    """Labels are written downwards, two columns each, aligned at their ends, cut with an ellipsis."""
    assert stack_labels(("ab", "c", "猫x")) == ["a   猫", "b c x"]
    assert stack_labels(("x" * 20,)) == ["x"] * 8 + ["…"]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(1, 50))
def test_pooling_keeps_the_maximum(height: int, width: int, rows: int, columns: int) -> None:
    """A pooled matrix fits, keeps its maximum, and is the matrix itself where it fits already."""
    values = np.random.default_rng(height).random((height, width))
    pooled = pool_matrix(values, rows, columns)
    assert pooled.shape == (min(height, rows), min(width, columns))
    assert pooled.max() == values.max()
    if rows >= height and columns >= width:
        np.testing.assert_array_equal(pooled, values)


def test_levels_are_square_roots() -> None:
    """Colours go by the square root of the weight's share of the top, or by that share itself."""
    np.testing.assert_allclose(Scale(0.08, 0.08).levels([0, 0.02, 0.08, 1]), [0, 0.5, 1, 1])
    np.testing.assert_allclose(
        Scale(0.08, 0.08, linear=True).levels([0, 0.02, 0.08, 1]), [0, 0.25, 1, 1]
    )
    assert Scale(0.0, 0.0).levels(np.zeros(2)).tolist() == [0, 0]


def luminance(rgb: object) -> np.ndarray:
    """Relative luminance of colours (..., 3)."""
    return (np.asarray(rgb, float) / 255) ** 2.2 @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("name", MAPS)
def test_colours_are_the_published_maps_and_rise(name: str) -> None:
    """Within 8/255 of matplotlib's; lightness rises at every step, on the 256-colour ramp as well."""
    from matplotlib import colormaps

    ends = 0.9 if name == "gray" else 1  # before the white of paper, which is masked
    theirs = np.array(colormaps[name].resampled(256)(np.linspace(0, ends, 64))[:, :3]) * 255
    assert np.abs(sample_colours(name, 64) - theirs).max() <= 8
    cube = [0, 95, 135, 175, 215, 255]
    ramp = [
        (8 + 10 * (i - 232),) * 3
        if i >= 232
        else (cube[(i - 16) // 36], cube[(i - 16) // 6 % 6], cube[(i - 16) % 6])
        for i in MAPS[name].ramp_256
    ]
    for shown in (sample_colours(name, 64), ramp):
        assert (np.diff(luminance(shown)) > 0).all()


@pytest.mark.parametrize("cones", CONE_MATRICES)
@pytest.mark.parametrize("name", MAPS)
def test_what_is_beyond_the_scale_is_told_from_it_by_every_eye(name: str, cones: str) -> None:
    """The colour of sinks is far (a difference of 30 in CIELAB) from the map and from white, whatever cones one has."""
    matrix = np.array(CONE_MATRICES[cones]).T
    scale, beyond, white = (
        convert_to_lab((np.asarray(rgb, float) / 255) ** 2.2 @ matrix)
        for rgb in (sample_colours(name, 64), MAPS[name].beyond, [255] * 3)
    )
    assert np.linalg.norm(scale - beyond, axis=-1).min() > 30
    assert np.linalg.norm(white - beyond) > 30
